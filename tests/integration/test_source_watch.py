"""A worker whose broker goes away, or whose topic changes under it, says so on `/readyz`, on real parts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from deploy import local
from tests.integration.deployment import Deployment, Worker, until
from tests.integration.event_stream import stream

pytestmark = pytest.mark.integration


def says(worker: Worker, words: str) -> bool:
    """Whether the worker is not ready for this reason."""
    status, page = worker.get("/readyz")
    return status == 503 and words in page


def test_readiness_follows_the_broker_and_the_topic(
    start_stack: Callable[..., local.Stack], tmp_path: Path, unique: Callable[[str], str]
) -> None:
    """`/readyz` reports a broker that stands still and added partitions, and a second start is refused."""
    stack = start_stack(tmp_path / "stack")
    (tmp_path / "deployment").mkdir()
    deployment = Deployment(stack, tmp_path / "deployment", unique("deployment"), partitions=2)
    try:
        worker = deployment.worker()
        deployment.send(stream(1, 50))
        deployment.settle()
        broker = stack.processes["kafka"].pid
        os.kill(broker, signal.SIGSTOP)
        try:
            until(lambda: says(worker, "does not answer"), "not ready while the broker is away", worker)
        finally:
            os.kill(broker, signal.SIGCONT)
        until(lambda: worker.get("/readyz")[0] == 200, "ready when it is back", worker)
        topic = deployment.topics["events"]
        admin = AdminClient({"bootstrap.servers": stack.bootstrap})
        admin.create_partitions([NewPartitions(topic, 4)])[topic].result()
        until(lambda: says(worker, "has 4 partitions, of which 2 are read"), "not ready with new partitions", worker)
        assert worker.terminate() == 0
        again = deployment.worker("w2", ready=False)
        assert again.process.wait(60) == 1
        assert "are kept in 2" in again.log.read_text()
    finally:
        deployment.close()
