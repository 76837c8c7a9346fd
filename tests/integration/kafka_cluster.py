"""Three brokers with access control: users by password on one listener, the superuser on the other."""

import os
import subprocess
from pathlib import Path
from typing import Any

from deploy.local import kafka
from deploy.local.parts import KAFKA_LIBS, executable
from deploy.local.ports import LOOPBACK, choose_ports
from deploy.local.process import Process, kill, spawn, wait_until_ready

BROKERS = 3
PASSWORD = "s3cret"  # noqa: S105 - of brokers that live for a test
CLUSTERED = """
node.id={number}
controller.quorum.voters={voters}
listeners=PLAINTEXT://{host}:{kafka},USERS://{host}:{users},CONTROLLER://{host}:{kafka_controller}
advertised.listeners=PLAINTEXT://{host}:{kafka},USERS://{host}:{users}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,USERS:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
offsets.topic.replication.factor=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
listener.name.users.sasl.enabled.mechanisms=PLAIN
listener.name.users.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {accounts};
"""
"""What differs from one broker alone; a later line of a properties file wins."""


class Cluster:
    """Three brokers as processes: each is a controller too, so that two of three go on."""

    def __init__(self, folder: Path, users: tuple[str, ...]) -> None:
        self._folder = folder
        names = [f"{kind}{number}" for number in range(BROKERS) for kind in ("kafka", "kafka_controller", "users")]
        ports = choose_ports(names, asked={}, preferred={})
        self._ports = [
            {kind: ports[f"{kind}{number}"] for kind in ("kafka", "kafka_controller", "users")}
            for number in range(BROKERS)
        ]
        voters = ",".join(f"{number + 1}@{LOOPBACK}:{at['kafka_controller']}" for number, at in enumerate(self._ports))
        accounts = " ".join(f'user_{user}="{PASSWORD}"' for user in users)
        self._common: dict[str, Any] = {"voters": voters, "accounts": accounts, "host": LOOPBACK}
        self._processes: list[Process] = []

    def start(self) -> None:
        """Start all and wait until each answers."""
        self._processes = [self._start(number) for number in range(BROKERS)]
        for number, process in enumerate(self._processes):
            address = f"{LOOPBACK}:{self._ports[number]['kafka']}"
            log = self._folder / f"kafka{number}.log"
            wait_until_ready("Kafka", process, lambda at=address: kafka.answers(at), seconds=120, log=log)

    def kill(self, number: int) -> None:
        """SIGKILL one broker."""
        kill(self._processes[number])

    def close(self) -> None:
        """End all."""
        for process in self._processes:
            kill(process)

    @property
    def superuser(self) -> str:
        """Bootstrap addresses of the listener where everybody may do everything."""
        return ",".join(f"{LOOPBACK}:{at['kafka']}" for at in self._ports)

    @property
    def users(self) -> str:
        """Bootstrap addresses of the listener that asks for a password."""
        return ",".join(f"{LOOPBACK}:{at['users']}" for at in self._ports)

    def _start(self, number: int) -> Process:
        ports, properties = self._ports[number], self._folder / f"server{number}.properties"
        properties.write_text(
            kafka._properties(self._folder / f"data{number}", ports)
            + CLUSTERED.format(number=number + 1, **self._common, **ports)
        )
        jvm = [str(executable("java")), "-Xmx256m", "-cp", f"{KAFKA_LIBS}/*"]
        tool = ["kafka.tools.StorageTool", "format", "-t", kafka._CLUSTER_ID, "-c", str(properties)]
        subprocess.run([*jvm, *tool], check=True, stdout=subprocess.DEVNULL)
        command = [*jvm, "kafka.Kafka", str(properties)]
        return spawn(command, log=self._folder / f"kafka{number}.log", env=os.environ)
