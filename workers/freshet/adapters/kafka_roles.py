"""Who may do what on Kafka: the access-control entries that each role of an installation needs."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Literal, NamedTuple

from freshet.adapters.source import changelog_topic
from freshet.settings import Settings

Role = Literal[
    "worker", "application", "catalogue", "reader", "archiver", "publisher", "trainer", "auditor", "operator"
]
ROLES: dict[Role, str] = {
    "worker": "folds events, publishes lists",
    "application": "produces events",
    "catalogue": "produces catalogue items",
    "reader": "reads lists",
    "archiver": "keeps topics as Parquet",
    "publisher": "publishes, promotes and rolls back versions",
    "trainer": "reads events and items to train",
    "auditor": "replays, verifies, explains; writes nothing",
    "operator": "looks at dead letters and sends them again",
}
"""Each role and what it does."""


class Grant(NamedTuple):
    """What a role may do with one topic or group."""

    kind: Literal["topic", "group"]
    name: str
    operations: tuple[str, ...]


def grants(settings: Settings, role: Role) -> list[Grant]:
    """The entries of a role, under the names that the settings give topics and groups.

    `Read` and `Write` include `Describe`. The changelog and the other topics are there already: no role creates any.
    """
    topics = {
        "events": settings.events_topic,
        "items": settings.items_topic,
        "models": settings.models_topic,
        "popularity": settings.popularity_topic,
        "lists": settings.recommendations_topic,
        "dead letters": settings.dlq_topic,
        "states": changelog_topic(settings.group),
    }

    def of(operations: str, *names: str) -> list[Grant]:
        return [Grant("topic", topics[name], tuple(operations.split())) for name in names]

    def group(name: str) -> list[Grant]:
        return [Grant("group", name, ("Read",))]

    entries: dict[Role, Callable[[], list[Grant]]] = {
        "worker": lambda: [
            *of("Read DescribeConfigs", "events", "items"),
            *of("Read Write DescribeConfigs", "models", "popularity", "states"),
            *of("Write", "lists", "dead letters"),
            *group(settings.group),
        ],
        "application": lambda: of("Write", "events"),
        "catalogue": lambda: of("Write", "items"),
        "reader": lambda: of("Read", "lists"),
        "archiver": lambda: [*of("Read", "events", "items", "popularity"), *group(f"{settings.group}-archive")],
        "publisher": lambda: of("Read Write", "models"),
        "trainer": lambda: of("Read", "events", "items", "models"),
        "auditor": lambda: of("Read", "events", "items", "models", "popularity", "lists", "states"),
        "operator": lambda: [*of("Read", "dead letters"), *of("Read Write", "events")],
    }
    return entries[role]()


def acl_commands(settings: Settings, role: Role, principal: str) -> list[str]:
    """The lines of `kafka-acls` that give a principal (`User:name`) a role."""
    lines = []
    for grant in grants(settings, role):
        words = ["kafka-acls", "--bootstrap-server", settings.kafka, "--add", "--allow-principal", principal]
        for operation in grant.operations:
            words += ["--operation", operation]
        lines.append(shlex.join([*words, f"--{grant.kind}", grant.name]))
    return lines
