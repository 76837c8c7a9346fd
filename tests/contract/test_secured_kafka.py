"""A secured Kafka: each of the three clients gets in by the settings in every way there is, and says what is wrong."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from freshet.adapters.faust import credentials
from freshet.adapters.kafka import client_config
from freshet.adapters.kafka_access import AccessError
from freshet.adapters.kafka_python import new_consumer
from freshet.cli.connections import require_topics
from freshet.cli.errors import UserError
from freshet.client import ConnectionFailedError, Lists, UnreadableListError
from freshet.serving.first_version import StartError
from freshet.serving.start import events_partitions
from freshet.settings import Settings

from deploy.local import kafka
from deploy.local.parts import KAFKA_LIBS, executable
from deploy.local.ports import LOOPBACK, choose_ports
from deploy.local.process import kill, spawn, wait_until_ready
from tests.contract.test_faust import StubWorker
from tests.contract.tls import self_signed

pytestmark = pytest.mark.integration

PASSWORD = "s3cret"  # noqa: S105 - of a broker that lives for a test
SASL = "listener.name.password"
MODULES = "org.apache.kafka.common.security"
SECURED = f"""
listeners=PLAINTEXT://{{host}}:{{kafka}},PASSWORD://{{host}}:{{secured}},CERTIFICATE://{{host}}:{{mutual}},CONTROLLER://{{host}}:{{kafka_controller}}
advertised.listeners=PLAINTEXT://{{host}}:{{kafka}},PASSWORD://{{host}}:{{secured}},CERTIFICATE://{{host}}:{{mutual}}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PASSWORD:SASL_SSL,CERTIFICATE:SSL,CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={{keystore}}
listener.name.certificate.ssl.client.auth=required
listener.name.certificate.ssl.truststore.type=PEM
listener.name.certificate.ssl.truststore.location={{clients}}
{SASL}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
{SASL}.plain.sasl.jaas.config={MODULES}.plain.PlainLoginModule required user_ann="{PASSWORD}";
{SASL}.scram-sha-256.sasl.jaas.config={MODULES}.scram.ScramLoginModule required;
{SASL}.scram-sha-512.sasl.jaas.config={MODULES}.scram.ScramLoginModule required;
{SASL}.oauthbearer.sasl.jaas.config={MODULES}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
"""  # noqa: E501 - one line a property


class Secured(NamedTuple):
    """A broker with a plain listener; settings for its listeners of passwords and of certificates."""

    plain: str
    password: Settings
    certificate: Settings


class TokenEndpoint(BaseHTTPRequestHandler):
    """Grants ann a token of an hour for the right secret (RFC 6749, 4.4): an unsigned JWT, as the broker takes it."""

    def do_POST(self) -> None:
        """Answer a client credentials grant."""
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        client = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
        allowed = self.headers["Authorization"] == f"Basic {client}" and "grant_type=client_credentials" in form
        now = int(time.time())
        parts = ({"alg": "none"}, {"sub": "ann", "iat": now, "exp": now + 3600, "scope": "freshet"})
        token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
        answer = {"access_token": f"{token}.", "expires_in": 3600} if allowed else {"error": "invalid_client"}
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def token_url() -> Iterator[str]:
    """The address of a token endpoint."""
    server = HTTPServer((LOOPBACK, 0), TokenEndpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{LOOPBACK}:{server.server_port}/token"
    server.shutdown()
    server.server_close()


def lets_in(settings: Settings) -> bool:
    """Whether a client gets its answer in time: the first handshakes of a cold broker take seconds."""
    try:
        AdminClient(client_config(settings)).list_topics(timeout=5)
    except KafkaException:
        return False
    return True


@pytest.fixture(scope="module")
def secured(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A broker with every kind of listener. The fixture `broker` says whether the parts are there."""
    del broker
    folder = tmp_path_factory.mktemp("secured")
    ports = choose_ports((*kafka.PORTS, "secured", "mutual"), asked={}, preferred={})
    certificate, key = self_signed(folder)
    (folder / "ann").mkdir()
    own_certificate, own_key = self_signed(folder / "ann")
    keystore = folder / "keystore.pem"
    keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
    properties, log = folder / "server.properties", folder / "kafka.log"
    properties.write_text(
        kafka._properties(folder / "data", ports)
        + SECURED.format(host=LOOPBACK, keystore=keystore, clients=own_certificate, **ports)
    )
    jvm = [str(executable("java")), "-Xmx384m", "-cp", f"{KAFKA_LIBS}/*"]
    tool = ["kafka.tools.StorageTool", "format", "-t", kafka._CLUSTER_ID, "-c", str(properties)]
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
        tool += ["--add-scram", f"{mechanism}=[name=ann,password={PASSWORD}]"]
    subprocess.run([*jvm, *tool], check=True, stdout=subprocess.DEVNULL)
    process = spawn([*jvm, "kafka.Kafka", str(properties)], log=log, env=os.environ)
    by_password = Settings(
        kafka=f"{LOOPBACK}:{ports['secured']}",
        kafka_security="SASL_SSL",
        kafka_ca=str(certificate),
        kafka_username="ann",
        kafka_password=PASSWORD,
    )
    by_certificate = Settings(
        kafka=f"{LOOPBACK}:{ports['mutual']}",
        kafka_security="SSL",
        kafka_ca=str(certificate),
        kafka_certificate=str(own_certificate),
        kafka_key=str(own_key),
    )
    plain = f"{LOOPBACK}:{ports['kafka']}"
    wait_until_ready("Kafka", process, lambda: kafka.answers(plain) and lets_in(by_password), seconds=90, log=log)
    try:
        yield Secured(plain, by_password, by_certificate)
    finally:
        kill(process)


