"""Three brokers with access control: topics with replicas, each role with its rights, a broker killed under load."""

import json
import shlex
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from freshet.adapters.kafka_python import new_consumer
from freshet.adapters.kafka_roles import ROLES
from freshet.cli import app
from freshet.core.events import Event
from freshet.settings import load_settings
from kafka import TopicPartition
from kafka.errors import TopicAuthorizationFailedError
from typer.testing import CliRunner

from deploy.local import Stack
from tests.integration.deployment import Deployment, until
from tests.integration.kafka_cluster import PASSWORD, Cluster

pytestmark = pytest.mark.integration

PARTITIONS = 2
SECONDS = 10.0
MAY: dict[str, dict[str, str]] = {
    "worker": {
        "events": "r",
        "items": "r",
        "models": "rw",
        "popularity": "rw",
        "recommendations": "w",
        "events.dlq": "w",
        "changelog": "rw",
    },
    "application": {"events": "w"},
    "catalogue": {"items": "w"},
    "reader": {"recommendations": "r"},
    "archiver": {"events": "r", "items": "r", "popularity": "r"},
    "publisher": {"models": "rw"},
    "trainer": {"events": "r", "items": "r", "models": "r"},
    "auditor": {
        "events": "r",
        "items": "r",
        "models": "r",
        "popularity": "r",
        "recommendations": "r",
        "changelog": "r",
    },
    "operator": {"events.dlq": "r", "events": "rw"},
}
"""Which topics each role reads (r) and writes (w); every other access is refused."""


TOPIC_SETTINGS = {
    "EVENTS_TOPIC": "events",
    "ITEMS_TOPIC": "items",
    "RECOMMENDATIONS_TOPIC": "recommendations",
    "DLQ_TOPIC": "events.dlq",
    "MODELS_TOPIC": "models",
    "POPULARITY_TOPIC": "popularity",
}


class ClusterStack(Stack):
    """The shared Triton beside the three brokers."""

    brokers = ""

    @property
    def bootstrap(self) -> str:
        """The brokers' addresses."""
        return self.brokers


