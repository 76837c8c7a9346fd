"""What a worker asks the broker before it begins: are the topics as they should be."""

from __future__ import annotations

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from freshet.adapters.kafka import client_config
from freshet.adapters.source import SourceReader, changelog_faults, create_changelog, source_faults
from freshet.adapters.topics import missing_topics, side_input_faults
from freshet.serving.first_version import StartError
from freshet.serving.source_watch import known_topic_id
from freshet.settings import Settings


def events_partitions(settings: Settings) -> int:
    """The number of partitions of the events topic; sees on the way that all topics are as they should be."""
    admin = AdminClient(client_config(settings))
    try:
        topics = admin.list_topics(timeout=10).topics
        faults = side_input_faults(settings, admin)
    except KafkaException as error:
        raise StartError(f"Kafka at {settings.kafka} does not answer: {error.args[0].str()}") from None
    faults += missing_topics(topics, (settings.events_topic, settings.recommendations_topic, settings.dlq_topic))
    if faults:
        raise StartError("; ".join(faults))
    partitions = len(topics[settings.events_topic].partitions)
    try:
        create_changelog(settings, admin, partitions)
        faults = changelog_faults(settings, admin, partitions)
        faults += source_faults(settings, SourceReader(settings).read(), known_topic_id(settings))
    except KafkaException as error:
        raise StartError(f"Kafka at {settings.kafka}: {error.args[0].str()}") from None
    if faults:
        raise StartError("; ".join(faults))
    return partitions
