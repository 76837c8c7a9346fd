"""The records of a topic, read outside any consumer group."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from kafka.partitioner.default import murmur2

from freshet.client.connection import ANSWER_SECONDS, ClientError, connect, failed
from freshet.settings import Settings

POLL_SECONDS = 0.1
"""Between two looks at whether the reader was closed."""
STALLED_SECONDS = 15.0
"""A read that brings nothing for this long has failed."""
FIRST_WINDOW = 2_000
WINDOW_GROWTH = 4


class TopicRecord(NamedTuple):
    """A record; `timestamp` is the broker's, ms since the epoch."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


END = TopicRecord(-1, -1, -1, None, None)
"""Stands for the end of a partition."""


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
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 100,
        }
        self._consumer: Consumer
        self._consumer, self._partitions = connect(Consumer, settings, topic, **options)
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
            if record is not None and record is not END and self._key in {None, record.key}:
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
                self._consumer.close()

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
                if time.monotonic() - moved > STALLED_SECONDS:
                    raise ClientError(f"reading {self._topic} of {self._settings.kafka} stalled at offset {start}")
                continue
            if record is END or record.offset >= end:
                return
            start, moved = record.offset + 1, time.monotonic()
            yield record

    def _poll(self) -> TopicRecord | None:
        """The next record, or `END`; None for nothing yet."""
        with self._lock:
            message: Any = None if self._closing.is_set() else self._consumer.poll(POLL_SECONDS)
        if message is None:
            return None
        error = message.error()
        if error is None:
            timestamp = message.timestamp()[1]
            return TopicRecord(message.partition(), message.offset(), timestamp, message.key(), message.value())
        if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
            return END
        raise failed(self._settings, error)

    def _assign(self, *starts: tuple[int, int]) -> None:
        self._consumer.assign([TopicPartition(self._topic, partition, offset) for partition, offset in starts])

    def _watermarks(self, partition: int) -> tuple[int, int]:
        """The first offset, and the one after the last."""
        try:
            start, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), ANSWER_SECONDS)
        except KafkaException as error:
            raise failed(self._settings, error.args[0]) from None
        return int(start), int(end)
