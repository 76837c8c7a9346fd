"""The order of a replay: each partition in its own order, the partitions merged by event time.

A partition's records keep their order whatever their times say. Between
partitions the earlier clock goes first, a partition's clock being the newest
event time it has come to.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from workers.core.events import BadEvent, Event, decode_event
from workers.ports import Fetched


class Log(Protocol):
    """A log to read: what `adapters.logs.open_log` opens."""

    @property
    def partitions(self) -> Sequence[int]:
        """The partitions that there are."""

    def read(self, partition: int, start: int = 0) -> Iterator[Sequence[Fetched]]:
        """Runs of one partition from an offset on, in offset order."""


class Position(NamedTuple):
    """Where a partition goes on: the next offset, and its clock."""

    offset: int = 0
    clock: int = 0


class Step(NamedTuple):
    """One record, decoded; `clock` is its partition's newest event time (ms)."""

    partition: int
    record: Fetched
    event: Event | BadEvent
    clock: int


def steps(log: Log, positions: Mapping[int, Position], behaviours: Collection[str]) -> Iterator[Step]:
    """All records of the log from `positions` on, in the order of the replay."""
    streams = [
        _partition(log, partition, positions.get(partition, Position()), behaviours) for partition in log.partitions
    ]
    return streams[0] if len(streams) == 1 else _merged(streams)


def _merged(streams: Iterable[Iterator[Step]]) -> Iterator[Step]:
    return heapq.merge(*streams, key=_clock_then_partition)


def _clock_then_partition(step: Step) -> tuple[int, int]:
    return step.clock, step.partition


def _partition(log: Log, partition: int, start: Position, behaviours: Collection[str]) -> Iterator[Step]:
    clock = start.clock
    for run in log.read(partition, start.offset):
        for record in run:
            event = decode_event(record.value, record.key, behaviours, record.headers)
            if isinstance(event, Event) and event.ts > clock:
                clock = event.ts
            yield Step(partition, record, event, clock)
