"""Kafka through kafka-python, for everything that is not the hot path."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from kafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError

from freshet.adapters.kafka_python import client_config, new_consumer
from freshet.cli.errors import UserError
from freshet.client.connection import no_topic
from freshet.settings import Settings

STALLED_SECONDS = 15.0
"""A read that brings nothing for this long has failed."""


@contextmanager
def said_plainly(settings: Settings) -> Iterator[None]:
    """Kafka's errors as `UserError`."""
    try:
        yield
    except (KafkaTimeoutError, KafkaConnectionError) as error:
        raise UserError(
            f"Kafka at {settings.kafka} does not answer ({why(error)}): `freshet up` starts one, --kafka names another"
        ) from None
    except KafkaError as error:
        raise UserError(f"Kafka at {settings.kafka}: {why(error)}") from None
    except (OSError, ValueError, AssertionError) as error:
        raise UserError(f"Kafka at {settings.kafka}: {error}") from None


def why(error: BaseException) -> str:
    """A Kafka error in a few words."""
    return (str(error) or type(error).__name__).removeprefix("KafkaTimeoutError: ").splitlines()[0][:200]


@contextmanager
def open_consumer(settings: Settings, **options: Any) -> Iterator[Any]:
    """A consumer outside any group. Raises `UserError` where the broker does not answer."""
    with said_plainly(settings):
        consumer = new_consumer(settings, **options)
        try:
            yield consumer
        finally:
            consumer.close()


@contextmanager
def open_producer(settings: Settings, **options: Any) -> Iterator[Any]:
    """An idempotent producer. Raises `UserError` where the broker does not answer."""
    config = {"allow_auto_create_topics": False, "compression_type": None, "max_block_ms": 20_000, **options}
    with said_plainly(settings):
        producer = KafkaProducer(**client_config(settings), **config)
        try:
            yield producer
        finally:
            producer.close(timeout=30)


def partitions_of(consumer: Any, settings: Settings, topic: str) -> list[Any]:
    """A topic's partitions, in order. Raises `NoTopicError`."""
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise no_topic(settings, topic)
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def require_topics(settings: Settings, *topics: str) -> None:
    """See that topics exist before anything is sent to them. Raises `NoTopicError`."""
    with open_consumer(settings) as consumer:
        for topic in topics:
            partitions_of(consumer, settings, topic)


def read(consumer: Any, partition: Any, start: int, end: int) -> Iterator[ConsumerRecord]:
    """Yield the records of a partition from offset `start` to before `end`. Raises `UserError` if reading stalls."""
    consumer.assign([partition])
    consumer.seek(partition, start)
    moved = time.monotonic()
    while consumer.position(partition) < end:
        fetched = consumer.poll(timeout_ms=500).get(partition, ())
        if not fetched and time.monotonic() - moved > STALLED_SECONDS:
            raise UserError(f"reading {partition.topic} stalled at offset {consumer.position(partition)} of {end}")
        for record in fetched:
            moved = time.monotonic()
            if record.offset >= end:
                return
            yield record


def read_all(consumer: Any, partitions: list[Any]) -> Iterator[ConsumerRecord]:
    """All that the partitions hold now, one after the other."""
    begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    for partition in partitions:
        yield from read(consumer, partition, begins[partition], ends[partition])
