"""Kafka through librdkafka: awaited publishing, and readers of side-input topics.

librdkafka costs 12 µs a record where Faust's `topic.send` costs 150 µs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from freshet.ports import DeliveryError, Message, Record, TooLargeError
from freshet.settings import Settings

DELIVERY_SECONDS = 30.0
"""A record not acknowledged by then fails the batch, and with it the worker."""
READ_BATCH = 1000
LINGER_MS = 0.5
"""How long a record waits for others: a batch's are handed over together, and each stage waits for the one before."""
POLL_SECONDS = 0.001
"""How often delivery reports are asked for while any is awaited."""
_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})


def client_config(settings: Settings) -> dict[str, Any]:
    """Librdkafka's connection settings."""
    config: dict[str, Any] = {"bootstrap.servers": settings.kafka, "security.protocol": settings.kafka_security}
    if settings.kafka_ca:
        config["ssl.ca.location"] = settings.kafka_ca
    if settings.kafka_security == "SASL_SSL":
        config |= {
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": settings.kafka_username or "",
            "sasl.password": settings.kafka_password or "",
        }
    return config


def create_topic(settings: Settings, topic: str, partitions: int) -> bool:
    """Create a topic with the broker's own replication; returns False where it exists. Raises `DeliveryError`."""
    admin = AdminClient(client_config(settings))
    [created] = admin.create_topics([NewTopic(topic, partitions)]).values()
    try:
        created.result(DELIVERY_SECONDS)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise DeliveryError(f"topic {topic} cannot be created: {error.args[0].str()}") from None
        return False
    return True


def delete_topic(settings: Settings, topic: str) -> None:
    """Delete a topic. Raises `DeliveryError`."""
    admin = AdminClient(client_config(settings))
    [deleted] = admin.delete_topics([topic]).values()
    try:
        deleted.result(DELIVERY_SECONDS)
    except KafkaException as error:
        raise DeliveryError(f"topic {topic} cannot be deleted: {error.args[0].str()}") from None


