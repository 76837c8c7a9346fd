"""The records of a topic, read outside any consumer group, as the worker reads them (`adapters.wire_batches`)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Self

from confluent_kafka import Consumer, KafkaException, TopicPartition
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

from freshet.adapters.kafka_python import PartitionReader
from freshet.client.connection import ANSWER_SECONDS, ClientError, ConnectionFailedError, connect, failed
from freshet.settings import Settings

POLL_SECONDS = 0.1
"""Between two looks at whether the reader was closed."""
STALLED_SECONDS = 15.0
"""A read that brings nothing for this long has failed."""
FETCH_RECORDS = 500
FIRST_WINDOW = 2_000
WINDOW_GROWTH = 4


class TopicRecord(NamedTuple):
    """A record; `timestamp` is the broker's, ms since the epoch."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


class TopicReader:
    """Reads one topic, or one key of it: what comes, what is there, or the newest records."""

    def __init__(self, settings: Settings, topic: str) -> None:
        """Connect. Raises `ConnectionFailedError` and `NoTopicError`."""
        self._settings = settings
        self._topic = topic
        self._key: bytes | None = None
        options = {
            "group.id": "freshet-client",  # librdkafka wants one; nothing is committed
            "enable.auto.commit": False,
        }
        self._watermarks_of: Consumer
        self._watermarks_of, self._partitions = connect(Consumer, settings, topic, **options)
        try:
            self._reader = PartitionReader(settings)
        except KafkaError as error:
            raise ConnectionFailedError(f"Kafka at {settings.kafka} does not answer ({error})") from None
        self._fetched: deque[TopicRecord] = deque()
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def follow(self, key: bytes | None = None, *, from_beginning: bool = False) -> None:
        """Let `next_record` begin behind what is there, or with it. Raises `ConnectionFailedError`."""
        self._key = key
        self._assign(
            *((number, self._watermarks(number)[0 if from_beginning else 1]) for number in self._partitions_of(key))
        )

    def next_record(self, timeout: float | None = None) -> TopicRecord | None:
        """The next record of the followed key; None once the reader is closed, or after `timeout` seconds.

        Without a timeout it waits, for a broker that is away as well. Raises `ConnectionFailedError`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._closing.is_set():
            record = self._poll()
            if record is not None and self._key in {None, record.key}:
                return record
            if deadline is not None and time.monotonic() >= deadline:
                return None
        return None

    def stored(self, key: bytes | None = None) -> Iterator[TopicRecord]:
        """All records, or those of a key, that are there now, one partition after the other. Raises `ClientError`."""
        for partition in self._partitions_of(key):
            for record in self._read(partition, *self._watermarks(partition)):
                if key in {None, record.key}:
                    yield record

    def newest(self, key: bytes, count: int = 1) -> list[TopicRecord]:
        """The newest `count` records of a key, newest first. Raises `ClientError`.

        The partition is read backwards in growing windows, so a key written lately is found at once.
        """
        [partition] = self._partitions_of(key)
        begin, upper = self._watermarks(partition)
        found: list[TopicRecord] = []
        window = FIRST_WINDOW
        while upper > begin and len(found) < count:
            lower = max(begin, upper - window)
            found += reversed([record for record in self._read(partition, lower, upper) if record.key == key])
            upper, window = lower, window * WINDOW_GROWTH
        return found[:count]

    def close(self) -> None:
        """End every read, in other threads as well."""
        if not self._closing.is_set():
            self._closing.set()
            with self._lock:
                self._reader.close()
                self._watermarks_of.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _partitions_of(self, key: bytes | None) -> list[int]:
        """The partition that holds a key; all of them for None."""
        if key is None:
            return self._partitions
        return [self._partitions[(murmur2(key) & 0x7FFFFFFF) % len(self._partitions)]]

    def _read(self, partition: int, start: int, end: int) -> Iterator[TopicRecord]:
        """The records from offset `start`, up to but without `end`."""
        if start < end:
            self._assign((partition, start))
        moved = time.monotonic()
        while start < end and not self._closing.is_set():
            record = self._poll()
            if record is None:
                if self._reader.position(self._topic, partition) >= end:
                    return  # what stands there are markers, or compaction took it
                if time.monotonic() - moved > STALLED_SECONDS:
                    raise ClientError(f"reading {self._topic} of {self._settings.kafka} stalled at offset {start}")
                continue
            if record.offset >= end:
                return
            start, moved = record.offset + 1, time.monotonic()
            yield record

    def _poll(self) -> TopicRecord | None:
        """The next record; None for nothing yet. Raises `ClientError`."""
        with self._lock:
            if not self._fetched and not self._closing.is_set():
                try:
                    for (_, partition), record in self._reader.read(FETCH_RECORDS, POLL_SECONDS):
                        fields = record.offset, record.timestamp, record.key, record.value
                        self._fetched.append(TopicRecord(partition, *fields))
                except KafkaError as error:
                    raise ClientError(f"reading {self._topic} of {self._settings.kafka} failed: {error}") from None
            return self._fetched.popleft() if self._fetched else None

    def _assign(self, *starts: tuple[int, int]) -> None:
        self._fetched.clear()
        self._reader.seek({(self._topic, partition): offset for partition, offset in starts})

    def _watermarks(self, partition: int) -> tuple[int, int]:
        """The first offset, and the one after the last."""
        try:
            start, end = self._watermarks_of.get_watermark_offsets(
                TopicPartition(self._topic, partition), ANSWER_SECONDS
            )
        except KafkaException as error:
            raise failed(self._settings, error.args[0]) from None
        return int(start), int(end)