def enter_by_librdkafka(settings: Settings) -> None:
    """Ask for the cluster's topics through librdkafka."""
    AdminClient(client_config(settings)).list_topics(timeout=5)


def enter_by_kafka_python(settings: Settings) -> None:
    """Ask for the cluster's topics through kafka-python."""
    consumer = new_consumer(settings)
    try:
        consumer.topics()
    finally:
        consumer.close()


def enter_by_faust(settings: Settings) -> None:
    """Ask for the cluster's topics through aiokafka, with Faust's form of the settings."""

    async def ask() -> None:
        access = credentials_to_aiokafka_auth(credentials(settings))
        consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, **access)
        try:
            await consumer.start()
            await consumer.topics()
        finally:
            await consumer.stop()

    asyncio.run(ask())


CLIENTS = [enter_by_librdkafka, enter_by_kafka_python, enter_by_faust]


@pytest.mark.parametrize("enter", CLIENTS)
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
def test_every_client_enters_by_every_mechanism(secured: Secured, token_url: str, mechanism: Any, enter: Any) -> None:
    """A client gets in with the right password or token."""
    enter(msgspec.structs.replace(secured.password, kafka_mechanism=mechanism, kafka_oauth_url=token_url))


@pytest.mark.parametrize("enter", CLIENTS)
def test_no_client_enters_by_a_wrong_password(secured: Secured, enter: Any) -> None:
    """The broker lets no client in whose password is another."""
    with pytest.raises(Exception, match=r"(?i)auth|transport|timed out|unable to bootstrap"):
        enter(msgspec.structs.replace(secured.password, kafka_password="other"))  # noqa: S106


@pytest.mark.parametrize("enter", CLIENTS)
def test_every_client_enters_by_its_certificate(secured: Secured, enter: Any) -> None:
    """A client gets in with its certificate."""
    enter(secured.certificate)


def test_no_client_enters_without_its_certificate(secured: Secured) -> None:
    """The broker asks for the client's certificate."""
    with pytest.raises(KafkaException):
        enter_by_librdkafka(msgspec.structs.replace(secured.certificate, kafka_certificate=None, kafka_key=None))


@pytest.mark.parametrize("enter", CLIENTS)
def test_a_token_endpoint_that_refuses_is_said(secured: Secured, token_url: str, enter: Any) -> None:
    """Where the endpoint gives no token, the error names the setting."""
    wrong = {"kafka_mechanism": "OAUTHBEARER", "kafka_oauth_url": token_url, "kafka_password": "other"}
    with pytest.raises(AccessError, match=r"kafka_oauth_url: http://.*401"):
        enter(msgspec.structs.replace(secured.password, **wrong))


def given(settings: Settings) -> dict[str, Any]:
    """The settings that are not the default."""
    return {name: value for name, value in msgspec.to_builtins(settings).items() if value != getattr(Settings(), name)}


def test_a_worker_and_the_commands_get_in(secured: Secured, tmp_path: Path) -> None:
    """Faust reads and commits, librdkafka publishes the changelog, kafka-python produces; a wrong password is said."""
    settings = secured.password
    worker = StubWorker(secured.plain, "secured", tmp_path / "worker", **given(settings))
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
