"""Faust's seams: the transport that hands on runs, and the table that holds user state.

Imported by `freshet.serving.app` alone: importing faust reads `sys.argv`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import faust
from aiokafka.consumer import fetcher as fetching
from faust.stores.rocksdb import Store
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery, ServiceStopped
from faust.tables.table import Table
from faust.transport.drivers import aiokafka
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode import Service
from mode.utils.queues import FlowControlEvent
from rocksdict import WriteBatch

from freshet.adapters.kafka import KafkaPublisher
from freshet.adapters.wire_batches import WireBatches
from freshet.core.state import decode_state
from freshet.errors import FreshetError
from freshet.ports import Message
from freshet.process.watchdog import fail_fast

ROCKSDB_OPTIONS: Mapping[str, Any] = {
    "driver": "rocksdict",
    "block_cache_size": 16 * 1024 * 1024,
    "write_buffer_size": 8 * 1024 * 1024,
    "max_write_buffer_number": 2,
    "max_open_files": 256,
}
"""Per partition; Faust's defaults are 2 GiB of cache and 3 × 64 MiB of memtables."""

FETCH_WAIT_MS = 500
"""How long a fetch waits at the broker for something new."""
GATHER_SECONDS = 0.005
"""How long records gather at the broker before the next fetch."""
BUFFERED_SECONDS = 0.01
"""How long a fetch waits for other partitions while one is held back because its queue is full."""
PATIENCE_SECONDS = 120
"""A recovery that gets nothing of what it waits for in so long ends the worker."""

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

    A run carries the offset of its last record. Runs of a partition are
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

    def _new_consumer_thread(self) -> RunConsumerThread:
        return RunConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        if self._buffered_partitions:
            timeout = BUFFERED_SECONDS  # a full partition that has room again joins the next call
        wanted = active_partitions or set()
        if self._sought_in != self.app.consumer_generation_id:
            wanted = {tp for tp in wanted if not self._has_events(tp)}
        if not wanted:  # no partition would mean all of them
            await self.sleep(BUFFERED_SECONDS)
            return {}
        records = await super()._getmany(RequestedPartitions(self, wanted), timeout)
        return {tp: [RecordBatch(run)] for tp, run in records.items() if run}

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
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._events: deque[Any] = deque()
        self._size = 0
        self._changed = asyncio.Condition()

    async def put(self, event: Any) -> None:
        """Add a run; waits while `limit` records are waiting."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._size < self._limit)
            self._events.append(event)
            self._size += len(event.value.records)
            self._changed.notify_all()

    async def take(self, least: int) -> list[Any]:
        """Wait for `least` records and take them in order: at most `limit` unless a single run has more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._size >= least)
            taken: list[Any] = []
            size = 0
            while self._events:
                size += len(self._events[0].value.records)
                if taken and size > self._limit:
                    break
                taken.append(self._events.popleft())
            self._size = sum(len(event.value.records) for event in self._events)
            self._changed.notify_all()
            return taken


class RecoveryError(FreshetError):
    """States cannot be recovered from the changelog; the message says why."""


class StateRecovery(Recovery):
    """Faust's recovery, which ends the worker where it does not go on.

    Faust takes a step that is not done in time for its own stop, and ends the
    recovery without a word; and for records of the changelog it waits without end.
    The worker would hold its partitions and read nothing.
    """

    @Service.task
    async def _expect_records(self) -> None:
        """See to it that the changelog comes in."""
        left = quiet = 0
        async for _ in self.itertimer(1.0):
            reading = self.in_recovery and self.app.consumer.flow_active
            before, left = left, self.active_remaining_total() if reading else 0
            quiet = quiet + 1 if left and left == before else 0
            if quiet >= PATIENCE_SECONDS:
                fail_fast(RecoveryError(f"{left} records of the changelog did not come in {quiet} s"))

    async def _wait(self, coro: Any, timeout: float | None = None) -> None:
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if self.should_stop:
                raise
            fail_fast(RecoveryError(f"a step of the recovery of states took longer than {timeout} s"))


