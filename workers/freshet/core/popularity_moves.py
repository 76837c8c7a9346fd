"""How popularity moved between two looks, as far as lists can be touched by it."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rises(NamedTuple):
    """How popularity moved what it adds to the scores of available items, between two looks.

    Attributes:
        before: What it added before, ascending.
        now: What it adds now to the same items, ascending.
        priors: What it adds now to the items that rose `[R]`, descending.
        highest: The most that it rose among the items with at least that prior `[R]`.
        fall: The most that it fell for any item.
    """

    before: NDArray[np.float32]
    now: NDArray[np.float32]
    priors: NDArray[np.float32]
    highest: NDArray[np.float32]
    fall: float


def rises_of(
    before: NDArray[np.float32], now: NDArray[np.float32], available: NDArray[np.bool_], returned: Collection[int]
) -> Rises:
    """Compare what popularity adds to the scores of a version's rows, `[rows]` each; later rows count as 0 before.

    Rows in `returned` have just become available: they rose without bound.
    """
    known = np.zeros(len(now), np.float32)
    known[: len(before)] = before[: len(now)]
    rise = now - known
    fall = max(0.0, float(-rise.min(initial=0.0)))
    rise[list(returned)] = np.inf
    rows = np.flatnonzero((rise > 0) & available)
    rows = rows[np.argsort(-now[rows])]
    shown = np.flatnonzero(available)
    return Rises(np.sort(known[shown]), np.sort(now[shown]), now[rows], np.maximum.accumulate(rise[rows]), fall)
