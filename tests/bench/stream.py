"""Seeded event streams for benchmarks, and producing them quickly.

The same arguments always give the same events. Users are `u0`, `u1`, …; an
event's id is `<user>-<n>`, where n counts that user's events from 0, so a
reader can tell what is missing, doubled or out of order. Event times rise by
one second per event.

    python -m tests.bench.stream --kafka 127.0.0.1:9092 --topic bench --users 1000 --events 100000
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic
from freshet.core.events import Event, decode_event, encode_event
from numpy.typing import NDArray

from tests.bench import harness

FIRST_TS_MS = 1_600_000_000_000
CHUNK = 8192
TYPES = ("view", "click", "purchase")
TYPE_SHARES = (0.6, 0.3, 0.1)
ITEM_EXPONENT = 0.8
USER_EXPONENT = 1.0
DISTRIBUTIONS = ("uniform", "zipf", "cycle")


def movielens_like(count: int = 1682) -> list[str]:
    """Item ids as MovieLens-100K has them."""
    return [str(item) for item in range(1, count + 1)]


def read_item_ids(file: str | None) -> list[str]:
    """The vocabulary in `item_ids.json` of a bundle, or a MovieLens-like one."""
    return movielens_like() if file is None else json.loads(Path(file).read_text())


def generate(
    *, users: int, events: int, items: Sequence[str], distribution: str = "uniform", seed: int = 0
) -> Iterator[Event]:
    """Yield `events` events of `users` users.

    `distribution` draws users uniformly or Zipf-like; `cycle` takes them in
    turn, so every user has an equal number. Items are Zipf-like in the order given.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution {distribution!r} is none of {DISTRIBUTIONS}")
    rng = np.random.default_rng(seed)
    item_cdf = _zipf_cdf(len(items), ITEM_EXPONENT)
    user_cdf = _zipf_cdf(users, USER_EXPONENT) if distribution == "zipf" else None
    sequence = [0] * users
    for start in range(0, events, CHUNK):
        size = min(CHUNK, events - start)
        if distribution == "cycle":
            who = np.arange(start, start + size) % users
        elif user_cdf is None:
            who = rng.integers(0, users, size)
        else:
            who = _draw(rng, user_cdf, size)
        item_numbers = _draw(rng, item_cdf, size).tolist()
        kinds = rng.choice(len(TYPES), size, p=TYPE_SHARES).tolist()
        amounts = (rng.integers(100, 10_000, size) / 100).tolist()
        for row, user in enumerate(who.tolist()):
            number = sequence[user]
            sequence[user] = number + 1
            kind = TYPES[kinds[row]]
            yield Event(
                event_id=f"u{user}-{number}",
                user_id=f"u{user}",
                type=kind,
                ts=FIRST_TS_MS + (start + row) * 1000,
                item_id=items[item_numbers[row]],
                amount=amounts[row] if kind == "purchase" else None,
            )


def create_topic(kafka: str, topic: str, partitions: int) -> None:
    """Create a topic; one that exists is an error: a benchmark's topic holds its events alone."""
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(30)


def ensure_topic(kafka: str, topic: str, partitions: int) -> None:
    """Create an output topic if it is missing."""
    if topic not in AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=30).topics:
        create_topic(kafka, topic, partitions)


def decode(value: bytes | None, key: bytes | None) -> Event:
    """Decode a record of a benchmark's topic, which holds valid events alone."""
    event = decode_event(value, key)
    if not isinstance(event, Event):
        raise TypeError(f"the topic holds a bad event: {event.detail}")
    return event


def require_events(kafka: str, topic: str, events: int) -> int:
    """Return the topic's number of partitions; raise if it holds fewer than `events` records.

    A comparator would wait for ever for what is not there.
    """
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "bench-offsets"})
    try:
        metadata = consumer.list_topics(timeout=30).topics.get(topic)
        if metadata is None:
            raise harness.ComparatorError(f"{kafka} has no topic {topic}")
        held = 0
        for partition in metadata.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), 30)
            held += high - low
    finally:
        consumer.close()
    if held < events:
        raise harness.ComparatorError(f"{topic} holds {held} events, {events} are needed")
    return len(metadata.partitions)


def produce(
    *,
    kafka: str,
    topic: str,
    users: int,
    events: int,
    partitions: int = 4,
    distribution: str = "uniform",
    item_ids: str | None = None,
    seed: int = 0,
    rate: float | None = None,
) -> harness.Figures:
    """Create `topic` and produce a generated stream to it, keyed by user.

    `item_ids` names a bundle's `item_ids.json`. With `rate` the events are
    spread evenly, that many a second; else as fast as it goes. Returns once the
    broker has acknowledged every event; raises `KafkaException` when it has not.
    """
    create_topic(kafka, topic, partitions)
    refused: list[KafkaError] = []

    def note(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error)

    producer = Producer(
        {
            "bootstrap.servers": kafka,
            "partitioner": "murmur2_random",  # as Java and kafka-python partition
            "enable.idempotence": True,
            "linger.ms": 0 if rate else 20,
            "queue.buffering.max.messages": 200_000,
            "delivery.report.only.error": True,
            "on_delivery": note,
        }
    )
    stream = generate(
        users=users,
        events=events,
        items=read_item_ids(item_ids),
        distribution=distribution,
        seed=seed,
    )
    start = time.perf_counter()
    for number, event in enumerate(stream):
        if rate:
            _wait_until(start + number / rate, producer)
        value = encode_event(event)
        while True:
            try:
                producer.produce(topic, value, event.user_id)
                break
            except BufferError:
                producer.poll(0.05)
    producer.flush(60)
    if refused or len(producer):
        raise KafkaException(refused[0] if refused else KafkaError(KafkaError._TIMED_OUT))
    seconds = time.perf_counter() - start
    return {
        "events": events,
        "users": users,
        "partitions": partitions,
        "seconds": round(seconds, 3),
        "events_per_s": round(events / seconds, 1),
    }


def _wait_until(moment: float, producer: Producer) -> None:
    while (left := moment - time.perf_counter()) > 0:
        producer.poll(min(left, 0.05))


def _zipf_cdf(count: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, count + 1) ** -exponent
    return np.cumsum(weights) / weights.sum()


def _draw(rng: np.random.Generator, cdf: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    return np.minimum(np.searchsorted(cdf, rng.random(size)), len(cdf) - 1)


if __name__ == "__main__":
    harness.command_line(produce)