class StateTables(TableManager):
    """Faust's tables with that recovery."""

    @property
    def recovery(self) -> StateRecovery:
        """The recovery of all tables."""
        if self._recovery is None:
            self._recovery = StateRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class RocksDBStore(Store):
    """Faust's RocksDB store, mended in three places.

    A partition folder that cannot be opened is deleted and rebuilt from the
    changelog; a changelog record, of which a recovery gets runs, never replaces a
    newer state, for a zombie worker may have written an older one behind it; and
    one that cannot be taken ends the worker, where Faust logs it and waits for ever.
    """

    def _open_for_partition(self, partition: int) -> Any:
        try:
            return super()._open_for_partition(partition)
        except Exception as error:
            if "lock" in str(error).lower():
                raise
            path = self.partition_path(partition)
            log.warning("state files unreadable, rebuilding from the changelog", extra={"why": str(error)[:200]})
            shutil.rmtree(path, ignore_errors=True)
            return super()._open_for_partition(partition)

    def apply_changelog_batch(self, batch: Any, to_key: Any, to_value: Any) -> None:
        """Write runs of changelog records during recovery, newest source offset winning, each run in one batch."""
        for event in batch:
            message = event.message
            try:
                database = self._db_for_partition(message.partition)
                _write(database, _newest(database, message.value.records), self.offset_key, message.offset)
            except Exception as error:
                where = f"topic {message.topic}, partition {message.partition}, up to offset {message.offset}"
                fail_fast(RecoveryError(f"states cannot be taken from the changelog ({where}): {error!r}"))


def _newest(database: Any, records: Sequence[Any]) -> dict[bytes, bytes]:
    """The newest value of each key among changelog records, where it is no older than the stored one."""
    keys = list({record.key for record in records})
    reached = dict(zip(keys, map(_source_offset, database.get(keys)), strict=True))
    newest: dict[bytes, bytes] = {}
    for record in records:
        offset = _source_offset(record.value)
        if record.value is not None and offset >= reached[record.key]:
            reached[record.key] = offset
            newest[record.key] = record.value
    return newest


def _source_offset(value: bytes | None) -> int:
    return decode_state(value).offset if value else -1


def _write(database: Any, values: Mapping[bytes, bytes], offset_key: bytes, offset: int) -> None:
    """Write values and the changelog offset they are good for, in one atomic batch."""
    batch = WriteBatch(raw_mode=True)
    for key, value in values.items():
        batch.put(key, value)
    batch.put(offset_key, str(offset).encode())
    database.write(batch)


class StateTable(Table):
    """A Faust table read and written a run at a time.

    Faust recovers it, assigns its partitions and creates its changelog. Its
    per-key path costs 60 µs a user and only logs a failed changelog send, so
    runs are written here: first the changelog, awaited through librdkafka, then
    RocksDB, in one atomic batch with the changelog offset it is good for. The
    local files thus always hold the changelog up to that offset: where another
    worker has written in between, it stays, and the next recovery reads on from it.
    """

    def __init__(self, *args: Any, publisher: KafkaPublisher | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.publisher = publisher

    def _new_store(self) -> RocksDBStore:
        return RocksDBStore(
            "rocksdb://",
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            key_serializer=self.key_serializer,
            value_type=self.value_type,
            value_serializer=self.value_serializer,
            options=dict(ROCKSDB_OPTIONS),
        )

    def read(self, partition: int, keys: list[bytes]) -> list[bytes | None]:
        """The values of a partition's keys, None where there is none."""
        return self.data._db_for_partition(partition).get(keys)

    async def write(self, partition: int, values: Mapping[bytes, bytes]) -> None:
        """Write to the changelog, then to RocksDB. Raises `DeliveryError`."""
        assert self.publisher is not None
        topic = self.changelog_topic_name
        messages = [Message(topic, key, value) for key, value in values.items()]
        highest = await self.publisher.publish_to(partition, messages)
        database, offset_key = self.data._db_for_partition(partition), self.data.offset_key
        reached = int(database.get(offset_key) or -1)
        follows = highest - len(messages) == reached
        _write(database, values, offset_key, highest if follows else reached)


class PartitionState:
    """A `freshet.ports.RocksDBStore` over one partition of the table."""

    def __init__(self, table: StateTable, partition: int) -> None:
        self._table = table
        self._partition = partition

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The stored states in the given order, None where there is none."""
        return self._table.read(self._partition, [user_id.encode() for user_id in user_ids])

    async def write(self, states: Mapping[str, bytes]) -> None:
        """Write to the changelog and RocksDB; durable on return. Raises `DeliveryError`."""
        if states:
            await self._table.write(self._partition, {user.encode(): state for user, state in states.items()})
