"""Users' states during a replay: in memory, or in a store with a bounded cache before it."""

from __future__ import annotations

from typing import Protocol

from workers.core.state import UserState, decode_state, empty_state, encode_state
from workers.ports import StateStore

CACHED_USERS = 20_000


class States(Protocol):
    """Where a replay finds the state that it folds an event into."""

    def get(self, user_id: str, partition: int) -> UserState:
        """The user's state, empty for a new user; folding into it is keeping it."""

    async def flush(self) -> None:
        """Let go of what need not stay in memory; call it between events only."""


class MemoryStates:
    """All states in memory."""

    def __init__(self) -> None:
        self._states: dict[str, UserState] = {}

    def get(self, user_id: str, partition: int) -> UserState:
        """The user's state."""
        state = self._states.get(user_id)
        if state is None:
            state = self._states[user_id] = empty_state(partition)
        return state

    async def flush(self) -> None:
        """Nothing is let go."""

    def dump(self) -> dict[str, bytes]:
        """All states, encoded."""
        return {user_id: encode_state(state) for user_id, state in self._states.items()}

    def restore(self, dumped: dict[str, bytes]) -> None:
        """Take over what `dump` gave."""
        self._states = {user_id: decode_state(raw) for user_id, raw in dumped.items()}


class StoredStates:
    """States in a `StateStore`; the users of late are kept decoded."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._cache: dict[str, UserState] = {}

    def get(self, user_id: str, partition: int) -> UserState:
        """The user's state."""
        state = self._cache.get(user_id)
        if state is None:
            [raw] = self._store.read([user_id])
            state = self._cache[user_id] = empty_state(partition) if raw is None else decode_state(raw)
        return state

    async def flush(self) -> None:
        """Write all and forget all, once there are many."""
        if len(self._cache) >= CACHED_USERS:
            await self.write()

    async def write(self) -> None:
        """Write all and forget all."""
        await self._store.write({user_id: encode_state(state) for user_id, state in self._cache.items()})
        self._cache.clear()
