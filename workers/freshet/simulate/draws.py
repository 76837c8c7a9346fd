"""Random numbers by name: what is drawn for a thing depends only on the seed and on that thing.

A counter-based generator (Philox; Salmon et al., SC 2011) is keyed by the seed and by the purpose of the numbers. Any
taste, session or click can therefore be drawn again without drawing what came before.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What numbers are drawn for."""

    ITEM = 0
    FAME = 1
    TASTE = 2
    FASHION = 3
    MOOD = 4
    HABIT = 5
    VISITS = 6
    PAGES = 7
    REACTION = 8


def generator(seed: int, draw: Draw, *names: int) -> np.random.Generator:
    """The generator of the thing that `names` name."""
    packed = struct.pack(f"<{len(names) + 2}q", seed, draw, *names)
    key = np.frombuffer(hashlib.blake2b(packed, digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
