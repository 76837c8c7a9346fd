"""Partitions of a log merged by event time."""

from __future__ import annotations

from freshet.core.events import Event, encode_event
from freshet.ports import Record
from freshet.replay.merge import Position, steps
from freshet.settings import Settings

from tests.simulation.memory_replays import START, ListLog


def record(offset: int, ts: int, user: str = "u") -> Record:
    """An event's record."""
    return Record(offset, ts, user.encode(), encode_event(Event(f"e{offset}-{user}", user, "view", ts, "i")))


def order(log: ListLog, positions: dict[int, Position] | None = None) -> list[tuple[int, int]]:
    """Partition and offset of each step."""
    return [(step.partition, step.record.offset) for step in steps(log, positions or {}, Settings())]


def test_partitions_are_merged_by_event_time() -> None:
    """Steps are ordered by event time, then partition, and a late or bad record keeps its place in its partition."""
    bad = Record(2, 0, None, b"{")
    log = ListLog(
        {
            0: [record(0, START), record(1, START + 40), bad, record(3, START + 10)],
            1: [record(0, START), record(1, START + 20), record(2, START + 50)],
        }
    )
    assert order(log) == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 3), (1, 2)]


def test_a_merge_goes_on_where_it_stopped() -> None:
    """From the position behind any step, the remaining steps come in the same order."""
    log = ListLog(
        {
            0: [record(0, START), record(1, START + 40), record(2, START + 10), record(3, START + 15)],
            1: [record(0, START + 5), record(1, START + 20), record(2, START + 41)],
        }
    )
    whole = order(log)
    positions: dict[int, Position] = {}
    for number, step in enumerate(steps(log, {}, Settings()), 1):
        positions[step.partition] = Position(step.record.offset + 1, step.clock)
        assert order(log, positions) == whole[number:]
