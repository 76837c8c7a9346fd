"""The archive on the real broker: every record once, whatever happens to the archivers, and the same log to replay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from freshet.archive.chain import chains
from freshet.cli import app
from freshet.core.events import Event, encode_event
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.structs import TopicPartition
from typer.testing import CliRunner

from deploy.local import Stack, create_topics
from tests.integration import independent_fold
from tests.integration.deployment import until

pytestmark = pytest.mark.integration

START = 890_000_000_000
POISON = [b"{", b"", b"[]"]


class Archivers:
    """Archiver processes over topics of their own, and a stream of events that flows until it is stopped."""

    def __init__(self, stack: Stack, folder: Path, name: str) -> None:
        self.stack = stack
        self.folder = folder
        self.events, self.items = f"{name}.events", f"{name}.items"
        create_topics(
            stack.bootstrap,
            3,
            events=self.events,
            items=self.items,
            recommendations=f"{name}.recommendations",
            dead_letters=f"{name}.events.dlq",
            models=f"{name}.models",
            popularity=f"{name}.popularity",
        )
        self.environment = {
            "FRESHET_KAFKA": stack.bootstrap,
            "FRESHET_GROUP": name,
            "FRESHET_EVENTS_TOPIC": self.events,
            "FRESHET_ITEMS_TOPIC": self.items,
            "FRESHET_POPULARITY_TOPIC": f"{name}.popularity",
            "FRESHET_DLQ_TOPIC": f"{name}.events.dlq",
            "FRESHET_ARCHIVE_DIR": str(folder / "archive"),
            "FRESHET_ARCHIVE_ROLL": "0.2",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self._flowing = threading.Event()
        self._producer = KafkaProducer(bootstrap_servers=stack.bootstrap)
        self._sent = 0

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start an archiver."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "freshet.cli", "archive", "--state-dir", str(self.folder / name)],
                env=os.environ | self.environment,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def flow(self) -> None:
        """Produce events for as long as the thread may flow, a poison one now and then."""
        self._flowing.set()
        while self._flowing.is_set():
            for _ in range(4):
                self.send()
            self._producer.flush()
            time.sleep(0.05)

    def send(self) -> None:
        """Produce one record more."""
        number = self._sent
        user = f"user-{number % 40}"
        event = Event(f"e{number}", user, "view", START + number * 1000, str(number % 300 + 1))
        value = POISON[number % 3] if number % 50 == 49 else encode_event(event)
        self._producer.send(self.events, value, user.encode(), headers=[("n", str(number).encode())])
        self._sent += 1

    def stop_flowing(self) -> None:
        """No more events."""
        self._flowing.clear()

    def archived(self, topic: str) -> int:
        """How many records are in finished files."""
        return sum(chain.end() for chain in chains(self.folder / "archive" / topic))

    def records(self, topic: str) -> list[Any]:
        """What the broker holds."""
        return independent_fold.read_topic(self.stack.bootstrap, topic)

    def caught_up(self, topic: str) -> bool:
        """Whether the archive holds all that the broker does."""
        return self.archived(topic) == len(self.records(topic))

    def rows(self, topic: str) -> list[dict[str, Any]]:
        """Every row of the archive's files, by partition and offset; files that were merged away do not count."""
        found = []
        for chain in chains(self.folder / "archive" / topic):
            for segment in chain.segments():
                with pq.ParquetFile(segment.path) as file:
                    found += file.read().to_pylist()
        return sorted(found, key=lambda row: (row["partition"], row["offset"]))

    def metrics(self, name: str) -> str:
        """An archiver's metrics; nothing while it does not answer."""
        try:
            port = int((self.folder / name / "health.port").read_text())
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
                return answer.read().decode()
        except (OSError, ValueError):
            return ""

    def log(self, name: str) -> str:
        """What an archiver logged."""
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture
def archivers(stack: Stack, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Archivers]:
    """Archivers, ended after the test."""
    archivers_of_test = Archivers(stack, tmp_path, unique("archive"))
    yield archivers_of_test
    archivers_of_test.stop_flowing()
    for process in archivers_of_test.processes:
        process.kill()
        process.wait()


def replayed(archivers: Archivers, source: str, name: str) -> dict[str, Any]:
    """The summary of a replay with the shipped model."""
    out = archivers.folder / name
    environment = archivers.environment | {"FRESHET_MODEL_REPOSITORY": str(archivers.stack.models)}
    result = CliRunner().invoke(app, ["replay", source, "--out", str(out), "--json"], env=environment)
    assert result.exit_code == 0, result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def dead_letters(folder: Path) -> list[tuple[bytes, bytes, bytes]]:
    """Reason, partition and offset of each dead letter of a replay."""
    rows = [
        row for part in (folder / "dead_letters").glob("*.parquet") for row in pq.ParquetFile(part).read().to_pylist()
    ]
    headers = [dict(row["headers"]) for row in rows]
    return sorted((letter["reason"], letter["origin_partition"], letter["origin_offset"]) for letter in headers)


