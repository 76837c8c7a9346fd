"""Freshet's topics, each with the shape that its content needs."""

from collections.abc import Mapping
from typing import NamedTuple

from kafka.admin import KafkaAdminClient
from kafka.errors import TopicAlreadyExistsError


class TopicShape(NamedTuple):
    """How a topic is created: its partitions and its configuration."""

    partitions: int
    config: Mapping[str, str]


def topic_shapes(
    partitions: int,
    *,
    events: str = "events",
    items: str = "items",
    recommendations: str = "recommendations",
    dead_letters: str = "events.dlq",
    models: str = "models",
    popularity: str = "popularity",
) -> dict[str, TopicShape]:
    """The shape of each topic, by its name.

    Events carry the broker's append time as their record time: retention then goes by arrival, so that a stream
    replayed from years ago is not deleted on arrival. The event's own time is in its value.

    Args:
        partitions: Of the topics keyed by user; the others have one.
        events: The source topic.
        items: The catalogue.
        recommendations: The lists.
        dead_letters: Bad input, with its reason.
        models: Rollout records.
        popularity: Each partition's popularity counts; every version of the last day is kept.
    """
    compacted = {"cleanup.policy": "compact"}
    return {
        events: TopicShape(partitions, {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}),
        items: TopicShape(1, compacted),
        recommendations: TopicShape(partitions, {"cleanup.policy": "compact,delete"}),
        dead_letters: TopicShape(partitions, {"cleanup.policy": "delete"}),
        models: TopicShape(1, compacted),
        popularity: TopicShape(1, {"cleanup.policy": "compact", "min.compaction.lag.ms": "86400000"}),
    }


def create_topics(bootstrap: str, partitions: int, **names: str) -> list[str]:
    """Create the topics that a plain broker does not have yet, a copy of each, and wait until each has its leaders.

    Args:
        bootstrap: A broker's address, ``host:port``.
        partitions: Of the topics keyed by user; the others have one.
        names: The topics' names, as `topic_shapes` takes them.

    Returns:
        The names of the topics that were created.

    Raises:
        kafka.errors.KafkaError: The broker is away or refused.
    """
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        present = set(admin.list_topics())
        missing: dict[str, dict[str, object]] = {
            name: {"num_partitions": shape.partitions, "replication_factor": 1, "configs": dict(shape.config)}
            for name, shape in topic_shapes(partitions, **names).items()
            if name not in present
        }
        if missing:
            _create(admin, missing)
    finally:
        admin.close()
    return list(missing)


def _create(admin: KafkaAdminClient, topics: dict[str, dict[str, object]]) -> None:
    try:
        admin.create_topics(topics, wait_for_metadata=True)
    except TopicAlreadyExistsError:
        # somebody else created one between our look and our request
        admin.wait_for_topics(list(topics))
