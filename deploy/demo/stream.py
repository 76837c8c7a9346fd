"""The two ends of the demo's stream: a thread that sends events, a thread that reads the lists."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Self

from freshet.core.catalogue import CatalogueItem, encode_item
from freshet.core.events import Event, encode_event
from freshet.core.recommendation import decode_recommendation
from freshet.settings import Settings
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from deploy.demo.tracker import DemoTracker, Sent

FLUSH_SECONDS = 30


class _Background:
    """A thread that runs `work` once, and keeps the exception that ended it."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.done = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=type(self).__name__)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop, and wait until it has."""
        self._stopping.set()
        self._thread.join()

    def work(self) -> None:
        """What the thread does, until it is done or `_stopping` is set."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self.work()
        except Exception as error:
            self.failure = error
        finally:
            self.done.set()


class Feed(_Background):
    """Sends events at an even rate, in their order."""

    def __init__(self, settings: Settings, tracker: DemoTracker, events: Sequence[Event], rate: float) -> None:
        super().__init__()
        self._topic = settings.events_topic
        self._tracker = tracker
        self._events = events
        self._rate = rate
        self._refusal: BaseException | None = None
        self._producer = _producer(settings)

    def work(self) -> None:
        """Send until stopped or through; then wait for every acknowledgement."""
        began = time.monotonic()
        try:
            for number, event in enumerate(self._events):
                wait = began + number / self._rate - time.monotonic()
                if self._stopping.wait(wait) if wait > 0 else self._stopping.is_set():
                    break
                self._send(event)
            self._producer.flush(timeout=FLUSH_SECONDS)
        finally:
            self._producer.close(timeout=FLUSH_SECONDS)
        if self._refusal is not None:
            raise self._refusal

    def _send(self, event: Event) -> None:
        if self._refusal is not None:
            raise self._refusal
        value, key = encode_event(event), event.user_id.encode()
        sent = self._tracker.sending(event, time.monotonic())
        future = self._producer.send(self._topic, value, key)
        future.add_callback(self._acknowledged, sent)
        future.add_errback(self._refused)

    def _acknowledged(self, sent: Sent, metadata: Any) -> None:
        self._tracker.acknowledged(sent, metadata.offset)

    def _refused(self, error: BaseException) -> None:
        self._refusal = error


class ListWatcher(_Background):
    """Reads the recommendations topic from its present end; ready to read once constructed."""

    def __init__(self, settings: Settings, tracker: DemoTracker) -> None:
        super().__init__()
        self._tracker = tracker
        self._consumer = KafkaConsumer(
            bootstrap_servers=settings.kafka.split(","),
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            fetch_max_wait_ms=50,
            max_poll_records=2000,
        )
        topic = settings.recommendations_topic
        partitions = [TopicPartition(topic, number) for number in self._consumer.partitions_for_topic(topic) or ()]
        self._consumer.assign(partitions)
        for partition, end in self._consumer.end_offsets(partitions).items():
            self._consumer.seek(partition, end)

    def work(self) -> None:
        """Read until stopped."""
        try:
            while not self._stopping.is_set():
                for records in self._consumer.poll(timeout_ms=100).values():
                    now = time.monotonic()
                    for record in records:
                        if record.value:
                            made = decode_recommendation(record.value)
                            if isinstance(made, str):
                                raise ValueError(f"record {record.offset} of {record.topic} is {made}")
                            self._tracker.consumed(made, now)
        finally:
            self._consumer.close()


def send_items(settings: Settings, items: Iterable[CatalogueItem]) -> None:
    """Upsert the catalogue, and return once all of it is acknowledged. Raises `KafkaError`."""
    producer = _producer(settings, linger_ms=20, batch_size=131_072)
    try:
        futures = [producer.send(settings.items_topic, encode_item(i), i.item_id.encode()) for i in items]
        for future in futures:
            future.get(timeout=FLUSH_SECONDS)
    finally:
        producer.close(timeout=FLUSH_SECONDS)


def position(settings: Settings) -> int:
    """How many events were ever sent to the events topic: where the last run stopped."""
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.split(","), enable_auto_commit=False)
    try:
        topic = settings.events_topic
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        return sum(consumer.end_offsets(partitions).values())
    finally:
        consumer.close()


def _producer(settings: Settings, **options: Any) -> Any:
    return KafkaProducer(
        bootstrap_servers=settings.kafka.split(","), allow_auto_create_topics=False, max_block_ms=10_000, **options
    )
