"""Kafka through librdkafka: awaited publishing, and readers of side-input topics.

librdkafka costs 12 µs a record where Faust's `topic.send` costs 150 µs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from freshet.adapters.kafka_access import librdkafka_access
from freshet.ports import DeliveryError, Message, TooLargeError
from freshet.settings import Settings

DELIVERY_SECONDS = 30.0
"""A record not acknowledged by then fails the batch, and with it the worker."""
LINGER_MS = 0.5
"""How long a record waits for others: a batch's are handed over together, and each stage waits for the one before."""
POLL_SECONDS = 0.001
"""How often delivery reports are asked for while any is awaited."""
_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})


def client_config(settings: Settings) -> dict[str, Any]:
    """Connection settings of librdkafka. Raises `AccessError`."""
    config = {"bootstrap.servers": settings.kafka} | librdkafka_access(settings)
    if settings.kafka_rack:
        config["client.rack"] = settings.kafka_rack
    return config | settings.librdkafka


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

    def __init__(
        self,
        settings: Settings,
        check: Callable[[], None] | None = None,
        delivery_seconds: float = DELIVERY_SECONDS,
    ) -> None:
        """`check` is called before records are handed over, and may end the process.

        A record that the broker has not acknowledged after `delivery_seconds` has failed.
        """
        self._check = check
        self._producer = Producer(
            client_config(settings)
            | {
                "enable.idempotence": True,
                "linger.ms": LINGER_MS,
                "delivery.timeout.ms": int(delivery_seconds * 1000),
                "queue.buffering.max.messages": 1_000_000,
                "partitioner": "murmur2_random",
                "logger": logging.getLogger("librdkafka"),
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