@pytest.fixture(scope="module")
def cluster(parts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three brokers, with an account for each role."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), tuple(ROLES))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def deployment(cluster: Cluster, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Topics made by `freshet topics create`, the rights that `freshet topics acls` prints, and a place for workers."""
    mixed = ClusterStack(stack.directory, stack.ports, stack.shipped_models, stack.processes)
    mixed.brokers = cluster.superuser
    environment = {"FRESHET_KAFKA": cluster.superuser, "FRESHET_GROUP": "cluster"} | {
        f"FRESHET_{setting}": f"cluster.{topic}" for setting, topic in TOPIC_SETTINGS.items()
    }
    run(environment, "topics", "create", "--partitions", str(PARTITIONS))
    admin = AdminClient({"bootstrap.servers": cluster.superuser})
    bindings = [
        binding
        for role in ROLES
        for line in run(environment, "topics", "acls", role).splitlines()
        for binding in bindings_of(line)
    ]
    for created in admin.create_acls(bindings).values():
        created.result(SECONDS)
    made = Deployment(mixed, tmp_path_factory.mktemp("deployment"), "cluster", PARTITIONS, **as_role(cluster, "worker"))
    yield made
    made.close()


def as_role(cluster: Cluster, role: str) -> dict[str, str]:
    """The settings of somebody with a role."""
    return {
        "FRESHET_KAFKA": cluster.users,
        "FRESHET_KAFKA_SECURITY": "SASL_PLAINTEXT",
        "FRESHET_KAFKA_MECHANISM": "PLAIN",
        "FRESHET_KAFKA_USERNAME": role,
        "FRESHET_KAFKA_PASSWORD": PASSWORD,
    }


def run(environment: dict[str, str], *arguments: str) -> str:
    """Run a verb; its output."""
    done = CliRunner().invoke(app, list(arguments), env=environment)
    assert done.exit_code == 0, done.output
    return done.stdout


def bindings_of(line: str) -> list[AclBinding]:
    """A line of `kafka-acls` as requests of the admin client."""
    words = shlex.split(line)
    options = list(pairwise(words))
    [principal] = [value for option, value in options if option == "--allow-principal"]
    [(kind, name)] = [(option[2:], value) for option, value in options if option in ("--topic", "--group")]
    operations = {"Read": "READ", "Write": "WRITE", "DescribeConfigs": "DESCRIBE_CONFIGS"}
    return [
        AclBinding(
            ResourceType[kind.upper()],
            name,
            ResourcePatternType.LITERAL,
            principal,
            "*",
            AclOperation[operations[value]],
            AclPermissionType.ALLOW,
        )
        for option, value in options
        if option == "--operation"
    ]


def client(cluster: Cluster, role: str) -> dict[str, Any]:
    """The configuration of a client with a role's password."""
    return {
        "bootstrap.servers": cluster.users,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": role,
        "sasl.password": PASSWORD,
        "log_level": 2,
        "error_cb": lambda _error: None,
    }


def may_read(consumer: Any, topic: str) -> bool:
    """Whether a topic can be read; somebody who may do nothing with a topic does not see it."""
    if not consumer.partitions_for_topic(topic):
        return False
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            if consumer.poll(timeout_ms=200):
                return True
    except TopicAuthorizationFailedError:
        return False
    raise AssertionError(f"no answer about {topic}")


def may_write(producer: Producer, topic: str) -> bool:
    """Whether a topic can be written."""
    errors: list[Any] = []
    try:
        producer.produce(topic, b"{}", b"k", 0, on_delivery=lambda error, _message: errors.append(error))
        assert producer.flush(SECONDS) == 0
    except KafkaException as error:
        errors.append(error.args[0])
    assert errors[0] is None or "AUTHORIZATION" in errors[0].name()
    return errors[0] is None


def test_topics_are_created_with_replicas(cluster: Cluster, deployment: Deployment) -> None:
    """Where there are three brokers, each topic has three replicas, of which two must have a record."""
    admin = AdminClient({"bootstrap.servers": cluster.superuser})
    environment = deployment.settings | {"FRESHET_KAFKA": cluster.superuser, "FRESHET_KAFKA_SECURITY": "PLAINTEXT"}
    environment |= {"FRESHET_KAFKA_PASSWORD": ""}
    topics = admin.list_topics(timeout=SECONDS).topics
    for name in (*deployment.topics.values(), "cluster-user_state-changelog"):
        assert {len(partition.replicas) for partition in topics[name].partitions.values()} == {3}
    run(environment, "topics", "check", "--partitions", str(PARTITIONS))
    plan = json.loads(run(environment, "topics", "plan", "--partitions", "3", "--json"))
    faults = {topic["name"]: topic["faults"] for topic in plan if topic["faults"]}
    assert faults[deployment.topics["events"]] == ["topic cluster.events has 2 partitions, planned are 3"]
    assert deployment.topics["items"] not in faults


def test_a_broker_killed_under_load_loses_nothing(cluster: Cluster, deployment: Deployment) -> None:
    """A worker with the rights of its role folds every event and publishes every list across the end of a broker."""
    worker = deployment.worker()
    events = [
        Event(f"e{number}", f"user{number % 40}", "view", 890_000_000_000 + number, str(50 + number % 200))
        for number in range(2000)
    ]
    deployment.send(events[:200])
    until(lambda: worker.metric("freshet_events_folded_total") >= 200, "the worker is at work", worker)
    cluster.kill(0)
    for start in range(200, len(events), 100):
        deployment.send(events[start : start + 100])
        time.sleep(0.1)
    deployment.settle()
    deployment.check()
    assert worker.process.poll() is None
    assert worker.terminate() == 0


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_may_do_its_work_and_no_more(cluster: Cluster, deployment: Deployment, role: str) -> None:
    """A role reads and writes the topics of its work; every other topic is refused."""
    topics = deployment.topics | {"changelog": "cluster-user_state-changelog"}
    producer, consumer = Producer(client(cluster, role)), new_consumer(load_settings(environ=as_role(cluster, role)))
    superuser = Producer({"bootstrap.servers": cluster.superuser})
    try:
        for topic in topics.values():
            superuser.produce(topic, b"{}", b"k", 0)
        assert superuser.flush(SECONDS) == 0
        found = {}
        for label, topic in topics.items():
            rights = "r" * may_read(consumer, topic) + "w" * may_write(producer, topic)
            if rights:
                found[label] = rights
        assert found == MAY[role]
    finally:
        consumer.close()
