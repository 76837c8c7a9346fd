"""The state store, feature store, publisher and rollout records in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freshet.core.features import EMBEDDING_FEATURES, LIST_FEATURES, behaviour_features
from freshet.core.rollout import Rollout, Versions, encode_record
from freshet.ports import FeatureRow, Message


class MemoryStateStore:
    """A `StateStore` over a dict."""

    def __init__(self) -> None:
        self.states: dict[str, bytes] = {}

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The stored states in the given order, None where there is none."""
        return [self.states.get(user_id) for user_id in user_ids]

    def users(self) -> list[str]:
        """Every user with a state."""
        return list(self.states)

    async def write(self, states: Mapping[str, bytes]) -> None:
        """Store states by user id."""
        self.states.update(states)


class MemoryFeatureStore:
    """A `FeatureStore` over dicts."""

    def __init__(self, behaviours: Sequence[str]) -> None:
        views = (behaviour_features(behaviours), EMBEDDING_FEATURES, LIST_FEATURES)
        self._names = [[feature.name for feature in view] for view in views]
        self._rows: list[dict[str, FeatureRow]] = [{} for _ in views]
        self.stamps: dict[str, int] = {}

    async def write(
        self, behaviour: Sequence[FeatureRow], embedding: Sequence[FeatureRow] = (), lists: Sequence[FeatureRow] = ()
    ) -> None:
        """Write rows of the views."""
        for stored, rows in zip(self._rows, (behaviour, embedding, lists), strict=True):
            stored.update((row.user_id, row) for row in rows)

    async def delete(self, user_ids: Sequence[str]) -> None:
        """Remove every row of these users."""
        for user_id in user_ids:
            for stored in self._rows:
                stored.pop(user_id, None)

    async def read(self, user_id: str) -> dict[str, Any]:
        """All features of one user; None for those absent."""
        features: dict[str, Any] = {name: None for names in self._names for name in names}
        for names, stored in zip(self._names, self._rows, strict=True):
            if user_id in stored:
                features.update(zip(names, stored[user_id].values, strict=True))
        return features

    async def stamp(self, name: str) -> int | None:
        """The number kept under a name."""
        return self.stamps.get(name)

    async def set_stamp(self, name: str, number: int) -> None:
        """Keep a number under a name."""
        self.stamps[name] = number


class MemoryPublisher:
    """A `Publisher` that keeps what it is given, in order."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def publish(self, messages: Sequence[Message]) -> None:
        """Keep the messages."""
        self.messages.extend(messages)


class MemoryRecords:
    """`Records` without a broker."""

    def __init__(self, *steps: Rollout) -> None:
        self.steps = list(steps)

    def read(self) -> Versions:
        """Fold what was written."""
        found = Versions()
        for step in self.steps:
            found.apply(encode_record(step), step.key)
        return found

    def write(self, step: Rollout) -> None:
        """Keep it."""
        self.steps.append(step)

    def wait(self) -> list[str]:
        """There are no workers."""
        return []
