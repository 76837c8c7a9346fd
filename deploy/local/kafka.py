"""A Kafka broker: KRaft, broker and controller in one process, on the loopback address."""

import os
import subprocess
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.local.errors import PartDied
from deploy.local.parts import KAFKA_LIBS, executable, present
from deploy.local.ports import LOOPBACK
from deploy.local.process import Process, spawn, wait_until_ready

PORTS = ("kafka", "kafka_controller")
READY_SECONDS = 90
GRACE_SECONDS = 15
_CLUSTER_ID = "ZnJlc2hldC1sb2NhbC0wMQ"
_LOGGING = Path(__file__).with_name("log4j2.xml")


def start(directory: Path, ports: dict[str, int]) -> Process:
    """Start the broker, its data under ``directory/kafka``, and wait until it answers.

    Raises:
        MissingPart: Java or Kafka's jars are not there.
        PartDied: The broker ended; the message has the end of its log.
        PartNotReady: It did not answer within ``READY_SECONDS``.
    """
    java = str(executable("java"))
    classpath = f"{present(KAFKA_LIBS, 'Kafka')}/*"
    home = directory / "kafka"
    home.mkdir(parents=True, exist_ok=True)
    properties = home / "server.properties"
    properties.write_text(_properties(home / "data", ports))
    log = directory / "logs" / "kafka.log"
    log.parent.mkdir(exist_ok=True)
    jvm = [java, f"-Dlog4j2.configurationFile={_LOGGING}", "-XX:-UsePerfData", "-cp", classpath]
    if not (home / "data" / "meta.properties").exists():
        _format(jvm, properties, log)
    options = ["-Xms256m", "-Xmx512m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]
    command = [jvm[0], *options, *jvm[1:], "kafka.Kafka", str(properties)]
    process = spawn(command, log=log, env=os.environ)
    address = f"{LOOPBACK}:{ports['kafka']}"
    wait_until_ready("Kafka", process, lambda: answers(address), seconds=READY_SECONDS, log=log)
    return process


def answers(bootstrap: str, *, seconds: float = 1.0) -> bool:
    """Whether a broker at ``bootstrap`` answers a metadata request within ``seconds``."""
    settings = {"bootstrap.servers": bootstrap, "reconnect.backoff.max.ms": 100, "log_level": 0}
    # librdkafka reports each refused connection to this callback instead of to stderr
    admin = AdminClient({**settings, "error_cb": lambda _error: None})
    try:
        return bool(admin.list_topics(timeout=seconds).brokers)
    except KafkaException:
        return False


def _format(jvm: list[str], properties: Path, log: Path) -> None:
    tool = ["kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(properties)]
    with log.open("a") as out:
        done = subprocess.run([*jvm, *tool], stdout=out, stderr=out, check=False)
    if done.returncode != 0:
        raise PartDied("Kafka", log)


def _properties(data: Path, ports: dict[str, int]) -> str:
    broker, controller = ports["kafka"], ports["kafka_controller"]
    settings = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{broker},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{broker}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "log.dirs": data,
        # one broker: the internal topics cannot have more than one replica
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 8,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        # a group of one worker need not wait for others
        "group.initial.rebalance.delay.ms": 0,
        # a killed broker may come back once its old session is over: 9 s by default
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        # topics are created on purpose, with their cleanup policy, or not at all
        "auto.create.topics.enable": "false",
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())
