"""Freshet's topics, each with the cleanup policy its content needs."""

from typing import Any

from kafka.admin import KafkaAdminClient
from kafka.errors import TopicAlreadyExistsError


def create_topics(
    bootstrap: str,
    partitions: int,
    *,
    events: str = "events",
    items: str = "items",
    recommendations: str = "recommendations",
    dead_letters: str = "events.dlq",
    models: str = "models",
    popularity: str = "popularity",
    replication: int = 1,
    **client: Any,
) -> list[str]:
    """Create the topics that are not there yet, and wait until each has its leaders.

    Events carry the broker's append time as their record time: retention then goes by arrival, so
    that a stream replayed from years ago is not deleted on arrival; the event's own time is in its
    value.

    Args:
        bootstrap: A broker's address, ``host:port``.
        partitions: Of the topics keyed by user; the others have one.
        events: The source topic.
        items: The catalogue.
        recommendations: The lists.
        dead_letters: Bad input, with its reason.
        models: Rollout records.
        popularity: Each partition's popularity counts; every version of the last day is kept.
        replication: Copies of each partition.
        client: How kafka-python reaches the broker, beside its address.

    Returns:
        The names of the topics that were created.

    Raises:
        kafka.errors.KafkaError: The broker is away or refused.
    """
    compacted = {"cleanup.policy": "compact"}
    wanted: dict[str, tuple[int, dict[str, str]]] = {
        events: (
            partitions,
            {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"},
        ),
        items: (1, compacted),
        recommendations: (partitions, {"cleanup.policy": "compact,delete"}),
        dead_letters: (partitions, {"cleanup.policy": "delete"}),
        models: (1, compacted),
        popularity: (1, {"cleanup.policy": "compact", "min.compaction.lag.ms": "86400000"}),
    }
    admin = KafkaAdminClient(**{"bootstrap_servers": bootstrap} | client)
    try:
        present = set(admin.list_topics())
        missing = {
            name: {
                "num_partitions": count,
                "replication_factor": replication,
                "configs": configs,
            }
            for name, (count, configs) in wanted.items()
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
