"""Sticky assignment of users to the variants of an experiment, by hash alone.

A user's place on the unit interval is the hash of the experiment's name and the
user id; variants own adjacent pieces of it in order of their names. Any process
gives the same answer with nothing stored, and experiments are independent of
each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def variant(user_id: str, experiment: str, shares: Mapping[str, float]) -> str:
    """The variant of a user; `shares` sum to 1."""
    seed = f"{experiment}\x1f{user_id}".encode(errors="surrogatepass")
    point = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest()) / 2.0**64
    names = sorted(shares)
    edge = 0.0
    for name in names:
        edge += shares[name]
        if point < edge:
            return name
    return names[-1]
