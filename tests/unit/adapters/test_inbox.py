"""The inbox of a worker takes partitions in turn, and keeps room for each."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture
def inbox(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An inbox whose batches have 100 records."""
    monkeypatch.setattr(sys, "argv", ["freshet"])  # importing faust reads the command line
    from freshet.adapters.faust import Inbox  # noqa: PLC0415

    return Inbox(100)


def run(partition: int, records: int, number: int = 0) -> Any:
    """A Faust event with a run."""
    message = SimpleNamespace(partition=partition, number=number)
    return SimpleNamespace(message=message, value=SimpleNamespace(records=[None] * records))


def sizes(taken: list[Any]) -> list[tuple[int, int]]:
    """Partition and records of each run."""
    return [(event.message.partition, len(event.value.records)) for event in taken]


async def test_a_backlog_in_one_partition_holds_up_no_other(inbox: Any) -> None:
    """The next batch has a run of each partition that waits, and then more of the backlog, in its order."""
    for number in range(10):
        await inbox.put(run(0, 30, number))
    await inbox.put(run(1, 3))
    await inbox.put(run(2, 3))
    first = await inbox.take(1)
    assert sizes(first) == [(0, 30), (1, 3), (2, 3), (0, 30), (0, 30)]
    await inbox.put(run(1, 3))
    second = await inbox.take(1)
    assert sizes(second)[:2] == [(0, 30), (1, 3)]
    numbers = [event.message.number for event in first + second if event.message.partition == 0]
    assert numbers == list(range(len(numbers)))


async def test_a_run_that_is_larger_than_a_batch_is_taken_alone(inbox: Any) -> None:
    """It is never split, and never left."""
    await inbox.put(run(0, 300))
    await inbox.put(run(1, 1))
    assert sizes(await inbox.take(1)) == [(0, 300)]
    assert sizes(await inbox.take(1)) == [(1, 1)]


async def test_each_partition_has_room_of_its_own(inbox: Any) -> None:
    """What Faust was handed counts from then on, until it is taken, or thrown away in a rebalance."""
    inbox.expect(0, 100)
    assert (inbox.has_room(0), inbox.has_room(1)) == (False, True)
    await inbox.put(run(0, 100))
    assert not inbox.has_room(0)
    await inbox.take(1)
    assert inbox.has_room(0)
    inbox.expect(0, 100)
    inbox.expect_nothing()
    assert inbox.has_room(0)


async def test_few_records_are_taken_after_a_while(inbox: Any) -> None:
    """A taker that wants more than there is waits for its patience, and takes what is there."""
    taking = asyncio.create_task(inbox.take(50, 0.05))
    await inbox.put(run(0, 1))
    assert sizes(await asyncio.wait_for(taking, 5)) == [(0, 1)]