class KafkaPublisher:
    """A `Publisher` whose `publish` returns once every record is acknowledged.

    One idempotent producer. Delivery reports are asked for by the event loop while any is awaited: a thread that
    waits for them would have to take the interpreter from the loop for each.
    """

    def __init__(self, settings: Settings, check: Callable[[], None] | None = None) -> None:
        """`check` is called before records are handed over, and may end the process."""
        self._check = check
        self._producer = Producer(
            client_config(settings)
            | {
                "enable.idempotence": True,
                "linger.ms": LINGER_MS,
                "delivery.timeout.ms": int(DELIVERY_SECONDS * 1000),
                "queue.buffering.max.messages": 1_000_000,
                "partitioner": "murmur2_random",
            }
        )
        self._waiting = 0
        self._polling = False

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publish and await all. Raises `DeliveryError`, and `TooLargeError` where all others were delivered.

        A broker refuses a batch of records whole, so the records of a refused batch are sent again one by one.
        """
        if not messages:
            return
        try:
            await self.publish_to(None, messages)
        except TooLargeError as error:
            refused = error.messages
            if len(messages) > 1:
                refused = [message for message in refused if not await self._fits(message)]
            if refused:
                raise TooLargeError(refused, str(error)) from None

    async def _fits(self, message: Message) -> bool:
        """Publish one record; returns False where the record is too large by itself. Raises `DeliveryError`."""
        try:
            await self.publish_to(None, [message])
        except TooLargeError:
            return False
        return True

    async def publish_to(self, partition: int | None, messages: Sequence[Message]) -> int:
        """Publish to one partition (None: by key) and await all; returns the highest offset written.

        Raises `DeliveryError`, and `TooLargeError` where all others were delivered.
        """
        loop = asyncio.get_running_loop()
        delivered: asyncio.Future[int] = loop.create_future()
        left, highest, failure, refused = len(messages), -1, "", []

        def note(number: int, error: KafkaError | None, message: Any) -> None:
            nonlocal left, highest, failure
            left -= 1
            if error is None:
                highest = max(highest, message.offset())
            elif error.code() in _TOO_LARGE:
                refused.append(messages[number])
            else:
                failure = failure or f"{message.topic()}: {error}"
            if left == 0:
                _settle(delivered, highest, failure, refused)

        if self._check is not None:
            self._check()
        for number, message in enumerate(messages):
            self._produce(message, partition, partial(note, number))
        self._waiting += 1
        if not self._polling:
            self._polling = True
            loop.call_later(POLL_SECONDS, self._poll, loop)
        try:
            return await delivered
        finally:
            self._waiting -= 1

    def _produce(self, message: Message, partition: int | None, note: Callable[[KafkaError | None, Any], None]) -> None:
        """Hand a record over. Raises `DeliveryError`."""
        where = {} if partition is None else {"partition": partition}
        headers = list(message.headers) if message.headers else None
        try:
            self._producer.produce(
                message.topic, message.value, message.key, on_delivery=note, headers=headers, **where
            )
        except KafkaException as error:  # what librdkafka itself refuses, as a partition that it knows not to be there
            if error.args[0].code() not in _TOO_LARGE:
                raise DeliveryError(f"{message.topic}: {error.args[0].str()}") from None
            asyncio.get_running_loop().call_soon(note, error.args[0], None)

    def close(self) -> None:
        """Flush what is queued and stop."""
        self._producer.flush(DELIVERY_SECONDS)

    def _poll(self, loop: asyncio.AbstractEventLoop) -> None:
        self._producer.poll(0)
        self._polling = self._waiting > 0
        if self._polling:
            loop.call_later(POLL_SECONDS, self._poll, loop)


def _settle(delivered: asyncio.Future[int], highest: int, failure: str, refused: Sequence[Message]) -> None:
    if delivered.done():
        return
    if failure:
        delivered.set_exception(DeliveryError(failure))
    elif refused:
        delivered.set_exception(TooLargeError(refused, f"{refused[0].topic}: {len(refused)} records are too large"))
    else:
        delivered.set_result(highest)


class SideInputReader:
    """Reads a whole single-partition topic, from the beginning and for ever, on a thread of its own.

    `apply` is called on the event loop with runs of records in offset order.
    """

    def __init__(self, settings: Settings, topic: str, apply: Callable[[Sequence[Record]], None]) -> None:
        self._topic = topic
        self._apply = apply
        self._consumer = Consumer(
            client_config(settings)
            | {
                "group.id": f"{settings.group}-side-inputs",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 500,
            }
        )
        self._closing = threading.Event()
        self._caught_up = asyncio.Event()
        self.failure: BaseException | None = None

    async def start(self) -> None:
        """Start, and return once all that the topic held has been applied. Raises `KafkaException`."""
        self._loop = asyncio.get_running_loop()
        end = await asyncio.to_thread(self._end)
        self._thread = threading.Thread(target=self._read, args=(end,), name=f"read-{self._topic}", daemon=True)
        self._thread.start()
        await self._caught_up.wait()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        self._thread.join()
        self._consumer.close()

    def _end(self) -> int:
        """The offset to have read up to; 0 where the topic holds nothing."""
        start, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, 0), timeout=10.0)
        return int(end) if end > start else 0

    def _read(self, end: int) -> None:
        try:
            self._consumer.assign([TopicPartition(self._topic, 0, OFFSET_BEGINNING)])
            caught_up = False
            while not self._closing.is_set():
                if not caught_up and self._position() >= end:
                    caught_up = True
                    self._loop.call_soon_threadsafe(self._caught_up.set)
                records = _records(self._consumer.consume(READ_BATCH, timeout=0.1))
                if records:
                    self._loop.call_soon_threadsafe(self._hand_on, records)
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._fail, error)

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

    def _position(self) -> int:
        [at] = self._consumer.position([TopicPartition(self._topic, 0)])
        return int(at.offset) if at.offset >= 0 else 0


def record_of(message: Any) -> Record:
    """What a consumer fetched, headers included."""
    return Record(message.offset(), message.timestamp()[1], message.key(), message.value(), message.headers() or ())


def _records(messages: Sequence[Any]) -> list[Record]:
    """The records among what was consumed. Raises `KafkaException` for a fatal error; librdkafka mends others."""
    for message in messages:
        if (error := message.error()) is not None and error.fatal():
            raise KafkaException(error)
    return [Record(m.offset(), m.timestamp()[1], m.key(), m.value()) for m in messages if m.error() is None]
