"""Lists: from encoded users to ranked items, under the policy each user is assigned.

Live worker, replay and verification make their lists here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freshet.core import fallback
from freshet.core.assignment import variant
from freshet.core.item_space import Prior
from freshet.core.ranking import RankConfig, rank, rank_popular
from freshet.core.reasons import DECAY
from freshet.core.recommendation import Item, SideInputs
from freshet.core.state import UserState
from freshet.ports import Encoded, Unavailable
from freshet.serving.servable_version import ServableVersion
from freshet.settings import Settings

ONLY_VARIANT = "live"


@dataclass(frozen=True)
class MadeList:
    """A list, the variant that it was made under, and the side inputs that it was made with.

    `margin` and `needed_prior` are those of `core.ranking.RankedList`.
    """

    variant: str
    items: list[Item]
    side_inputs: SideInputs
    margin: float = field(default=0.0, compare=False)
    needed_prior: float = field(default=-math.inf, compare=False)


def fallback_encoded(live: ServableVersion, history: NDArray[np.int32]) -> Encoded:
    """What stands in for the version's encoder where that has no answer; slow, as `core.stand_in` says."""
    return Encoded(*fallback.stand_in(live.space, history, live.bundle.manifest.scale))


class ListMaker:
    """Makes lists as the settings say: one policy for all, or the variants of an experiment.

    Their items have `reasons` unless nobody reads them.
    """

    def __init__(self, settings: Settings, *, reasons: bool = True) -> None:
        self._settings = settings
        self._reasons = reasons
        self._shares = {name: arm.share for name, arm in settings.variants.items()}
        self._by_variant = {name: settings.of_variant(name) for name in settings.variants or (ONLY_VARIANT,)}

    def variant(self, user_id: str) -> str:
        """The variant that the user is assigned for good."""
        return variant(user_id, self._settings.experiment, self._shares) if self._shares else ONLY_VARIANT

    def make(
        self,
        live: ServableVersion,
        users: Sequence[str],
        states: Sequence[UserState],
        history: NDArray[np.int32],
        encoded: Encoded,
        priors: Sequence[Prior] | None = None,
        *,
        degraded: bool = False,
    ) -> list[MadeList]:
        """Lists for B users, in their order; shapes as in `core.ranking.rank`.

        `degraded` says that `encoded` is not the encoder's but `fallback_encoded`.
        """
        by_variant: dict[str, list[int]] = {}
        for row, user in enumerate(users):
            by_variant.setdefault(self.variant(user), []).append(row)
        made: list[MadeList | None] = [None] * len(users)
        for name, rows in by_variant.items():
            is_split = len(rows) < len(users)
            part = encoded.take(rows) if is_split else encoded
            lists = rank(
                live.space,
                self._config(live, name, degraded),
                [states[row] for row in rows] if is_split else states,
                history[rows] if is_split else history,
                part.topk_index,
                part.topk_score,
                part.embedding,
                [priors[row] for row in rows] if is_split and priors is not None else priors,
                [f"{users[row]}\x1f{states[row].feature_ts}\x1f{live.version}" for row in rows],
            )
            for row, (items, margin, needed) in zip(rows, lists, strict=True):
                made[row] = MadeList(name, items, live.side_inputs, margin, needed)
        return [made_list for made_list in made if made_list is not None]

    def make_popular(
        self, live: ServableVersion, user_id: str, state: UserState | None, prior: Prior | None = None
    ) -> MadeList:
        """The most popular items that the user has not seen (`state` is None where there is no profile)."""
        size = self._settings.list_size
        items = rank_popular(live.space, state, size + 1, prior)
        scores = [self.prior_weight(live) * item.score for item in items[size - 1 : size + 1]]
        margin, needed = -math.inf, -math.inf
        if scores:
            margin, needed = scores[0] - scores[-1] if len(scores) > 1 else math.inf, scores[0]
        return MadeList(self.variant(user_id), items[:size], live.side_inputs, margin, needed)

    def prior_weight(self, live: ServableVersion) -> float:
        """The most that the log of an item's popularity is weighed with in any list of a version."""
        return max(self._config(live, name, False).prior_weight for name in self._by_variant)

    def _config(self, live: ServableVersion, name: str, degraded: bool) -> RankConfig:
        own, manifest = self._by_variant[name], live.bundle.manifest
        return RankConfig(
            own.list_size,
            own.diversity,
            manifest.prior_weight if own.prior_weight is None else own.prior_weight,
            own.exploration,
            self._reasons,
            own.value_weight,
            own.novelty_weight,
            fallback.DECAY if degraded else DECAY,
            frozenset(manifest.repeats),
            all_repeat=set(manifest.repeats) >= set(manifest.types),
        )


def fitting(encoded: Encoded, live: ServableVersion, users: int) -> Encoded:
    """An answer of the encoder that lists can be made of. Raises `Unavailable`."""
    index, score, embedding = encoded
    width = live.space.vectors.shape[1]
    fits = index.shape == score.shape and len(index) == users and embedding.shape == (users, width)
    if not fits or (index.size and not 0 <= index.min() <= index.max() < live.space.trained):
        raise Unavailable(
            f"version {live.version} answers for {users} users with shapes {index.shape}, {score.shape}, "
            f"{embedding.shape}, or with items that are none of its own"
        )
    return encoded
