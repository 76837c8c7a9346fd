"""Users' states during a replay: in memory, or in a store with a bounded cache before it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from freshet.core.state import UserState, decode_state, empty_state, encode_state
from freshet.ports import StateStore

CACHED_BYTES = 16 << 20
"""About what the decoded states of a `StoredStates` may take."""
STATE_BYTES = 1000
"""About what decoding adds to a state's size."""
EVENT_BYTES = 100
"""About what an event adds."""
NOWHERE = -1
"""The partition of a state before its first event, which brings its own."""


class States(Protocol):
    """Where a replay finds the states that it folds a batch into."""

    def of(self, users: Collection[str]) -> Mapping[str, UserState]:
        """What holds these users' states, empty for new ones; what is folded into one before a `flush` is kept."""

    async def flush(self) -> None:
        """Let go of what need not stay in memory; call it between events only."""


class MemoryStates:
    """All states in memory."""

    def __init__(self) -> None:
        self._states: dict[str, UserState] = {}

    def of(self, users: Collection[str]) -> Mapping[str, UserState]:
        """The users' states, and all others."""
        for user in users:
            if user not in self._states:
                self._states[user] = empty_state(NOWHERE)
        return self._states

    async def flush(self) -> None:
        """Nothing is let go."""

    def saved(self) -> dict[str, bytes]:
        """All states, encoded, for a checkpoint."""
        return {user_id: encode_state(state) for user_id, state in self._states.items()}

    def restore(self, saved: dict[str, bytes]) -> None:
        """Take over what `saved` gave."""
        self._states = {user_id: decode_state(raw) for user_id, raw in saved.items()}


class StoredStates:
    """States in a `StateStore`. The states of recent users are kept decoded."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._cache: dict[str, UserState] = {}
        self.size = 0
        """About how many bytes are held decoded."""

    def of(self, users: Collection[str]) -> Mapping[str, UserState]:
        """The users' states, and those of others of late."""
        cache = self._cache
        unknown = [user for user in users if user not in cache]
        for user, raw in zip(unknown, self._store.read(unknown), strict=True):
            cache[user] = empty_state(NOWHERE) if raw is None else decode_state(raw)
            self.size += STATE_BYTES + len(raw or b"")
        self.size += EVENT_BYTES * len(users)
        return cache

    async def flush(self) -> None:
        """Write all and forget all, once there are many."""
        if self.size >= CACHED_BYTES:
            await self.write()

    async def write(self) -> None:
        """Write all and forget all."""
        await self._store.write({user_id: encode_state(state) for user_id, state in self._cache.items()})
        self._cache.clear()
        self.size = 0
