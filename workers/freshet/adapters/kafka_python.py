"""kafka-python's consumers, read so that nothing in a record can raise out of a fetch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import Fetcher

from freshet.adapters.kafka_access import kafka_python_access
from freshet.adapters.wire_batches import PlainWireBatches
from freshet.ports import Record
from freshet.settings import Settings

BOOTSTRAP_SECONDS = 5.0
FETCH_WAIT_MS = 100
"""How long a fetch waits at the broker for something new."""
POLL_MS = 100
READ_RECORDS = 1000


def client_config(settings: Settings) -> dict[str, Any]:
    """kafka-python's connection settings. Raises `AccessError`."""
    return {
        "bootstrap_servers": settings.kafka.split(","),
        "bootstrap_timeout_ms": int(BOOTSTRAP_SECONDS * 1000),
    } | kafka_python_access(settings)


class WireRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of a fetch; stands for kafka-python's class in one consumer."""

    def __init__(self, fetch_offset: int, tp: Any, records: Any, **options: Any) -> None:
        super().__init__(fetch_offset, tp, PlainWireBatches(records._buffer), **options)


def new_consumer(settings: Settings, **options: Any) -> KafkaConsumer:
    """A consumer outside any group that leaves aborted transactions out. Raises `KafkaError`.

    A batch with a wrong checksum is quarantined, not refused.
    """
    config = {
        "isolation_level": "read_committed",
        "check_crcs": False,
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "fetch_max_wait_ms": FETCH_WAIT_MS,
        "client_rack": settings.kafka_rack or "",
        **options,
    }
    consumer = KafkaConsumer(**client_config(settings), **config)
    consumer._fetcher.PartitionRecords = WireRecords
    return consumer


class PartitionReader:
    """Reads the partitions that it is told to, from the offsets that it is told; another client is in the group."""

    def __init__(self, settings: Settings) -> None:
        """Connect. Raises `KafkaError`."""
        self._consumer = new_consumer(settings, auto_offset_reset="none")

    def seek(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Go on with these partitions alone, by topic and number, each at its offset."""
        self._consumer.assign([TopicPartition(*partition) for partition in positions])
        for partition, offset in positions.items():
            self._consumer.seek(TopicPartition(*partition), offset)

    def read(self, most: int, seconds: float) -> Iterator[tuple[tuple[str, int], Record]]:
        """What comes within a time, at most so many records. Raises `KafkaError`, also where an offset is gone."""
        for partition, records in self._consumer.poll(int(seconds * 1000), max_records=most).items():
            for record in records:
                yield (partition.topic, partition.partition), record_of(record)

    def position(self, topic: str, partition: int) -> int:
        """The offset from which the next fetch reads."""
        return int(self._consumer.position(TopicPartition(topic, partition)))

    def end(self, topic: str, partition: int) -> int:
        """The end of a partition by the last fetch; 0 before the first."""
        return self._consumer.highwater(TopicPartition(topic, partition)) or 0

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close()


def record_of(record: Any) -> Record:
    """What a consumer fetched, headers included."""
    return Record(record.offset, record.timestamp, record.key, record.value, record.headers)


class SideInputReader:
    """Reads a whole single-partition topic, from the beginning and for ever, on a thread of its own.

    `apply` is called on the event loop with runs of records in offset order, at most every `interval` seconds unless
    somebody waits to catch up.
    """

    def __init__(
        self, settings: Settings, topic: str, apply: Callable[[Sequence[Record]], None], interval: float = 0.0
    ) -> None:
        self._settings = settings
        self._interval = interval
        self._topic = topic
        self._apply = apply
        self._closing = threading.Event()
        self._asked = threading.Event()
        self._caught_up = asyncio.Event()
        self.failure: BaseException | None = None

    async def start(self) -> None:
        """Start, and return once all that the topic held has been applied. Raises `KafkaError`, or what `apply` did."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read, name=f"read-{self._topic}", daemon=True)
        self._thread.start()
        await self.catch_up()

    async def catch_up(self) -> None:
        """Wait until all that the topic holds now has been applied. Raises `KafkaError`, or what `apply` did."""
        self._caught_up.clear()
        self._asked.set()
        if self.failure is None:
            await self._caught_up.wait()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        self._thread.join()

    def _read(self) -> None:
        try:
            consumer = new_consumer(self._settings, auto_offset_reset="earliest")
            try:
                self._follow(consumer)
            finally:
                consumer.close()
        except BaseException as error:
            with suppress(RuntimeError):  # the loop is closed: the process ends, and nobody is left to be told
                self._loop.call_soon_threadsafe(self._fail, error)

    def _follow(self, consumer: KafkaConsumer) -> None:
        partition = TopicPartition(self._topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end: int | None = None
        waiting: list[Record] = []
        due = 0.0
        while not self._closing.is_set():
            if self._asked.is_set():
                self._asked.clear()
                end = consumer.end_offsets([partition])[partition]
            waiting += map(record_of, consumer.poll(POLL_MS, max_records=READ_RECORDS).get(partition, ()))
            if waiting and (end is not None or time.monotonic() >= due):
                self._loop.call_soon_threadsafe(self._hand_on, waiting)
                waiting, due = [], time.monotonic() + self._interval
            if end is not None and consumer.position(partition) >= end:
                end = None
                self._loop.call_soon_threadsafe(self._caught_up.set)

    def _hand_on(self, records: Sequence[Record]) -> None:
        """Apply a run; the event loop would only log what goes wrong, and the rest of the run would be missing."""
        try:
            self._apply(records)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Hand the error to whoever waits or checks."""
        self.failure = self.failure or error
        self._caught_up.set()
