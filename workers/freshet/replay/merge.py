"""The order of a replay: each partition in its own order, and the partitions merged by event time.

The records of a partition keep their order, whatever their times say. The clock of a partition is the newest event
time that the partition has come to. Between partitions the record with the earlier clock goes first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import msgspec

from freshet.core.events import BadEvent, Event
from freshet.logs.source import decoded
from freshet.ports import Fetched, Log
from freshet.settings import Settings


class Position(NamedTuple):
    """Where a partition goes on: the next offset, and its clock."""

    offset: int = 0
    clock: int = 0


class DecodedRecord(msgspec.Struct, frozen=True, gc=False):
    """One record, decoded; `clock` is its partition's newest event time (ms)."""

    partition: int
    record: Fetched
    event: Event | BadEvent
    clock: int


def steps(log: Log, positions: Mapping[int, Position], settings: Settings) -> Iterator[DecodedRecord]:
    """All records of the log from `positions` on, in the order of the replay."""
    streams = [
        _partition(log, partition, positions.get(partition, Position()), settings) for partition in log.partitions
    ]
    return chain.from_iterable(streams[0] if len(streams) == 1 else _merged(streams))


def _merged(streams: Sequence[Iterator[list[DecodedRecord]]]) -> Iterator[list[DecodedRecord]]:
    """Merge runs of several partitions, given in their order, into runs in the order of the replay.

    Everything before the end of the shortest run at hand can be merged, because no later run can come before it.
    """
    waiting: dict[Iterator[list[DecodedRecord]], list[DecodedRecord]] = {stream: [] for stream in streams}
    while True:
        for stream, run in waiting.items():
            waiting[stream] = run or next(stream, [])
        waiting = {stream: run for stream, run in waiting.items() if run}
        if not waiting:
            return
        horizon = min(_clock_then_partition(run[-1]) for run in waiting.values())
        merged: list[DecodedRecord] = []
        for stream, run in waiting.items():
            cut = bisect_right(run, horizon, key=_clock_then_partition)
            merged += run[:cut]
            waiting[stream] = run[cut:]
        merged.sort(key=_clock)  # equal clocks stay in the order of the partitions
        yield merged


def _clock_then_partition(step: DecodedRecord) -> tuple[int, int]:
    return step.clock, step.partition


_clock = attrgetter("clock")


def _partition(log: Log, partition: int, start: Position, settings: Settings) -> Iterator[list[DecodedRecord]]:
    clock = start.clock
    for run in decoded(log, partition, settings, start.offset):
        steps_of_run = []
        for record, event in run:
            if isinstance(event, Event) and event.ts > clock:
                clock = event.ts
            steps_of_run.append(DecodedRecord(partition, record, event, clock))
        yield steps_of_run
