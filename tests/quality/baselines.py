"""The baselines that any claim must beat: popularity, ItemKNN (TF-IDF) and EASE, in a few lines each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from tests.quality.ranking import Floats, LeaveOneOut, Scorer, judge

NEIGHBOURS = (50, 200)
RIDGE = (100.0, 300.0, 1000.0)


def popularity(split: LeaveOneOut) -> Scorer:
    """Training events by item, the same for everybody."""
    counts = split.counts().astype(np.float32)
    return lambda histories: np.broadcast_to(counts, (len(histories), len(counts))).copy()


def item_knn(split: LeaveOneOut) -> Scorer:
    """Cosine between items as TF-IDF vectors of their users (a user of many items says less), the nearest kept."""
    touched = _matrix(split.train, split.items)
    idf = np.log(split.items / (1.0 + np.asarray(touched.sum(axis=1)).ravel()))
    weighted = (sparse.diags(idf) @ touched).T.tocsr()  # [N, users]
    norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    unit = sparse.diags(1 / np.maximum(norm, 1e-9)) @ weighted
    similarity = (unit @ unit.T).tolil()
    similarity.setdiag(0)
    similar = similarity.tocsr()
    candidates = [_through(_nearest(similar.copy(), count)) for count in NEIGHBOURS]
    return _best_on_validation(candidates, split)


def ease(split: LeaveOneOut, ridge: float) -> Scorer:
    """Embarrassingly shallow autoencoders (Steck, WWW 2019): the closed form of item-item regression."""
    touched = _matrix(split.train, split.items)
    gram = np.asfortranarray((touched.T @ touched).toarray().astype(np.float32))
    gram[np.diag_indices(split.items)] += np.float32(ridge)
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    inverse, failed_too = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed or failed_too:
        raise ValueError(f"the Gram matrix with ridge {ridge:g} cannot be inverted")
    lower = np.tril(inverse)
    weights = lower + np.tril(lower, -1).T
    weights /= -np.diag(weights)
    weights[np.diag_indices(split.items)] = 0
    return _through(weights)


def best_ease(split: LeaveOneOut) -> Scorer:
    """EASE with the ridge that validates best."""
    return _best_on_validation((ease(split, ridge) for ridge in RIDGE), split)


def _matrix(users: Sequence[Sequence[int]], items: int) -> sparse.csr_matrix:
    """Who touched what, `[users, items]`, ones."""
    columns = np.concatenate([np.array(sorted(set(touched)), np.int64) for touched in users])
    ends = np.cumsum([0, *(len(set(touched)) for touched in users)])
    return sparse.csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape=(len(users), items))


def _nearest(similar: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Keep the `count` largest of each row."""
    for start, stop in zip(similar.indptr, similar.indptr[1:], strict=False):
        if stop - start > count:
            smallest = np.argpartition(similar.data[start:stop], -count)[:-count]
            similar.data[start + smallest] = 0
    similar.eliminate_zeros()
    return similar


def _through(weights: NDArray[np.float32] | sparse.csr_matrix) -> Scorer:
    """Score by the sum of the rows of the user's items."""
    items = weights.shape[0]

    def score(histories: Sequence[list[int]]) -> Floats:
        found = _matrix(histories, items) @ weights
        scores = found.toarray() if sparse.issparse(found) else np.asarray(found)
        return np.ascontiguousarray(scores, np.float32)

    return score


def _best_on_validation(candidates: Iterable[Scorer], split: LeaveOneOut) -> Scorer:
    """The best one; a generator has at most two of them in memory."""
    best, best_gain = popularity(split), -1.0
    for candidate in candidates:
        gain = float(judge(candidate, split.validation).gain.mean())
        if gain > best_gain:
            best, best_gain = candidate, gain
    return best
