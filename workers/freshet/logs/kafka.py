"""A Kafka topic as a log, read without touching any consumer group."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from freshet.adapters.kafka import client_config, record_of
from freshet.ports import RUN_RECORDS, WHOLE, EmptyLog, LogError, Record, Window
from freshet.settings import Settings

PATIENCE_SECONDS = 10.0
"""How long the broker may take to answer."""
QUEUED = 2 * RUN_RECORDS
"""Records that a partition's consumer holds ahead, beside the fetch they came in: each takes half a kilobyte more
than its bytes, which librdkafka's bound in kilobytes does not count."""
QUEUED_KB = 8192
"""What they may take, the half kilobyte apart."""
FETCH_AGAIN_MS = 5
"""How soon the broker is asked again where that much was held."""
POLL_SECONDS = 0.1
"""How long a run may take to fill."""


class KafkaLog:
    """A topic up to the end it had when it was opened; no consumer group is touched.

    `starts` are the partitions' first offsets.
    """

    def __init__(self, topic: str, settings: Settings, window: Window = WHOLE) -> None:
        self.name = f"kafka:{topic}"
        self._topic = topic
        self._settings = settings
        self._window = window
        with _consumer(settings) as consumer:
            self.partitions = _partitions(consumer, settings, topic)
            self._ranges = {partition: self._range(consumer, partition) for partition in self.partitions}
        if window.offsets:
            unknown = sorted(set(window.offsets) - set(self.partitions))
            if unknown:
                raise LogError(f"topic {topic} has no partition {unknown[0]}")
        self.total = sum(max(0, end - first) for first, end in self._ranges.values())
        if not self.total:
            raise EmptyLog(f"topic {topic} holds no records in the window")
        self.starts = {partition: first for partition, (first, end) in self._ranges.items() if first < end}

    def _range(self, consumer: Consumer, partition: int) -> tuple[int, int]:
        """First offset and end, within the window."""
        low, high = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), PATIENCE_SECONDS)
        first, end = low, high
        if self._window.start_ms is not None:
            first = max(first, self._offset_at(consumer, partition, self._window.start_ms, high))
        if self._window.end_ms is not None:
            end = min(end, self._offset_at(consumer, partition, self._window.end_ms, high))
        if self._window.offsets:
            wanted, last = self._window.offsets.get(partition, (0, -1))
            if last is None or last >= wanted:
                if wanted < low:
                    raise LogError(
                        f"topic {self._topic}, partition {partition}: "
                        f"offset {wanted} is gone, the first there is is {low}"
                    )
                first = max(first, wanted)
            end = end if last is None else min(end, last + 1)
        return first, end

    def _offset_at(self, consumer: Consumer, partition: int, ms: int, high: int) -> int:
        [found] = consumer.offsets_for_times([TopicPartition(self._topic, partition, ms)], PATIENCE_SECONDS)
        return found.offset if found.offset >= 0 else high

    def read(self, partition: int, start: int = 0) -> Iterator[list[Record]]:
        """Runs of a partition from an offset on."""
        first, end = self._ranges[partition]
        position = max(first, start)
        if position >= end:
            return
        where = f"topic {self._topic}, partition {partition}"
        with _consumer(self._settings) as consumer:
            consumer.assign([TopicPartition(self._topic, partition, position)])
            heard = time.monotonic()
            while position < end:
                messages = consumer.consume(min(RUN_RECORDS, end - position), timeout=POLL_SECONDS)
                if messages:
                    heard = time.monotonic()
                elif time.monotonic() - heard > PATIENCE_SECONDS:
                    raise LogError(f"{where}: the broker sends nothing more")
                run = [record_of(message) for message in messages if message.error() is None]
                if run:
                    position = run[-1].offset + 1
                if len(run) < len(messages):
                    _check_ended(messages, where)
                    position = end
                if position > end:
                    run = [record for record in run if record.offset < end]
                if run:
                    yield run

    def close(self) -> None:
        """Consumers live only while they read."""


_PARTITION_EOF = -191


def _check_ended(messages: Sequence[Any], where: str) -> None:
    """Raises `LogError` where anything but the partition's end was met."""
    for message in messages:
        if (error := message.error()) is not None and error.code() != _PARTITION_EOF:
            raise LogError(f"{where}: {error.str()}")


def behind(settings: Settings, topic: str) -> int:
    """How many records of a topic the settings' group has not committed yet. Raises `LogError`."""
    with _consumer(settings, settings.group) as consumer:
        committed = [TopicPartition(topic, partition) for partition in _partitions(consumer, settings, topic)]
        left = 0
        for position in consumer.committed(committed, PATIENCE_SECONDS):
            low, high = consumer.get_watermark_offsets(position, PATIENCE_SECONDS)
            left += high - max(low, position.offset)
    return left


def _partitions(consumer: Consumer, settings: Settings, topic: str) -> list[int]:
    try:
        found = consumer.list_topics(topic, timeout=PATIENCE_SECONDS).topics[topic]
    except KafkaException as error:
        raise LogError(f"Kafka at {settings.kafka} does not answer: {error.args[0].str()}") from None
    if found.error is not None or not found.partitions:
        raise LogError(f"topic {topic} does not exist at {settings.kafka}")
    return sorted(found.partitions)


@contextmanager
def _consumer(settings: Settings, group: str | None = None) -> Iterator[Consumer]:
    """A consumer that joins no group and commits nothing."""
    consumer = Consumer(
        client_config(settings)
        | {
            "group.id": group or f"{settings.group}-replay",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "queued.min.messages": QUEUED,
            "queued.max.messages.kbytes": QUEUED_KB,
            "fetch.queue.backoff.ms": FETCH_AGAIN_MS,
            "allow.auto.create.topics": False,
            "log_level": 0,  # a broker that is away is an error of the caller's
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()
