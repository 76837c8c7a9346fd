"""Team-draft interleaving (Radlinski, Kurup & Joachims 2008, CIKM): two policies in one list, and whose items win."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from freshet.core.evaluation.buckets import SavedSums, Sums, bucket, verdict
from freshet.core.evaluation.results import Interleaving


def interleave(first: Sequence[str], other: Sequence[str], size: int, seed: str) -> tuple[list[str], list[int]]:
    """One list of at most `size` items, and for each the team (0 or 1) that brought it in.

    In each round a coin, drawn from `seed`, says which team picks first; each
    team picks its best item that is not in the list yet.
    """
    coins = int.from_bytes(hashlib.blake2b(seed.encode(errors="surrogatepass"), digest_size=32).digest())
    items: list[str] = []
    teams: list[int] = []
    rankings = (list(first), list(other))
    while len(items) < size:
        before = len(items)
        starter = coins & 1
        coins >>= 1
        for team in (starter, 1 - starter):
            pick = next((item for item in rankings[team] if item not in items), None)
            if pick is not None and len(items) < size:
                items.append(pick)
                teams.append(team)
        if len(items) == before:
            break
    return items, teams


class SavedInterleaver(msgspec.Struct, frozen=True):
    """An `Interleaver` in a checkpoint."""

    wins: SavedSums
    ties: int


class Interleaver:
    """Credits what users did next to the team that brought it into the interleaved list."""

    def __init__(self, baseline: str, candidate: str, size: int = 10) -> None:
        self._names = baseline, candidate
        self._size = size
        self._wins = Sums(1)
        self._ties = 0

    def judge(self, user_id: str, first: Sequence[str], other: Sequence[str], item_id: str, seed: str) -> None:
        """One act, with both policies' lists of that moment."""
        items, teams = interleave(first, other, self._size, seed)
        if item_id in items:
            self._wins.add(bucket(user_id), (float(teams[items.index(item_id)]),))
        else:
            self._ties += 1

    def result(self) -> Interleaving:
        """Who won how often, and whether that is more than chance."""
        [share] = self._wins.estimates(0)
        wins = int(self._wins.sums.sum())
        says = verdict(share, 0.5) if share.n else "no difference shown"
        return Interleaving(*self._names, wins, share.n - wins, self._ties, share, says)

    def saved(self) -> SavedInterleaver:
        """Everything, for a checkpoint."""
        return SavedInterleaver(self._wins.saved(), self._ties)

    def restore(self, saved: SavedInterleaver) -> None:
        """Take over what `saved` gave."""
        self._wins.restore(saved.wins)
        self._ties = saved.ties
