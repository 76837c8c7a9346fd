"""A connection to Kafka that is tried before it is used: what is wrong is said at once, with its remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from freshet.adapters.kafka import client_config
from freshet.errors import FreshetError
from freshet.settings import Settings

ANSWER_SECONDS = 10.0
"""A broker that has not answered by then does not."""
QUIET = 2
"""Librdkafka's own log goes to stderr: from here on, as syslog counts."""

Client = TypeVar("Client")


class ClientError(FreshetError):
    """A client of the stream cannot do what was asked."""


class ConnectionFailedError(ClientError):
    """Kafka does not answer, or does not let the client in."""


class NoTopicError(ClientError):
    """The broker has no topic of this name."""


def no_topic(settings: Settings, topic: str) -> NoTopicError:
    """The error of a topic that is not there."""
    return NoTopicError(f"topic {topic} does not exist at {settings.kafka}: create it, or run `freshet up`")


def failed(settings: Settings, error: KafkaError) -> ConnectionFailedError:
    """The error of a broker that cannot be reached."""
    why = error.str().splitlines()[0]
    return ConnectionFailedError(
        f"Kafka at {settings.kafka} does not answer ({why}): `freshet up` starts one, "
        "the setting `kafka` (--kafka, FRESHET_KAFKA) names another"
    )


def connect(
    kind: Callable[[dict[str, Any]], Client], settings: Settings, topic: str, **options: Any
) -> tuple[Client, list[int]]:
    """Open a client and return it with the partitions of a topic, in order.

    Raises `ConnectionFailedError` and `NoTopicError`.
    """
    errors: list[KafkaError] = []
    config = client_config(settings) | {"log_level": QUIET, "error_cb": errors.append, **options}
    try:
        client: Any = kind(config)
    except KafkaException as error:  # a setting that librdkafka cannot use, as a file that is not there
        raise ConnectionFailedError(
            f"no connection to Kafka can be made ({error.args[0].str()}): see to kafka_security "
            f"({settings.kafka_security}), kafka_ca ({settings.kafka_ca}), kafka_username and kafka_password"
        ) from None
    try:
        topics = client.list_topics(timeout=ANSWER_SECONDS).topics
    except KafkaException as error:
        client.poll(0)  # hands over what happened meanwhile
        raise failed(settings, (errors or error.args)[0]) from None
    if topic not in topics:
        raise no_topic(settings, topic)
    return client, sorted(topics[topic].partitions)
