"""The events topic as the broker tells of it, with a stand-in for the broker's answers."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaException, TopicPartition
from freshet.adapters import source
from freshet.adapters.source import SourceReader
from freshet.settings import Settings


def answer(value: Any) -> Any:
    """A future that holds a value."""
    return SimpleNamespace(result=lambda: value)


class Broker:
    """The answers of a broker about a topic of two partitions whose group commits at once what is produced."""

    def __init__(self, _config: Any) -> None:
        self.end = 5
        self.leaders = True

    def describe_topics(self, topics: Any, **_: Any) -> dict[str, Any]:
        """The topic's id and partitions."""
        del topics
        partitions = [SimpleNamespace(id=number) for number in (0, 1)]
        return {"events": answer(SimpleNamespace(topic_id="id", partitions=partitions))}

    def list_offsets(self, asked: dict[TopicPartition, Any], **_: Any) -> dict[TopicPartition, Any]:
        """The offset of each partition; librdkafka gives -1001 for a partition without a leader."""
        missing = {} if self.leaders else {1: -1001}
        return {at: answer(SimpleNamespace(offset=missing.get(at.partition, self.end))) for at in asked}

    def committed(self, partitions: list[TopicPartition], **_: Any) -> list[TopicPartition]:
        """All that is produced is committed, and three records more are produced."""
        committed = [TopicPartition(at.topic, at.partition, self.end) for at in partitions]
        self.end += 3
        return committed


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Read the topic, from a broker that has its leaders or not."""

    def go(*, leaders: bool = True) -> Any:
        broker = Broker({})
        broker.leaders = leaders
        monkeypatch.setattr(source, "AdminClient", lambda _config: broker)
        monkeypatch.setattr(source, "Consumer", lambda _config: broker)
        return SourceReader(Settings()).read()

    return go


def test_an_offset_that_is_committed_while_the_topic_is_read_is_below_its_end(read: Callable[..., Any]) -> None:
    """A worker that commits between two requests has not passed the end of the topic."""
    found = read()
    assert all(found.committed[partition] <= found.ends[partition] for partition in (0, 1))


def test_a_partition_without_a_leader_has_no_offset(read: Callable[..., Any]) -> None:
    """While a partition waits for a new leader nothing is known of it, and a topic that lost records it is not."""
    with pytest.raises(KafkaException, match=r"partitions \[1\] of events have no leader"):
        read(leaders=False)
