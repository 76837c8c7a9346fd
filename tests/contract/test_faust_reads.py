"""What the worker relies on of aiokafka's reads: which partitions a read takes across a rebalance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.fetcher import Fetcher, FetchResult
from aiokafka.consumer.subscription_state import SubscriptionState
from faust.types import TP
from freshet.adapters.faust import RequestedPartitions, RunConsumer

EVENTS, CHANGELOG = TP("events", 0), TP("changelog", 0)


class Fetched:
    """Three records of a partition, from its start."""

    def __init__(self) -> None:
        self.next_fetch_offset = 0

    def __iter__(self) -> Iterator[int]:
        for offset in range(3):
            self.next_fetch_offset = offset + 1
            yield offset


class ByHand(Fetcher):
    """aiokafka's fetcher, which gets its records from the test."""

    def __init__(self) -> None:
        subscriptions = SubscriptionState()
        subscriptions.assign_from_user({EVENTS, CHANGELOG})
        self.assignment = subscriptions.subscription.assignment
        for tp in (EVENTS, CHANGELOG):
            self.assignment.state_value(tp).reset_to(0)
        client = SimpleNamespace(_loop=asyncio.get_running_loop(), _metadata_max_age_ms=1000)
        super().__init__(client, subscriptions)

    async def _fetch_requests_routine(self) -> None:
        """Ask no broker."""

    def arrive(self, *tps: TP) -> None:
        """Records of these partitions arrive, and the reads that wait are woken."""
        for tp in tps:
            self._records[tp] = FetchResult(tp, assignment=self.assignment, partition_records=Fetched(), backoff=0)
        for waiter in self._fetch_waiters:
            self._notify(waiter)

    def position(self, tp: TP) -> int:
        """Where the next fetch goes on."""
        position: int = self.assignment.state_value(tp).position
        return position


async def read_across_a_rebalance(asked: Any, rebalance: Callable[[], None]) -> tuple[dict[TP, list[int]], ByHand]:
    """What a read brings that began before a rebalance, when records arrive behind it."""
    fetcher = ByHand()
    reading = asyncio.create_task(fetcher.fetched_records(asked, timeout=0.2))
    await asyncio.sleep(0)
    rebalance()
    fetcher.arrive(EVENTS, CHANGELOG)
    return await reading, fetcher


def consumer() -> Any:
    """What a read looks at of the worker's consumer."""
    app = SimpleNamespace(consumer_generation_id=1)
    return SimpleNamespace(flow_active=True, app=app, _active_partitions={EVENTS, CHANGELOG})


@pytest.mark.parametrize(("flow_active", "generation"), [(False, 1), (True, 2)], ids=["flow stopped", "new generation"])
def test_a_read_takes_nothing_behind_a_rebalance(flow_active: bool, generation: int) -> None:
    """Records that arrive behind a rebalance wait for a read of the new generation."""
    worker = consumer()

    def rebalance() -> None:
        worker.flow_active, worker.app.consumer_generation_id = flow_active, generation

    async def reads() -> None:
        records, fetcher = await read_across_a_rebalance(RequestedPartitions(worker, {EVENTS}), rebalance)
        assert records == {}
        assert fetcher.position(EVENTS) == fetcher.position(CHANGELOG) == 0
        worker.flow_active = True
        after = await fetcher.fetched_records(RequestedPartitions(worker, {CHANGELOG}), timeout=0.2)
        assert after == {CHANGELOG: [0, 1, 2]}
        assert fetcher.position(EVENTS) == 0

    asyncio.run(reads())


def test_a_read_takes_what_it_was_asked_for() -> None:
    """Without a rebalance a read takes the records of its own partitions."""

    async def reads() -> None:
        records, fetcher = await read_across_a_rebalance(RequestedPartitions(consumer(), {EVENTS}), lambda: None)
        assert records == {EVENTS: [0, 1, 2]}
        assert fetcher.position(CHANGELOG) == 0

    asyncio.run(reads())


def test_a_read_takes_nothing_of_what_has_been_paused() -> None:
    """A read takes no record of a paused partition."""
    worker = consumer()

    async def reads() -> None:
        paused = partial(worker._active_partitions.discard, CHANGELOG)
        records, fetcher = await read_across_a_rebalance(RequestedPartitions(worker, {EVENTS, CHANGELOG}), paused)
        assert records == {EVENTS: [0, 1, 2]}
        assert fetcher.position(CHANGELOG) == 0

    asyncio.run(reads())


def test_the_worker_reads_that_way() -> None:
    """The worker's consumer reads no events once its flow is stopped."""
    asked: list[Any] = []

    async def getmany(partitions: Any, _: float) -> dict[TP, list[Any]]:
        asked.append(partitions)
        return {}

    worker = RunConsumer.__new__(RunConsumer)
    inbox = SimpleNamespace(has_room=lambda _: True, expect_nothing=lambda: None)
    conf = SimpleNamespace(events_topic=EVENTS.topic)
    worker.app = SimpleNamespace(consumer_generation_id=1, conf=conf, inbox=inbox)
    worker._thread = SimpleNamespace(getmany=getmany)
    worker._buffered_partitions, worker._active_partitions = set(), {EVENTS, CHANGELOG}
    worker._sought_in = 1
    worker.can_resume_flow, worker.suspend_flow = asyncio.Event(), asyncio.Event()
    asyncio.run(worker._getmany(worker._active_partitions, 0.1))
    assert EVENTS in asked[0]
    worker.stop_flow()
    assert EVENTS not in asked[0]
    worker.resume_flow()
    asyncio.run(worker._getmany(worker._active_partitions, 0.1))
    assert EVENTS not in asked[1]
    assert CHANGELOG in asked[1]


def test_fausts_own_set_takes_what_a_recovery_waits_for() -> None:
    """Failing control: a rebalance empties Faust's own set, and an empty set reads all partitions."""
    active = {EVENTS}

    async def reads() -> None:
        records, fetcher = await read_across_a_rebalance(active, active.clear)
        assert records == {EVENTS: [0, 1, 2], CHANGELOG: [0, 1, 2]}
        assert fetcher.position(CHANGELOG) == 3

    asyncio.run(reads())
