"""Everything in memory: for unit tests and for replays that keep nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freshet.core.features import EMBEDDING_FEATURES, behaviour_features
from freshet.ports import FeatureRow, Message


class MemoryStateStore:
    """A `StateStore` over a dict."""

    def __init__(self) -> None:
        self.states: dict[str, bytes] = {}

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The stored states in the given order, None where there is none."""
        return [self.states.get(user_id) for user_id in user_ids]

    async def write(self, states: Mapping[str, bytes]) -> None:
        """Store states by user id."""
        self.states.update(states)


class MemoryFeatureStore:
    """A `FeatureStore` over dicts."""

    def __init__(self, behaviours: Sequence[str]) -> None:
        self._names = [feature.name for feature in behaviour_features(behaviours)]
        self._embedding_names = [feature.name for feature in EMBEDDING_FEATURES]
        self._behaviour: dict[str, FeatureRow] = {}
        self._embedding: dict[str, FeatureRow] = {}

    async def write(self, behaviour: Sequence[FeatureRow], embedding: Sequence[FeatureRow] = ()) -> None:
        """Write rows of both views."""
        self._behaviour.update((row.user_id, row) for row in behaviour)
        self._embedding.update((row.user_id, row) for row in embedding)

    async def delete(self, user_ids: Sequence[str]) -> None:
        """Remove every row of these users."""
        for user_id in user_ids:
            self._behaviour.pop(user_id, None)
            self._embedding.pop(user_id, None)

    async def read(self, user_id: str) -> dict[str, Any]:
        """All features of one user; None for those absent."""
        features: dict[str, Any] = dict.fromkeys([*self._names, *self._embedding_names])
        for names, rows in ((self._names, self._behaviour), (self._embedding_names, self._embedding)):
            if user_id in rows:
                features.update(zip(names, rows[user_id].values, strict=True))
        return features


class MemoryPublisher:
    """A `Publisher` that keeps what it is given, in order."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def publish(self, messages: Sequence[Message]) -> None:
        """Keep the messages."""
        self.messages.extend(messages)
