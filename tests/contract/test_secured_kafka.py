"""Kafka over TLS with SCRAM: each of the clients gets in by the settings, and says what is wrong otherwise."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from freshet.adapters.kafka import client_config
from freshet.cli.connections import require_topics
from freshet.cli.errors import UserError
from freshet.client import ConnectionFailedError, Lists, UnreadableListError
from freshet.serving.app import StartError, events_partitions
from freshet.settings import Settings

from deploy.local import kafka
from deploy.local.parts import KAFKA_LIBS, executable
from deploy.local.ports import LOOPBACK, choose_ports
from deploy.local.process import kill, spawn, wait_until_ready
from tests.contract.test_faust import StubWorker
from tests.contract.tls import self_signed

pytestmark = pytest.mark.integration

PASSWORD = "s3cret"  # noqa: S105 - of a broker that lives for a test
SECURED = """
listeners=PLAINTEXT://{host}:{kafka},SECURED://{host}:{secured},CONTROLLER://{host}:{kafka_controller}
advertised.listeners=PLAINTEXT://{host}:{kafka},SECURED://{host}:{secured}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURED:SASL_SSL,CONTROLLER:PLAINTEXT
listener.name.secured.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secured.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secured.ssl.keystore.type=PEM
listener.name.secured.ssl.keystore.location={keystore}
"""


def lets_in(settings: Settings) -> bool:
    """Whether a client gets its answer in time: the first handshakes of a cold broker take seconds."""
    try:
        AdminClient(client_config(settings)).list_topics(timeout=5)
    except KafkaException:
        return False
    return True


@pytest.fixture
def brokers(broker: str, tmp_path: Path) -> Iterator[tuple[str, Settings]]:
    """A broker with a plain listener, and settings for its secured one. `broker` says whether the parts are there."""
    del broker
    ports = choose_ports((*kafka.PORTS, "secured"), asked={}, preferred={})
    certificate, key = self_signed(tmp_path)
    keystore = tmp_path / "keystore.pem"
    keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
    properties, log = tmp_path / "server.properties", tmp_path / "kafka.log"
    properties.write_text(
        kafka._properties(tmp_path / "data", ports) + SECURED.format(host=LOOPBACK, keystore=keystore, **ports)
    )
    jvm = [str(executable("java")), "-Xmx384m", "-cp", f"{KAFKA_LIBS}/*"]
    user = f"SCRAM-SHA-512=[name=ann,password={PASSWORD}]"
    tool = ["kafka.tools.StorageTool", "format", "-t", kafka._CLUSTER_ID, "-c", str(properties), "--add-scram", user]
    subprocess.run([*jvm, *tool], check=True, stdout=subprocess.DEVNULL)
    process = spawn([*jvm, "kafka.Kafka", str(properties)], log=log, env=os.environ)
    plain = f"{LOOPBACK}:{ports['kafka']}"
    secured = Settings(
        kafka=f"{LOOPBACK}:{ports['secured']}",
        kafka_security="SASL_SSL",
        kafka_ca=str(certificate),
        kafka_username="ann",
        kafka_password=PASSWORD,
    )
    wait_until_ready("Kafka", process, lambda: kafka.answers(plain) and lets_in(secured), seconds=90, log=log)
    try:
        yield plain, secured
    finally:
        kill(process)


def given(settings: Settings) -> dict[str, Any]:
    """The settings that are not the default."""
    return {name: value for name, value in msgspec.to_builtins(settings).items() if value != getattr(Settings(), name)}


def test_every_client_gets_in(brokers: tuple[str, Settings], tmp_path: Path) -> None:
    """Faust reads and commits, librdkafka publishes the changelog, kafka-python produces; a wrong password is said."""
    plain, settings = brokers
    worker = StubWorker(plain, "secured", tmp_path / "worker", **given(settings))
    events = tmp_path / "events.jsonl"
    events.write_text(
        "".join(
            f'{{"event_id":"e{number}","user_id":"ann","type":"view","item_id":"a","ts":1700000000000}}\n'
            for number in range(20)
        )
    )
    environment = {f"FRESHET_{name.upper()}": str(value) for name, value in given(settings).items()}
    produce = [sys.executable, "-m", "freshet.cli", "produce", str(events)]
    names = {"FRESHET_EVENTS_TOPIC": "secured", "FRESHET_ITEMS_TOPIC": "secured-items"}
    subprocess.run(produce, env=os.environ | environment | names, check=True)
    try:
        worker.start()
        worker.until(lambda: len(worker.done(0)) + len(worker.done(1)) == 20, "all processed")
        [partition] = [number for number in (0, 1) if worker.done(number)]
        worker.until_committed(partition, 20)
        assert worker.changelog_records(partition)[-1][1].folded == 20
    finally:
        worker.close()

    lists = Lists(msgspec.structs.replace(settings, recommendations_topic="secured"), from_beginning=True)
    with lists, pytest.raises(UnreadableListError, match="no list"):  # the topic holds events
        next(iter(lists))
    wrong = msgspec.structs.replace(settings, kafka_password="other")  # noqa: S106
    with pytest.raises(UserError, match="Kafka at"):
        require_topics(wrong, "secured")
    with pytest.raises(ConnectionFailedError, match=r"(?i)authentication"):
        Lists(wrong)
    with pytest.raises(StartError, match="Kafka at"):
        events_partitions(msgspec.structs.replace(wrong, events_topic="secured"))
