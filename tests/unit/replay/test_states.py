"""The states of a replay: a bounded cache before a store."""

from __future__ import annotations

import pytest
from freshet.replay import states as replay_states
from freshet.replay.clock import Clock
from freshet.replay.engine import Replay
from freshet.replay.merge import steps
from freshet.replay.states import MemoryStates, StoredStates
from freshet.settings import Settings

from tests.memory_ports import MemoryStateStore
from tests.simulation.memory_replays import SETTINGS, Kept, records, stream


async def test_ten_times_the_users_hold_no_more_states_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the users keep no more decoded states, and the store ends with every state."""
    monkeypatch.setattr(replay_states, "CACHED_BYTES", 100_000)
    most = []
    for users in (400, 4000):
        log = list(steps(records(stream(count=2 * users, users=users)), {}, Settings()))
        store, whole = MemoryStateStore(), MemoryStates()
        stored = StoredStates(store)
        held = []
        for states in (stored, whole):
            replay = Replay(SETTINGS, [], None, states, Clock(86_400.0), Kept())  # type: ignore[arg-type]
            for start in range(0, len(log), 64):
                await replay.feed(log[start : start + 64])
                held.append(len(stored.of(())))
        await stored.write()
        assert store.states == whole.saved()
        most.append(max(held))
    assert most[1] <= 1.1 * most[0] < 200
