"""Golden tensors: inputs kept in a bundle, and the outputs that torch gave for them.

Whatever runs a version's graphs must give these outputs again: ONNX Runtime when the bundle is
written, Triton before anybody is served, a TensorRT plan before it is stamped. All of them ask
`check_answers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshet.bundle.arrays import load_arrays
from freshet.bundle.bundle import Bundle, BundleError
from freshet.core.decoding import Undecodable
from freshet.core.features import (
    FIRST_ITEM,
    ITEM_TOWER_INPUTS,
    ITEM_TOWER_OUTPUTS,
    NUMPY_DTYPES,
    USER_ENCODER_INPUTS,
    USER_ENCODER_OUTPUTS,
    Tensors,
    TensorSpec,
    sized,
)
from freshet.errors import FreshetError

GOLDEN = "golden.npz"
TOLERANCE = 1e-3
"""Largest difference between two machines that reckon in single precision."""
TOPK_INDEX, TOPK_SCORE, EMBEDDING = (spec.name for spec in USER_ENCODER_OUTPUTS)


class GoldenError(FreshetError):
    """Golden tensors cannot be read, or were not given again; the message is one line that says which."""


def read_golden(folder: Path) -> Tensors:
    """The golden tensors of both graphs of the bundle at `folder`, by name. Raises `GoldenError`."""
    golden = load_arrays(folder / GOLDEN)
    if isinstance(golden, Undecodable):
        raise GoldenError(f"{GOLDEN} cannot be read: {golden.why}")
    for spec in (*USER_ENCODER_INPUTS, *USER_ENCODER_OUTPUTS, *ITEM_TOWER_INPUTS, *ITEM_TOWER_OUTPUTS):
        if spec.name not in golden:
            raise GoldenError(f"{GOLDEN} lacks {spec.name}")
    return golden


def check_golden(bundle: Bundle) -> None:
    """See that the golden tensors have the version's sizes and fit its item table. Raises `BundleError`."""
    manifest = bundle.manifest
    try:
        golden = read_golden(bundle.path)
        for graph in ((USER_ENCODER_INPUTS, USER_ENCODER_OUTPUTS), (ITEM_TOWER_INPUTS, ITEM_TOWER_OUTPUTS)):
            inputs, outputs = (
                sized(specs, length=manifest.length, dim=manifest.dim, items=len(bundle.item_ids)) for specs in graph
            )
            _check_sizes(golden, (*inputs, *outputs))
            check_answers(golden, golden, outputs, bundle.item_vectors, TOLERANCE)
    except GoldenError as error:
        raise BundleError(f"{bundle.path}: {GOLDEN} does not fit the version, export it again: {error}") from None


def check_answers(
    answers: Mapping[str, NDArray[Any]],
    golden: Tensors,
    outputs: Sequence[TensorSpec],
    item_vectors: NDArray[np.float32],
    tolerance: float,
) -> float:
    """See that a graph's `outputs` are the golden ones; returns how far they are off at most.

    Items of nearly equal scores may swap their places in `topk_index` `[B, K]`, so each is held to
    the golden score of its place: it must be the golden user vector times the item's row of
    `item_vectors` `[N, D]`.

    Raises:
        GoldenError: An output is missing, of another shape, NaN, or off by more than `tolerance`; or
            a list names an item twice, or one that is not in the table.
    """
    worst = 0.0
    for spec in outputs:
        given, wanted = answers.get(spec.name), golden[spec.name]
        if given is None or given.shape != wanted.shape:
            raise GoldenError(f"{spec.name} is {None if given is None else given.shape}, not {wanted.shape}")
        if spec.name == TOPK_INDEX:
            given, wanted = _worth(given, golden[EMBEDDING], item_vectors), golden[TOPK_SCORE]
        off = float(np.abs(given - wanted).max(initial=0.0))
        if not off <= tolerance:
            raise GoldenError(f"{spec.name} is off its golden values by {off:.2g}, more than {tolerance:g}")
        worst = max(worst, off)
    return worst


def _check_sizes(golden: Tensors, specs: Sequence[TensorSpec]) -> None:
    rows = golden[specs[0].name].shape[:1]
    for spec in specs:
        given, shape = golden[spec.name], (*rows, *spec.shape)
        if given.shape != shape or given.dtype != NUMPY_DTYPES[spec.dtype] or not given.size:
            raise GoldenError(
                f"{spec.name} is {given.dtype} {given.shape}, not {spec.dtype} {shape} with a row or more"
            )


def _worth(
    index: NDArray[Any], embedding: NDArray[np.float32], item_vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The score `[B, K]` of each item of `index` `[B, K]` for the user vectors `[B, D]`."""
    if not ((index >= FIRST_ITEM) & (index < FIRST_ITEM + len(item_vectors))).all():
        raise GoldenError(f"{TOPK_INDEX} names an item that is not in the item table")
    rows = index.astype(np.int64) - FIRST_ITEM
    if (np.diff(np.sort(rows, axis=1), axis=1) == 0).any():
        raise GoldenError(f"{TOPK_INDEX} names an item twice in one list")
    worth: NDArray[np.float32] = np.einsum("bd,bkd->bk", embedding, item_vectors[rows])
    return worth
