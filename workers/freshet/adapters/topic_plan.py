"""The topics of an installation: how they should be, how they are, and what to do about the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from freshet.adapters.kafka import client_config
from freshet.adapters.source import changelog_topic
from freshet.adapters.topic_creation import topic_shapes
from freshet.adapters.topics import topic_config
from freshet.settings import Settings

SECONDS = 10.0
QUIET = 2
"""The level of librdkafka's own log: the worst alone."""
CLUSTER_DEFAULT = -1
"""A replication factor: the cluster's own `default.replication.factor`."""
REPLICAS, IN_SYNC = 3, 2
"""Replicas, and those that must have a record, where there are brokers enough: one broker may be away."""


class PlannedTopic(NamedTuple):
    """How a topic should be; a replication of -1 is the cluster's default."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]


class FoundTopic(NamedTuple):
    """How a topic is; the configuration is None where this user may not read it."""

    partitions: int
    replication: int
    config: Mapping[str, str] | None


def open_admin(settings: Settings) -> AdminClient:
    """A client for the requests of this module, whose errors are the caller's to say. Raises `AccessError`."""
    return AdminClient(client_config(settings) | {"log_level": QUIET, "error_cb": lambda _error: None})


def topic_plan(settings: Settings, partitions: int, replication: int) -> list[PlannedTopic]:
    """Every topic as it should be; `partitions` is for those that are keyed by user."""
    shapes = topic_shapes(
        partitions,
        events=settings.events_topic,
        items=settings.items_topic,
        recommendations=settings.recommendations_topic,
        dead_letters=settings.dlq_topic,
        models=settings.models_topic,
        popularity=settings.popularity_topic,
    )
    safe = {"min.insync.replicas": str(IN_SYNC)} if replication >= REPLICAS else {}
    plan = [
        PlannedTopic(name, shape.partitions, replication, {**shape.config, **safe}) for name, shape in shapes.items()
    ]
    states = {"cleanup.policy": "compact"} | safe
    if settings.changelog_min_insync_replicas is not None:
        states["min.insync.replicas"] = str(settings.changelog_min_insync_replicas)
    own = settings.changelog_replication_factor or replication
    return [*plan, PlannedTopic(changelog_topic(settings.group), partitions, own, states)]


def default_replication(admin: AdminClient) -> int:
    """Three replicas where there are three brokers, else the cluster's default. Raises `KafkaException`."""
    brokers = len(admin.list_topics(timeout=SECONDS).brokers)
    return REPLICAS if brokers >= REPLICAS else CLUSTER_DEFAULT


def found_topics(admin: AdminClient, plan: Sequence[PlannedTopic]) -> dict[str, FoundTopic]:
    """Those of the planned topics that the cluster has. Raises `KafkaException`."""
    topics = admin.list_topics(timeout=SECONDS).topics
    return {
        planned.name: FoundTopic(
            len(topics[planned.name].partitions),
            min(len(partition.replicas) for partition in topics[planned.name].partitions.values()),
            topic_config(admin, planned.name),
        )
        for planned in plan
        if planned.name in topics
    }


def topic_faults(planned: PlannedTopic, found: FoundTopic | None) -> list[str]:
    """What is not as planned about a topic, a sentence each that says what to do."""
    name = planned.name
    if found is None:
        return [f"topic {name} is missing: `freshet topics create`"]
    faults = []
    if found.partitions != planned.partitions:
        faults.append(f"topic {name} has {found.partitions} partitions, planned are {planned.partitions}")
    if planned.replication > 0 and found.replication < planned.replication:
        faults.append(
            f"topic {name} has {found.replication} replicas, planned are {planned.replication}: "
            "`kafka-reassign-partitions` adds them"
        )
    config = found.config or {}
    for option, value in planned.config.items():
        if option in config and _parts(config[option]) != _parts(value):
            faults.append(f"topic {name} has {option}={config[option]}: set {option}={value}")
    return faults


def _parts(value: str) -> set[str]:
    return set(value.split(","))


def create_planned(admin: AdminClient, missing: Sequence[PlannedTopic]) -> None:
    """Create topics. Raises `KafkaException`; a topic that somebody else created meanwhile is no error."""
    new = [NewTopic(topic.name, topic.partitions, topic.replication, config=dict(topic.config)) for topic in missing]
    for created in admin.create_topics(new).values() if new else ():
        try:
            created.result(SECONDS)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
