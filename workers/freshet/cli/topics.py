"""`topics`: Freshet's topics on a broker."""

from __future__ import annotations

from typing import Annotated

import typer

from freshet.adapters.kafka_python import client_config
from freshet.cli.connections import said_plainly
from freshet.cli.console import say
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Kafka, resolve
from freshet.settings import Settings


def topics(
    partitions: Annotated[
        int, typer.Option(min=1, max=1024, help="Partitions of the topics keyed by user; two per worker overlap well.")
    ] = 8,
    replication: Annotated[int, typer.Option(min=1, help="Copies of each partition.")] = 1,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
) -> None:
    """Create the topics that are missing, each with the cleanup policy that its content needs."""
    settings = resolve(config, directory, kafka=kafka).settings
    created = make_topics(settings, partitions, replication)
    say(f"created {', '.join(created)} at {settings.kafka}" if created else f"all topics are there at {settings.kafka}")


def make_topics(settings: Settings, partitions: int, replication: int = 1) -> list[str]:
    """Create the topics that are missing; returns their names. Raises `UserError`."""
    from freshet.adapters.topic_creation import create_topics

    with said_plainly(settings):
        return create_topics(
            settings.kafka,
            partitions,
            events=settings.events_topic,
            items=settings.items_topic,
            recommendations=settings.recommendations_topic,
            dead_letters=settings.dlq_topic,
            models=settings.models_topic,
            popularity=settings.popularity_topic,
            replication=replication,
            **client_config(settings),
        )
