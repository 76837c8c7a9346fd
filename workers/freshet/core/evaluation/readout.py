"""An experiment's readout: what users did with the lists of each variant."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from freshet.core.evaluation.buckets import Sums, bucket, unpaired, verdict
from freshet.core.evaluation.results import Difference, Estimate, VariantReadout

CHANCE = 0.001
"""Shares of users that would come about by a smaller chance than this are no accident."""


class Readout:
    """Adds up, variant by variant. Memory grows with the users.

    A user is whom the assignment is by, so users are what varies: each metric is
    of acts, `per list` and `per user`, with intervals over users. Whoever has seen
    lists of two variants is in none.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        self._kinds = tuple(kinds)
        self._lists: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._acts: dict[str, dict[str, list[float]]] = defaultdict(dict)

    def add(self, user_id: str, variant: str, acts: Sequence[float]) -> None:
        """One list of a user, with the number of slots acted upon by type."""
        self._lists[variant][user_id] += 1
        known = self._acts[variant].get(user_id, [0.0] * len(self._kinds))
        self._acts[variant][user_id] = [a + b for a, b in zip(known, acts, strict=True)]

    @property
    def crossed(self) -> set[str]:
        """Users with lists of more than one variant."""
        seen: set[str] = set()
        twice: set[str] = set()
        for users in self._lists.values():
            twice |= seen & users.keys()
            seen |= users.keys()
        return twice

    def variants(self) -> list[VariantReadout]:
        """What each variant's users did."""
        found = []
        for name in sorted(self._lists):
            per_list, per_user = self._sums(name)
            users = int(per_user.counts.sum())
            found.append(VariantReadout(name, users, int(per_list.counts.sum()), self._named(per_list, per_user)))
        return found

    def differences(self, baseline: str) -> list[Difference]:
        """Every other variant against one of them, metric by metric."""
        theirs = self._sums(baseline)
        found = []
        for name in sorted(self._lists):
            if name == baseline:
                continue
            mine = self._sums(name)
            for way, first, other in zip(("per list", "per user"), theirs, mine, strict=True):
                estimates = unpaired(first, other, seed=0)
                found += [
                    Difference(baseline, name, f"{kind} {way}", estimate, verdict(estimate))
                    for kind, estimate in zip(self._kinds, estimates, strict=True)
                ]
        return found

    def _sums(self, variant: str) -> tuple[Sums, Sums]:
        per_list, per_user = Sums(len(self._kinds)), Sums(len(self._kinds))
        crossed = self.crossed
        for user, lists in self._lists[variant].items():
            if user not in crossed:
                number, acts = bucket(user), self._acts[variant][user]
                per_user.add(number, tuple(acts))
                per_list.counts[number] += lists
                per_list.sums[number] += acts
        return per_list, per_user

    def _named(self, per_list: Sums, per_user: Sums) -> dict[str, Estimate]:
        return {
            f"{kind} {way}": estimate
            for way, sums in (("per list", per_list), ("per user", per_user))
            for kind, estimate in zip(self._kinds, sums.estimates(0), strict=True)
        }


def sample_ratio_mismatch(users: Mapping[str, int], shares: Mapping[str, float]) -> str | None:
    """The variant whose number of users its share does not explain, if there is one (a sample ratio mismatch).

    Fabijan et al., KDD 2019: a readout of such an experiment is not to be trusted.
    """
    total = sum(users.values())
    for name, share in sorted(shares.items()):
        spread = math.sqrt(total * share * (1 - share))
        if spread and math.erfc(abs(users.get(name, 0) - total * share) / spread / math.sqrt(2)) < CHANCE:
            return name
    return None
