"""A Kafka topic as a log, read without touching any consumer group."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from freshet.adapters.kafka_python import new_consumer, record_of
from freshet.ports import RUN_RECORDS, WHOLE, EmptyLog, LogError, Record, Window
from freshet.settings import Settings

PATIENCE_SECONDS = 10.0
"""How long the broker may take to answer."""
POLL_MS = 100
"""How long a run may take to come."""


class KafkaLog:
    """A topic, up to the end that the topic had when the log was opened.

    No consumer group is touched. `starts` holds the first offset of each partition.
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

    def _range(self, consumer: KafkaConsumer, partition: int) -> tuple[int, int]:
        """First offset and end, within the window."""
        low, high = _bounds(consumer, TopicPartition(self._topic, partition))
        first, end = low, high
        if self._window.start_ms is not None:
            first = max(first, self._offset_at(consumer, partition, self._window.start_ms, high))
        if self._window.end_ms is not None:
            end = min(end, self._offset_at(consumer, partition, self._window.end_ms, high))
        return self._window.narrow(f"topic {self._topic}, partition {partition}", partition, low, (first, end))

    def _offset_at(self, consumer: KafkaConsumer, partition: int, ms: int, high: int) -> int:
        topic_partition = TopicPartition(self._topic, partition)
        found = consumer.offsets_for_times({topic_partition: ms})[topic_partition]
        return int(found.offset) if found is not None else high

    def read(self, partition: int, start: int = 0) -> Iterator[list[Record]]:
        """Runs of a partition from an offset on."""
        first, end = self._ranges[partition]
        position = max(first, start)
        if position >= end:
            return
        topic_partition = TopicPartition(self._topic, partition)
        with _consumer(self._settings) as consumer:
            consumer.assign([topic_partition])
            consumer.seek(topic_partition, position)
            heard = time.monotonic()
            while position < end:
                fetched = consumer.poll(POLL_MS, max_records=min(RUN_RECORDS, end - position)).get(topic_partition, ())
                before, position = position, consumer.position(topic_partition)
                if position > before:
                    heard = time.monotonic()
                elif time.monotonic() - heard > PATIENCE_SECONDS:
                    raise LogError(
                        f"topic {topic_partition.topic}, partition {partition}: the broker sends nothing more"
                    )
                if run := [record_of(record) for record in fetched if record.offset < end]:
                    yield run

    def close(self) -> None:
        """Consumers live only while they read."""


def behind(settings: Settings, topic: str) -> int:
    """Count the records of a topic that the settings' group has not committed yet. Raises `LogError`."""
    with _consumer(settings, group_id=settings.group) as consumer:
        topic_partitions = [TopicPartition(topic, partition) for partition in _partitions(consumer, settings, topic)]
        consumer.assign(topic_partitions)
        return sum(_left(consumer, topic_partition) for topic_partition in topic_partitions)


def _left(consumer: KafkaConsumer, topic_partition: TopicPartition) -> int:
    """How many offsets of a partition are behind the committed one; 0 where they hold no record, but markers."""
    low, high = _bounds(consumer, topic_partition)
    position = first = max(low, consumer.committed(topic_partition) or 0)
    consumer.pause(*consumer.assignment())
    consumer.resume(topic_partition)
    consumer.seek(topic_partition, first)
    until = time.monotonic() + PATIENCE_SECONDS
    while position < high and time.monotonic() < until:
        if consumer.poll(POLL_MS, max_records=1):
            return high - first
        position = consumer.position(topic_partition)
    return max(0, high - position)


def _bounds(consumer: KafkaConsumer, topic_partition: TopicPartition) -> tuple[int, int]:
    """The first offset of a partition, and the end of what is committed."""
    return int(consumer.beginning_offsets([topic_partition])[topic_partition]), int(
        consumer.end_offsets([topic_partition])[topic_partition]
    )


def _partitions(consumer: KafkaConsumer, settings: Settings, topic: str) -> list[int]:
    if not (found := consumer.partitions_for_topic(topic)):
        raise LogError(f"topic {topic} does not exist at {settings.kafka}")
    return sorted(found)


@contextmanager
def _consumer(settings: Settings, **options: Any) -> Iterator[KafkaConsumer]:
    """A consumer that joins no group and commits nothing. Raises `LogError` for Kafka's errors."""
    try:
        consumer = new_consumer(settings, auto_offset_reset="none", **options)
        try:
            yield consumer
        finally:
            consumer.close()
    except KafkaError as error:
        raise LogError(f"Kafka at {settings.kafka} does not answer: {error or type(error).__name__}") from None
