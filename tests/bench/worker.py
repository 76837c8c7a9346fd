"""The whole worker as a process, under measurement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from confluent_kafka import Consumer, TopicPartition
from freshet.adapters.topic_creation import create_topics

from deploy.local import Stack
from tests.bench.harness import ROOT, ComparatorError

START_SECONDS = 120.0
TOPICS = ("events", "items", "recommendations", "events.dlq", "models", "popularity")


@dataclass(frozen=True)
class Names:
    """The topics and group of one measurement."""

    prefix: str

    def topic(self, name: str) -> str:
        """One of `TOPICS`, prefixed."""
        return f"{self.prefix}.{name}"

    def create(self, kafka: str, partitions: int) -> None:
        """Create all topics but the events topic, which the stream's producer makes."""
        topics = {name: self.topic(name) for name in TOPICS}
        create_topics(
            kafka,
            partitions,
            events=topics["events"],
            items=topics["items"],
            recommendations=topics["recommendations"],
            dead_letters=topics["events.dlq"],
            models=topics["models"],
            popularity=topics["popularity"],
        )

    def environment(self, stack: Stack) -> dict[str, str]:
        """The settings of a worker on these topics: lists are made for events alone, so that they can be counted."""
        return {
            "FRESHET_LIVING_BUDGET": "0",
            "FRESHET_KAFKA": stack.bootstrap,
            "FRESHET_TRITON": stack.triton_grpc,
            "FRESHET_MODEL_REPOSITORY": str(stack.models),
            "FRESHET_GROUP": self.prefix,
            "FRESHET_EVENTS_TOPIC": self.topic("events"),
            "FRESHET_ITEMS_TOPIC": self.topic("items"),
            "FRESHET_RECOMMENDATIONS_TOPIC": self.topic("recommendations"),
            "FRESHET_DLQ_TOPIC": self.topic("events.dlq"),
            "FRESHET_MODELS_TOPIC": self.topic("models"),
            "FRESHET_POPULARITY_TOPIC": self.topic("popularity"),
        }


class BenchWorker(AbstractContextManager["BenchWorker"]):
    """`freshet worker` in a process of its own; ended on exit."""

    def __init__(self, names: Names, stack: Stack, folder: Path, **settings: str) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._environment = (
            os.environ
            | names.environment(stack)
            | {"FRESHET_DATA_DIR": str(folder), "FRESHET_FEAST_DIR": str(folder / "feast")}
            | settings
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns at once."""
        (self._folder / "health.port").unlink(missing_ok=True)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "freshet.cli", "worker"],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> float:
        """Wait until `/readyz` says so; returns the seconds it took."""
        begin = time.perf_counter()
        while time.perf_counter() - begin < START_SECONDS:
            if self.process.poll() is not None:
                break
            try:
                if self._page("readyz"):
                    return time.perf_counter() - begin
            except (OSError, ValueError):
                time.sleep(0.1)
        raise ComparatorError(f"the worker is not ready: {(self._folder / 'log').read_text()[-2000:]}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        if self._process is None:
            raise ComparatorError("the worker was not started")
        return self._process

    def metric(self, name: str) -> float:
        """A metric's value, summed over its labels."""
        lines = self._page("metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def rss_mb(self) -> float:
        """Resident memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def cpu_s(self) -> float:
        """Processor time used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it with SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()

    def _page(self, page: str) -> str:
        port = int((self._folder / "health.port").read_text())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=2) as answer:
            return str(answer.read().decode())


def reader(kafka: str, topic: str) -> Consumer:
    """A consumer of all of a topic, from its beginning."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "bench-reader", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    return consumer
