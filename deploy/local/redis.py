"""A Redis server on the loopback address that keeps nothing on disk but what it is told to."""

import os
import socket
from pathlib import Path

from deploy.local.parts import executable
from deploy.local.ports import LOOPBACK
from deploy.local.process import Process, spawn, wait_until_ready

PORTS = ("redis",)
READY_SECONDS = 15
GRACE_SECONDS = 5


def start(directory: Path, ports: dict[str, int]) -> Process:
    """Start the server, its directory ``directory/redis``, and wait until it answers.

    Raises:
        MissingPart: redis-server is not installed.
        PartDied: The server ended; the message has the end of its log.
        PartNotReady: It did not answer within ``READY_SECONDS``.
    """
    home = directory / "redis"
    home.mkdir(parents=True, exist_ok=True)
    port = ports["redis"]
    command = [str(executable("redis-server")), "--bind", LOOPBACK, "--port", str(port)]
    command += ["--dir", str(home), "--appendonly", "no", "--save", "", "--daemonize", "no"]
    log = directory / "logs" / "redis.log"
    process = spawn(command, log=log, env=os.environ)
    wait_until_ready("Redis", process, lambda: answers(port), seconds=READY_SECONDS, log=log)
    return process


def answers(port: int) -> bool:
    """Whether a Redis on this loopback port answers PING within a second."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
