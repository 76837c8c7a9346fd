"""Faust's seams: the transport that hands on runs, and the inbox that gathers them.

Imported by `freshet.serving.app` alone: importing faust reads `sys.argv`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import faust
from aiokafka.consumer import fetcher as fetching
from faust.transport.drivers import aiokafka
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode.utils.queues import FlowControlEvent

from freshet.adapters.kafka_access import AioKafkaTokens, has_sasl, has_tls, tls_context, token_source
from freshet.adapters.wire_batches import WireBatches
from freshet.settings import Settings

FETCH_WAIT_MS = 500
"""How long a fetch waits at the broker for something new."""
GATHER_SECONDS = 0.005
"""How long records gather at the broker before the next fetch."""
BUFFERED_SECONDS = 0.01
"""How long a fetch waits for other partitions while one is held back because its queue is full."""
RUN_RECORDS = 256
"""Most events of a run: a micro-batch takes a run of each partition in turn."""

log = logging.getLogger(__name__)


class RecordBatch:
    """Consecutively fetched records of one partition, handed through Faust as one message."""

    __slots__ = ("records",)

    def __init__(self, records: Sequence[Any]) -> None:
        self.records = records


class ParsedRecords(fetching.PartitionRecords):
    """aiokafka's records of a fetch, as the parser made them.

    A copy of each with its topic, partition and sizes would cost a twelfth of a fold's time; a run knows its own.
    """

    def _consumer_record(self, _tp: TP, record: Any) -> Any:
        return record


def credentials(settings: Settings) -> Any:
    """Faust's form of the Kafka security settings; None for plain text. Raises `AccessError`."""
    context = tls_context(settings) if has_tls(settings) else None
    if (source := token_source(settings)) is not None:
        return faust.OAuthCredentials(oauth_cb=AioKafkaTokens(source), ssl_context=context)
    if has_sasl(settings):
        return faust.SASLCredentials(
            username=settings.kafka_username or "",
            password=settings.kafka_password or "",
            mechanism=settings.kafka_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


class RunConsumerThread(aiokafka.AIOKafkaConsumerThread):
    """Faust's consumer thread, with short waits at the broker and before it is asked.

    aiokafka has one fetch under way per broker: while it waits for partitions
    with nothing new, those whose records have just been taken are not asked
    for. Faust's 1.5 s is how long a busy partition then stands still. And it
    asks again at once: at some hundred events a second every fetch would bring
    one or two, and fetching would cost more than processing.
    """

    async def on_start(self) -> None:
        """Start, with a pause before each fetch."""
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher
        fetch = fetcher._proc_fetch_request

        async def fetch_what_gathers(*arguments: Any) -> Any:
            try:
                await asyncio.sleep(GATHER_SECONDS)
            except asyncio.CancelledError:
                return False  # as the fetch itself when it is no longer of interest
            return await fetch(*arguments)

        fetcher._proc_fetch_request = fetch_what_gathers

    def _create_worker_consumer(self, transport: Any) -> Any:
        fetching.PartitionRecords = ParsedRecords
        fetching.MemoryRecords = WireBatches
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._client_rack = transport.app.conf.kafka_rack
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer


class RequestedPartitions:
    """The partitions one read is asked for, without those paused since; none in a stopped flow or a new generation.

    A read waits for records on its thread, across a rebalance too, and what it
    takes then is thrown away: for a changelog that is the end, for it was sought
    to its start before, and the recovery would wait for ever for what was taken.
    (Faust hands over its own set, which the rebalance empties: of an empty one
    aiokafka takes all partitions.)
    """

    def __init__(self, consumer: RunConsumer, partitions: set[TP]) -> None:
        self._consumer = consumer
        self._partitions = frozenset(partitions)
        self._generation = consumer.app.consumer_generation_id

    def __contains__(self, tp: object) -> bool:
        consumer = self._consumer
        current = consumer.flow_active and consumer.app.consumer_generation_id == self._generation
        return current and tp in self._partitions and tp in consumer._active_partitions


class RunConsumer(aiokafka.Consumer):
    """Faust's consumer, with fetched records coalesced into runs: those of the events topic and of the changelog.

    A run carries the offset of its last record, and has at most `RUN_RECORDS` events. Runs of a partition are
    acknowledged in offset order, by one task, so the newest acknowledged offset
    is the one to commit; Faust's bookkeeping of gaps, which would hold every
    offset within a run, is not needed. A recovery applies a run at a time.

    A recovery lets the events topic be read before it seeks to the committed
    offsets. What is read before that seek comes again after it, but not always
    whole: a read may be given up, and a later event of a user, folded first,
    would make the earlier one look like a redelivery. So events are read only
    after the seek.
    """

    _sought_in = -1
    """The generation in which the partitions were last sought."""

    async def perform_seek(self) -> None:
        """Seek to the committed offsets; from here on events are read."""
        recovered, generation = self.flow_active, self.app.consumer_generation_id
        await super().perform_seek()
        if recovered:  # else the recovery's own seek is still to come
            self._sought_in = generation

    def stop_flow(self) -> None:
        """Let nothing more be read, and events only after the next seek, in a generation that stays the same too."""
        super().stop_flow()
        self._sought_in = -1
        self.app.inbox.expect_nothing()

    def _new_consumer_thread(self) -> RunConsumerThread:
        return RunConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        wanted = {tp for tp in active_partitions or () if not self._has_events(tp) or self._may_read(tp)}
        if self._buffered_partitions or wanted != active_partitions:
            timeout = BUFFERED_SECONDS  # a full partition that has room again joins the next call
        if not wanted:  # no partition would mean all of them
            await self.sleep(BUFFERED_SECONDS)
            return {}
        records = await super()._getmany(RequestedPartitions(self, wanted), timeout)
        return {tp: self._runs(tp, run) for tp, run in records.items() if run}

    def _may_read(self, tp: TP) -> bool:
        """Whether events of a partition may be read: after the seek, and while the inbox has room for them."""
        return self._sought_in == self.app.consumer_generation_id and self.app.inbox.has_room(tp.partition)

    def _runs(self, tp: TP, records: Sequence[Any]) -> list[RecordBatch]:
        if not self._has_events(tp):
            return [RecordBatch(records)]
        self.app.inbox.expect(tp.partition, len(records))
        return [RecordBatch(records[at : at + RUN_RECORDS]) for at in range(0, len(records), RUN_RECORDS)]

    def _to_message(self, tp: TP, record: RecordBatch) -> ConsumerMessage:
        last = record.records[-1]
        return ConsumerMessage(
            *(tp.topic, tp.partition, last.offset, last.timestamp / 1000, last.timestamp_type),
            headers=[],
            key=None,
            value=record,
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Nothing: see above."""

    def _new_offset(self, tp: TP) -> int | None:
        acked = self._acked[tp]
        if not acked:
            return None
        newest = max(acked)
        acked.clear()
        self._acked_index[tp].clear()
        return newest + 1

    def _has_events(self, tp: TP) -> bool:
        return tp.topic == self.app.conf.events_topic


class RunTransport(aiokafka.Transport):
    """Faust's transport with the run consumer."""

    Consumer = RunConsumer


class FlowControl(FlowControlEvent):
    """Faust's flow control, which empties every stream's queue on resume, and here only where the flow was suspended.

    After recovery Faust seeks to the committed offsets and then resumes a flow
    that is already active. A run fetched between the two would be emptied out
    of its queue, never processed, and passed over by the next commit.
    """

    def resume(self) -> None:
        """Let records into the streams' queues."""
        if not self.is_active():
            super().resume()


class RunSchema(faust.Schema):
    """Lets a run through undecoded; decoding is the pipeline's, where bad bytes are a value."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> None:
        """A run has no key of its own."""

    def loads_value(self, app: Any, message: Any, **_: Any) -> RecordBatch:
        """The run as fetched."""
        return message.value


class Inbox:
    """Faust events of all partitions, waiting to be processed as one micro-batch.

    What arrives while a batch is under way is taken together by the next one,
    so batches grow with the load and a slow step costs no more the second time.

    Partitions are taken in turn, and each has room for `limit` records: a backlog
    in one partition holds up no other.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[int, deque[Any]] = {}
        self._sizes: Counter[int] = Counter()
        self._expected: Counter[int] = Counter()
        self._changed = asyncio.Condition()

    def has_room(self, partition: int) -> bool:
        """Whether more of a partition may be read."""
        return self._sizes[partition] + self._expected[partition] < self._limit

    def expect(self, partition: int, records: int) -> None:
        """Keep room for records that Faust has been handed."""
        self._expected[partition] += records

    def expect_nothing(self) -> None:
        """Faust has thrown away what it was handed."""
        self._expected.clear()

    async def put(self, event: Any) -> None:
        """Add a run."""
        partition, records = event.message.partition, len(event.value.records)
        async with self._changed:
            self._waiting.setdefault(partition, deque()).append(event)
            self._sizes[partition] += records
            self._expected[partition] = max(0, self._expected[partition] - records)
            self._changed.notify_all()

    async def take(self, least: int, patience: float = 0.0) -> list[Any]:
        """Wait for `least` records, or `patience` s for fewer, and take at most `limit`: runs of partitions in turn.

        The runs of a partition stay in order.
        """
        async with self._changed:
            while True:
                await self._changed.wait_for(lambda: self._sizes.total() >= 1)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait_for(lambda: self._sizes.total() >= least), patience)
                if taken := self._take_in_turn():
                    return taken

    def _take_in_turn(self) -> list[Any]:
        taken: list[Any] = []
        size = 0
        while self._waiting:
            for partition, events in list(self._waiting.items()):
                records = len(events[0].value.records)
                if taken and size + records > self._limit:
                    return taken
                taken.append(events.popleft())
                size += records
                self._sizes[partition] -= records
                del self._waiting[partition]
                if events:
                    self._waiting[partition] = events  # behind the others, now and in the next batch
        return taken
