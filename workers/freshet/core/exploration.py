"""Swap exploration: a list is changed at random in at most one place, with known chances.

With chance ε one slot s of the L and one item j of the pool of M are drawn
uniformly. Where j is in the list, the two slots swap; where it is not, j takes
slot s. So every slot's chance of holding an item is a closed form: the list's
own other items have 2ε/(LM) each (drawn here, or swapped from there), items
beyond it ε/(LM), and the slot's own item keeps the rest. These marginals are
what item-position off-policy estimators need (Li et al., KDD 2018).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Explored(Generic[T]):
    """A list, the chance that each slot held its item, and which slots were changed."""

    items: list[T]
    propensities: list[float]
    moved: list[bool]


def explore(pool: Sequence[T], size: int, epsilon: float, seed: str) -> Explored[T]:
    """The first `size` of the pool, changed with chance `epsilon`; `seed` alone decides.

    `pool` holds the greedy list first, then other candidates, none twice.
    """
    items = list(pool[:size])
    length = len(items)
    moved = [False] * length
    draw = hashlib.blake2b(seed.encode(errors="surrogatepass"), digest_size=24).digest()
    if length and _unit(draw[:8]) < epsilon:
        slot = int(_unit(draw[8:16]) * length)
        chosen = int(_unit(draw[16:]) * len(pool))
        if chosen < length:
            items[slot], items[chosen] = items[chosen], items[slot]
            moved[slot] = moved[chosen] = slot != chosen
        else:
            items[slot] = pool[chosen]
            moved[slot] = True
    rank = {item: number for number, item in enumerate(pool)} if any(moved) else {}
    own = _own(length, len(pool), epsilon) if length else 1.0
    propensities = [
        own if not moved[slot] else _other(rank[item] < length, length, len(pool), epsilon)
        for slot, item in enumerate(items)
    ]
    return Explored(items, propensities, moved)


def propensity(pool: Sequence[T], size: int, epsilon: float, slot: int, item: T) -> float:
    """The chance that `slot` holds `item`."""
    greedy = list(pool[:size])
    if slot < len(greedy) and greedy[slot] == item:
        return _own(len(greedy), len(pool), epsilon)
    if item not in pool or slot >= len(greedy):
        return 0.0
    return _other(item in greedy, len(greedy), len(pool), epsilon)


def _own(length: int, pool: int, epsilon: float) -> float:
    lost = ((length - 1) * 2 + (pool - length)) / (length * pool)
    return 1.0 - epsilon * lost


def _other(in_list: bool, length: int, pool: int, epsilon: float) -> float:
    return (2 if in_list else 1) * epsilon / (length * pool)


def _unit(raw: bytes) -> float:
    return (int.from_bytes(raw) >> 11) / 2.0**53
