"""`topics`: Freshet's topics on a cluster, and who may do what with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from confluent_kafka import KafkaException

from freshet.adapters.kafka_roles import ROLES, Role, acl_commands, grants
from freshet.adapters.topic_plan import (
    CLUSTER_DEFAULT,
    FoundTopic,
    PlannedTopic,
    create_planned,
    default_replication,
    found_topics,
    open_admin,
    topic_faults,
    topic_plan,
)
from freshet.cli.console import emit, rows, say
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, resolve
from freshet.client.connection import failed
from freshet.settings import Settings

app = typer.Typer(help="Freshet's topics on a cluster, and who may do what with them.", no_args_is_help=True)

Partitions = Annotated[
    int, typer.Option(min=1, max=1024, help="Partitions of the topics keyed by user; two per worker overlap well.")
]
Replication = Annotated[
    int | None,
    typer.Option(min=1, help="Copies of each partition; by default 3 where there are 3 brokers, else the cluster's."),
]


@app.command("plan")
def plan(
    partitions: Partitions = 8,
    replication: Replication = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    as_json: Json = False,
) -> None:
    """Show each topic as it should be and what is different on the cluster; nothing is changed."""
    settings = resolve(config, directory, kafka=kafka).settings
    planned, found = compared(settings, partitions, replication)
    if as_json:
        emit([topic._asdict() | {"faults": topic_faults(topic, found.get(topic.name))} for topic in planned])
        return
    lines = [("topic", "partitions", "replicas", "configuration", "on the cluster")]
    for topic in planned:
        there = found.get(topic.name)
        state = "missing" if there is None else "; ".join(topic_faults(topic, there)) or "as planned"
        replicas = "cluster's" if topic.replication == CLUSTER_DEFAULT else str(topic.replication)
        options = " ".join(f"{option}={value}" for option, value in sorted(topic.config.items()))
        lines.append((topic.name, str(topic.partitions), replicas, options, state))
    rows(lines, ("bold", "", "", "", ""), head=True)


@app.command("create")
def create(
    partitions: Partitions = 8,
    replication: Replication = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
) -> None:
    """Create the topics that are missing, each with the shape that its content needs."""
    settings = resolve(config, directory, kafka=kafka).settings
    created = make_topics(settings, partitions, replication)
    say(f"created {', '.join(created)} at {settings.kafka}" if created else f"all topics are there at {settings.kafka}")


@app.command("check")
def check(
    partitions: Partitions = 8,
    replication: Replication = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
) -> None:
    """Compare the cluster's topics with the plan; exit 1 where any is not as planned."""
    settings = resolve(config, directory, kafka=kafka).settings
    planned, found = compared(settings, partitions, replication)
    faults = [fault for topic in planned for fault in topic_faults(topic, found.get(topic.name))]
    if faults:
        raise UserError("\n".join(faults))
    say(f"all {len(planned)} topics are as planned at {settings.kafka}")


@app.command("acls")
def acls(
    role: Annotated[Role | None, typer.Argument(help="A role; without it a table of all roles.")] = None,
    principal: Annotated[str | None, typer.Option(help="Who gets the role; by default `User:ROLE`.")] = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
) -> None:
    """Print the `kafka-acls` lines that give a principal a role, or the table of roles."""
    settings = resolve(config, directory, kafka=kafka).settings
    if role is not None:
        for line in acl_commands(settings, role, principal or f"User:{role}"):
            typer.echo(line)
        return
    lines = [("role", "on", "may", "in order to")]
    for name, purpose in ROLES.items():
        for number, grant in enumerate(grants(settings, name)):
            shown = (name, purpose) if number == 0 else ("", "")
            lines.append((shown[0], f"{grant.kind} {grant.name}", " ".join(grant.operations), shown[1]))
    rows(lines, ("bold", "", "", ""), head=True)


def make_topics(settings: Settings, partitions: int, replication: int | None = None) -> list[str]:
    """Create the topics that are missing; returns their names. Raises `UserError`."""
    planned, found = compared(settings, partitions, replication)
    missing = [topic for topic in planned if topic.name not in found]
    with said_by_librdkafka(settings):
        create_planned(open_admin(settings), missing)
    return [topic.name for topic in missing]


def compared(
    settings: Settings, partitions: int, replication: int | None
) -> tuple[list[PlannedTopic], dict[str, FoundTopic]]:
    """The plan, and those of its topics that the cluster has. Raises `UserError`."""
    with said_by_librdkafka(settings):
        admin = open_admin(settings)
        planned = topic_plan(settings, partitions, replication or default_replication(admin))
        return planned, found_topics(admin, planned)


@contextmanager
def said_by_librdkafka(settings: Settings) -> Iterator[None]:
    """Errors of librdkafka, as other verbs say them. Raises `ConnectionFailedError`."""
    try:
        yield
    except KafkaException as error:
        raise failed(settings, error.args[0]) from None
