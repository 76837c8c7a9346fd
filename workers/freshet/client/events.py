"""Events in: the producer of the events topic."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaException, Producer

from freshet.adapters.kafka import DELIVERY_SECONDS
from freshet.client.connection import ClientError, connect
from freshet.core.decoding import Undecodable
from freshet.core.events import BadEvent, Event, decode_event, encode_event
from freshet.core.lines import user_line
from freshet.ports import DeliveryError
from freshet.settings import Settings

LINGER_MS = 5
"""How long a record waits for others to be sent with."""
WAIT_SECONDS = 0.5
"""Between two looks at what the broker has acknowledged; Ctrl-C is heard then."""


class InvalidEventError(ClientError):
    """The workers would not take the event; the message has the reason that its dead letter would have."""


def event_key(value: bytes) -> bytes | None:
    """The key of an event's JSON: its user id in UTF-8; None where it has none."""
    named = user_line(value)
    return None if isinstance(named, Undecodable) else named.user_id.encode()


def as_workers_see(settings: Settings, value: bytes) -> tuple[bytes | None, Event | BadEvent]:
    """The key of an event's JSON, and what a worker would make of the record now."""
    key = event_key(value)
    latest = settings.latest_ts(int(time.time() * 1000))
    return key, decode_event(value, key or b"", settings.behaviours, latest_ts=latest)


class Outbox:
    """Sends records to one topic, by murmur2 over their keys, and counts those that the broker acknowledges."""

    def __init__(self, settings: Settings, topic: str) -> None:
        """Raises `ConnectionFailedError` and `NoTopicError`."""
        self._topic = topic
        self._producer: Producer
        self._producer, _ = connect(
            Producer,
            settings,
            topic,
            **{
                "enable.idempotence": True,
                "linger.ms": LINGER_MS,
                "delivery.timeout.ms": int(DELIVERY_SECONDS * 1000),
                "partitioner": "murmur2_random",  # as Java's and kafka-python's producers do
            },
        )
        self.sent = 0
        """Records that the broker has acknowledged."""
        self.failed = 0
        """Records that it has refused, or not taken in time."""
        self.failure = ""
        """Why the last of those failed."""

    def send(self, key: bytes | None, value: bytes) -> None:
        """Queue a record; waits while the queue is full."""
        try:
            self._queue(key, value)
        except KafkaException as error:  # what librdkafka itself refuses, as a record that is too large
            self._note(error.args[0], None)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until every record is acknowledged or has failed."""
        while self._producer.flush(WAIT_SECONDS):
            pass

    def _queue(self, key: bytes | None, value: bytes) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, key, on_delivery=self._note)
            except BufferError:
                self._producer.poll(WAIT_SECONDS)
            else:
                return

    def _note(self, error: Any, _message: Any) -> None:
        if error is None:
            self.sent += 1
        else:
            self.failed += 1
            self.failure = error.str()


class Events:
    """Sends events to the workers, keyed by user.

    The end of a `with` block waits until the broker has acknowledged every event::

        with freshet.Events(freshet.load_settings()) as events:
            events.send(freshet.Event("e1", "ada", "purchase", 890_000_000_000, item_id="50"))
    """

    def __init__(self, settings: Settings) -> None:
        """Connect. Raises `ConnectionFailedError` and `NoTopicError`."""
        self._topic = settings.events_topic
        self._settings = settings
        self._outbox = Outbox(settings, self._topic)
        self._told = 0

    def send(self, event: Event) -> None:
        """Queue an event. Raises `InvalidEventError` where the workers would not take it."""
        if not isinstance(event, Event):
            raise InvalidEventError(f"{type(event).__name__} is no event: make a freshet.Event of it")
        try:
            value = encode_event(event)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidEventError(f"event {event.event_id!r} cannot be written as JSON: {error}") from None
        key, decoded = as_workers_see(self._settings, value)
        if isinstance(decoded, BadEvent):
            raise InvalidEventError(f"event {event.event_id!r}: {decoded.reason}: {decoded.detail}")
        if decoded.amount != event.amount:  # JSON has neither NaN nor infinity
            raise InvalidEventError(f"event {event.event_id!r}: the amount {event.amount} is not a finite number")
        self._outbox.send(key, value)

    def flush(self) -> None:
        """Wait until the broker has every event so far. Raises `DeliveryError` where it does not take one."""
        self._outbox.flush()
        failed, self._told = self._outbox.failed - self._told, self._outbox.failed
        if failed:
            raise DeliveryError(f"{failed:,} events did not arrive at {self._topic}: {self._outbox.failure}")

    def close(self) -> None:
        """The same as `flush`: nothing is to be given back."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()
        else:  # what was sent before still arrives
            self._outbox.flush()
