"""The shape of the side-input topics: what a worker relies on, told before it starts."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from freshet.settings import Settings

SECONDS = 10.0

log = logging.getLogger(__name__)


def missing_topics(present: Container[str], names: Iterable[str]) -> list[str]:
    """A sentence for each topic that the broker does not have."""
    return [f"topic {name} does not exist: create it, or run `freshet up`" for name in names if name not in present]


def side_input_faults(settings: Settings, admin: AdminClient) -> list[str]:
    """What is wrong with the topics of items, versions and popularity, a sentence each that says what to do.

    A worker reads each of them whole, in the order of one partition, at every start. Retention would take away what
    was written long ago and still holds. Raises `KafkaException` where the broker does not answer.
    """
    names = (settings.items_topic, settings.models_topic, settings.popularity_topic)
    topics = admin.list_topics(timeout=SECONDS).topics
    faults = missing_topics(topics, names)
    for name in names:
        if name not in topics:
            continue
        if (count := len(topics[name].partitions)) != 1:
            faults.append(
                f"topic {name} has {count} partitions, of which only the first would be read: "
                f"delete it, create it with 1 partition, and produce its records again"
            )
        config = topic_config(admin, name)
        policy = config["cleanup.policy"] if config is not None else "compact"
        if policy != "compact":
            faults.append(
                f"topic {name} has cleanup.policy={policy}, so that records which still hold would be deleted: "
                f"set cleanup.policy=compact"
            )
    return faults


def topic_config(admin: AdminClient, topic: str) -> dict[str, str] | None:
    """The topic's configuration; None where this user may not read it. Raises `KafkaException`."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    try:
        config = admin.describe_configs([resource], request_timeout=SECONDS)[resource].result(SECONDS)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise
        log.warning("topic configuration unknown", extra={"topic": topic, "why": error.args[0].str()})
        return None
    return {name: str(entry.value) for name, entry in config.items()}