def test_every_record_is_archived_once(archivers: Archivers) -> None:
    """Killed again and again in mid-stream, shared by two, handed over: the rows are the topic's records, each once.

    And a replay of the archive, of the topic and of the same events as JSON lines gives the same lists.
    """
    flow = threading.Thread(target=archivers.flow)
    flow.start()
    archivers.start("a1")
    for _ in range(3):
        before = archivers.archived(archivers.events)
        until(lambda before=before: archivers.archived(archivers.events) > before, "files are being added")
        archivers.processes[-1].kill()
        archivers.processes[-1].wait()
        archivers.start("a1")
    second = archivers.start("a2")
    until(lambda: "freshet_archived_records_total{" in archivers.metrics("a2"), "the second archiver takes part")
    first = archivers.processes[-2]
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0
    archivers.stop_flowing()
    flow.join()
    until(lambda: archivers.caught_up(archivers.events), "the archive holds all that the broker does")
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0

    records, rows = archivers.records(archivers.events), archivers.rows(archivers.events)
    assert [(row["partition"], row["offset"]) for row in rows] == [
        (record.partition, record.offset) for record in records
    ]
    for row, record in zip(rows, records, strict=True):
        assert (row["key"], row["value"], row["headers"]) == (record.key, record.value, record.headers)
        assert int(row["timestamp"].timestamp() * 1000) == record.timestamp
    files = [path for path in (archivers.folder / "archive" / archivers.events).rglob("*") if path.is_file()]
    assert {path.suffix for path in files if not path.name.startswith(".lock")} == {".parquet"}

    lines = archivers.folder / "same.jsonl"
    good = [record.value for record in records if record.value not in POISON]
    lines.write_bytes(b"\n".join(sorted(good, key=lambda value: json.loads(value)["ts"])))
    kafka = replayed(archivers, f"kafka:{archivers.events}", "from-kafka")
    archive = replayed(archivers, str(archivers.folder / "archive"), "from-archive")
    jsonl = replayed(archivers, str(lines), "from-lines")
    assert kafka["digests"] == archive["digests"] == jsonl["digests"]
    assert kafka["counts"] == archive["counts"]
    assert kafka["counts"]["lists"] > 100
    letters = dead_letters(archivers.folder / "from-kafka")
    assert letters == dead_letters(archivers.folder / "from-archive")
    assert len(letters) == len(records) - len(good) > 0


def test_items_are_archived_and_what_retention_took_is_told(archivers: Archivers) -> None:
    """The catalogue is archived, and lost offsets are logged and named by a replay."""
    archivers._producer.send(archivers.items, b'{"item_id":"i1","title":"Alien"}', b"i1")
    for _ in range(300):
        archivers.send()
    archivers._producer.flush()
    archiver = archivers.start("a1")
    until(lambda: archivers.caught_up(archivers.events) and archivers.caught_up(archivers.items), "all is archived")
    archiver.kill()
    archiver.wait()
    assert [(row["key"], row["title"]) for row in archivers.rows(archivers.items)] == [(b"i1", "Alien")]
    ends = {chain.partition: chain.end() for chain in chains(archivers.folder / "archive" / archivers.events)}
    for _ in range(300):
        archivers.send()
    archivers._producer.flush()
    admin = KafkaAdminClient(bootstrap_servers=archivers.stack.bootstrap)
    admin.delete_records({TopicPartition(archivers.events, 0): ends[0] + 5})
    admin.close()
    two = archivers.start("a1")
    until(lambda: archivers.archived(archivers.events) == 600, "what is left is archived")
    two.send_signal(signal.SIGTERM)
    assert two.wait(30) == 0
    [told] = [json.loads(line) for line in archivers.log("a1").splitlines() if "retention" in line]
    assert (told["level"], told["partition"], told["first"], told["last"]) == ("error", 0, ends[0], ends[0] + 4)
    result = CliRunner().invoke(
        app, ["replay", str(archivers.folder / "archive"), "--fold-only", "--out", "o"], env=archivers.environment
    )
    assert result.exit_code == 1
    assert f"partition 0: offsets {ends[0]} to {ends[0] + 4} are missing" in result.stderr
    topic = f"kafka:{archivers.events}"
    gone = CliRunner().invoke(
        app, ["replay", topic, "--fold-only", "--offsets", "0:1-", "--out", "o"], env=archivers.environment
    )
    assert f"offset 1 is not there, the first is {ends[0] + 5}" in gone.stderr


def test_topics_that_are_not_there_are_named(archivers: Archivers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archiver and a replay name a missing topic in one line, and a replay names an empty topic."""
    environment = archivers.environment | {"FRESHET_ITEMS_TOPIC": "nowhere"}
    result = CliRunner().invoke(app, ["archive"], env=environment)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "freshet: topic nowhere does not exist: create it, or run `freshet up`"
    for source, said in (
        ("kafka:nowhere", "topic nowhere does not exist"),
        ("kafka", "holds no records in the window"),
    ):
        result = CliRunner().invoke(app, ["replay", source, "--fold-only", "--out", "o"], env=archivers.environment)
        assert result.exit_code == 1
        assert said in result.stderr
