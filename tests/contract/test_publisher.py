"""The contract of a `Publisher`, over every backend."""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Protocol

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import NewTopic
from freshet.adapters import kafka as kafka_adapter
from freshet.adapters.kafka import KafkaPublisher
from freshet.ports import DeliveryError, Message, Publisher, TooLargeError
from freshet.settings import Settings

from tests.contract.topics import make_topic
from tests.memory_ports import MemoryPublisher

PARTITIONS = 3


class Backend(Protocol):
    """A publisher, a topic it may write, and the means to see what is there."""

    publisher: Publisher
    topic: str

    def published(self) -> list[Message]:
        """What the topic holds, in the order of each key."""


class Memory:
    """Everything in memory."""

    def __init__(self) -> None:
        self.publisher = MemoryPublisher()
        self.topic = "lists"

    def published(self) -> list[Message]:
        """What was kept."""
        return self.publisher.messages


class Kafka:
    """A real broker."""

    def __init__(self, broker: str, topic: str) -> None:
        self.topic, self._broker = topic, broker
        make_topic(broker, NewTopic(topic, PARTITIONS, config={"max.message.bytes": "100000"}))
        self.publisher = KafkaPublisher(Settings(kafka=broker))

    def published(self) -> list[Message]:
        """What the broker has right now, partition by partition."""
        return [message for partition in range(PARTITIONS) for message in self.partition(partition)]

    def partition(self, number: int) -> list[Message]:
        """What a partition has right now."""
        consumer = Consumer({"bootstrap.servers": self._broker, "group.id": "judge", "enable.auto.commit": False})
        at = TopicPartition(self.topic, number, 0)
        _, end = consumer.get_watermark_offsets(at, timeout=30)
        consumer.assign([at])
        found: list[Message] = []
        while len(found) < end:
            message = consumer.poll(30)
            assert message is not None
            found.append(Message(self.topic, message.key(), message.value(), tuple(message.headers() or ())))
        consumer.close()
        return found


@pytest.fixture
def kafka(broker: str, unique: Callable[[str], str]) -> Iterator[Kafka]:
    """A publisher to a real broker, with a topic of its own."""
    backend = Kafka(broker, unique("lists"))
    yield backend
    backend.publisher.close()


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.integration)])
def backend(request: pytest.FixtureRequest) -> Backend:
    """A backend of each kind."""
    return Memory() if request.param == "memory" else request.getfixturevalue("kafka")


def by_key(messages: Sequence[Message]) -> dict[bytes | None, list[bytes | None]]:
    """The values under each key, in order."""
    values: dict[bytes | None, list[bytes | None]] = {}
    for message in messages:
        values.setdefault(message.key, []).append(message.value)
    return values


async def test_what_was_published_is_there_on_return(backend: Backend) -> None:
    """Key, value and headers are on the broker when `publish` returns."""
    message = Message(backend.topic, b"ann", b"a list", (("reason", b"none"), ("empty", b"")))
    await backend.publisher.publish([message])
    assert backend.published() == [message]


async def test_nothing_to_publish_is_nothing_done(backend: Backend) -> None:
    """An empty batch returns at once."""
    await backend.publisher.publish([])
    assert backend.published() == []


async def test_a_tombstone_is_a_record_without_value(backend: Backend) -> None:
    """A value of None stays None."""
    await backend.publisher.publish([Message(backend.topic, b"ann", b""), Message(backend.topic, b"bob", None)])
    assert by_key(backend.published()) == {b"ann": [b""], b"bob": [None]}


async def test_a_key_keeps_its_order(backend: Backend) -> None:
    """Records of a key keep their order within a batch and between batches."""
    values = [str(number).encode() for number in range(400)]
    batches = [values[start : start + 100] for start in range(0, 400, 100)]
    for batch in batches:
        await backend.publisher.publish(
            [Message(backend.topic, key, value) for value in batch for key in (b"ann", b"bob", b"cyd")]
        )
    assert by_key(backend.published()) == {b"ann": values, b"bob": values, b"cyd": values}


async def test_a_record_may_have_no_key(backend: Backend) -> None:
    """A record without key is published."""
    await backend.publisher.publish([Message(backend.topic, None, b"junk")])
    assert backend.published() == [Message(backend.topic, None, b"junk")]


@pytest.mark.integration
async def test_keys_lie_where_other_clients_look_for_them(kafka: Kafka) -> None:
    """A key's partition is murmur2 of the key modulo the number of partitions."""
    keys = [f"user-{number}".encode() for number in range(60)]
    await kafka.publisher.publish([Message(kafka.topic, key, b"x") for key in keys])
    for number in range(PARTITIONS):
        for message in kafka.partition(number):
            assert (murmur2(message.key or b"") & 0x7FFF_FFFF) % PARTITIONS == number


def murmur2(data: bytes) -> int:
    """Kafka's murmur2, 32 bits, after `org.apache.kafka.common.utils.Utils`."""
    mask, m = 0xFFFF_FFFF, 0x5BD1_E995
    h = (0x9747_B28C ^ len(data)) & mask
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def test_murmur2_is_kafkas() -> None:
    """murmur2 gives the values of Kafka's own tests."""
    given = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
    for data, hashed in given.items():
        assert murmur2(data) == hashed & 0xFFFF_FFFF


@pytest.mark.integration
@pytest.mark.parametrize("size", [300_000, 2_000_000])
async def test_a_record_too_large_is_named_and_the_others_are_published(kafka: Kafka, size: int) -> None:
    """`publish` raises with the record that is too large after it has published the others."""
    good = [Message(kafka.topic, b"ann", b"x"), Message(kafka.topic, b"bob", b"y")]
    large = Message(kafka.topic, b"ann", Random(1).randbytes(size))  # no compression makes it small
    with pytest.raises(TooLargeError, match=kafka.topic) as refused:
        await kafka.publisher.publish([good[0], large, good[1]])
    assert refused.value.messages == [large]
    assert by_key(kafka.published()) == {b"ann": [b"x"], b"bob": [b"y"]}


@pytest.mark.integration
async def test_a_batch_larger_than_the_topic_takes_is_published(kafka: Kafka) -> None:
    """Records that fit singly are published where their batch would be too large."""
    messages = [Message(kafka.topic, b"ann", Random(number).randbytes(60_000)) for number in range(4)]
    await kafka.publisher.publish(messages)
    assert sorted(by_key(kafka.published())[b"ann"]) == sorted(message.value for message in messages)


@pytest.mark.integration
async def test_a_topic_that_is_not_there_fails_the_batch(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch for a missing topic fails at the delivery time-out, and the topic is not made."""
    monkeypatch.setattr(kafka_adapter, "DELIVERY_SECONDS", 2.0)
    publisher = KafkaPublisher(Settings(kafka=broker))
    with pytest.raises(DeliveryError, match="nowhere"):
        await publisher.publish([Message("nowhere", b"ann", b"x")])
    publisher.close()


@pytest.mark.integration
async def test_one_partition_can_be_named(kafka: Kafka) -> None:
    """`publish_to` writes to the named partition and returns the highest offset."""
    messages = [Message(kafka.topic, key, b"x") for key in (b"ann", b"bob", b"cyd")]
    assert await kafka.publisher.publish_to(2, messages) == 2
    assert await kafka.publisher.publish_to(2, messages[:1]) == 3
    assert [message.key for message in kafka.partition(2)] == [b"ann", b"bob", b"cyd", b"ann"]
    assert kafka.partition(0) == kafka.partition(1) == []
