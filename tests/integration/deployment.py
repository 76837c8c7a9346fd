"""A deployment for a test: its own topics, group and folders on the shared stack, and workers in it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from freshet.adapters.feast import apply
from freshet.adapters.topic_creation import create_topics
from freshet.archive.archiver import Archiver
from freshet.archive.chain import chains
from freshet.cli import app
from freshet.core.events import Event, encode_event
from freshet.core.popularity import Partial, PopularityTable, decode_partial
from freshet.core.state import UserState, decode_state
from freshet.logs.source import open_log
from freshet.process.health import Health
from freshet.process.watchdog import STOP_SECONDS
from freshet.replay.recount import recounted
from freshet.settings import load_settings
from kafka import KafkaProducer
from typer.testing import CliRunner

from deploy.local import Stack
from deploy.local.parts import ROOT, SHIPPED_KEYS
from tests.integration import independent_fold

PATIENCE = 90.0
TOPICS = ("events", "items", "recommendations", "events.dlq", "models", "popularity")

COUNT_TOLERANCE = 1e-4
"""Published counts are rounded to 6 decimals, also by each owner of a partition in turn."""


class Worker:
    """A worker process: `python -m MODULE worker`."""

    def __init__(self, environment: dict[str, str], log: Path, module: str = "freshet.cli") -> None:
        self.log = log
        self.data = Path(environment["FRESHET_DATA_DIR"])
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "worker"],
                env=os.environ | environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS + 10)

    def get(self, page: str) -> tuple[int, str]:
        """Status and body of a health page; status 0 where nobody answers."""
        try:
            port = int((self.data / "health.port").read_text())
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, ValueError):
            return 0, ""

    def metric(self, name: str) -> float:
        """A metric's value, summed over its labels; NaN where the page does not answer."""
        status, page = self.get("/metrics")
        values = (line.rpartition(" ")[2] for line in page.splitlines() if line.split("{")[0].split(" ")[0] == name)
        return sum(map(float, values)) if status == 200 else math.nan


class Deployment:
    """Topics of its own on a stack; `close` ends every worker it started.

    The features are applied already, as by an earlier worker, unless that is left to the first one: it takes the
    import of Feast.
    """

    def __init__(
        self, stack: Stack, folder: Path, name: str, partitions: int = 4, *, applied: bool = True, **settings: str
    ) -> None:
        self.stack = stack
        self.folder = folder
        self.topics = {topic: f"{name}.{topic}" for topic in TOPICS}
        self.group = name
        self.workers: list[Worker] = []
        self._sent = 0
        create_topics(
            stack.bootstrap,
            partitions,
            events=self.topics["events"],
            items=self.topics["items"],
            recommendations=self.topics["recommendations"],
            dead_letters=self.topics["events.dlq"],
            models=self.topics["models"],
            popularity=self.topics["popularity"],
        )
        self.settings = {
            "FRESHET_KAFKA": stack.bootstrap,
            "FRESHET_TRITON": stack.triton_grpc,
            "FRESHET_TRITON_CONTROL_KEY": str(stack.triton.control_key),
            "FRESHET_TRITON_DEADLINE": "10",  # a busy machine degrades no list
            "FRESHET_MODEL_REPOSITORY": str(stack.models),
            "FRESHET_TRUSTED_KEYS": str(SHIPPED_KEYS),
            "FRESHET_GROUP": name,
            "FRESHET_EVENTS_TOPIC": self.topics["events"],
            "FRESHET_ITEMS_TOPIC": self.topics["items"],
            "FRESHET_RECOMMENDATIONS_TOPIC": self.topics["recommendations"],
            "FRESHET_DLQ_TOPIC": self.topics["events.dlq"],
            "FRESHET_MODELS_TOPIC": self.topics["models"],
            "FRESHET_POPULARITY_TOPIC": self.topics["popularity"],
            "FRESHET_FEATURE_REPO": str(ROOT / "feature_repo"),
            "FRESHET_FEAST_DIR": str(folder / "feast"),
            "FRESHET_ARCHIVE_DIR": str(folder / "archive"),
            **settings,
        }
        if applied:
            apply(load_settings(environ=self.settings))
        self.producer = KafkaProducer(bootstrap_servers=stack.bootstrap)

    def worker(self, name: str = "w1", *, ready: bool = True) -> Worker:
        """Start a worker whose files live under `name`, and wait until it is ready."""
        environment = self.settings | {"FRESHET_DATA_DIR": str(self.folder / name)}
        (self.folder / name / "health.port").unlink(missing_ok=True)
        worker = Worker(environment, self.folder / f"{name}.log")
        self.workers.append(worker)
        if ready:
            until(lambda: worker.get("/readyz")[0] == 200, "the worker is ready", worker)
        return worker

    def send(self, events: Iterable[Event]) -> None:
        """Produce events keyed by user."""
        for event in events:
            self.raw(encode_event(event), event.user_id.encode())
        self.producer.flush()

    def raw(self, value: bytes | None, key: bytes | None) -> None:
        """Produce one record to the events topic as it is."""
        self.producer.send(self.topics["events"], value, key)
        self._sent += 1

    def item(self, item_id: str, **fields: Any) -> None:
        """Produce one catalogue upsert."""
        value = json.dumps({"item_id": item_id, **fields}).encode()
        self.producer.send(self.topics["items"], value, item_id.encode()).get(10)

    def freshet(self, *arguments: str, fails: bool = False) -> Any:
        """Run a verb with the settings of this deployment; its JSON, or its message where it should fail."""
        done = CliRunner().invoke(app, [*arguments, *([] if fails else ["--json"])], env=self.settings)
        assert (done.exit_code != 0) is fails, done.output
        return done.stderr if fails else json.loads(done.stdout)

    def records(self, topic: str) -> list[Any]:
        """All records of one of the topics of this deployment."""
        self.producer.flush()
        return independent_fold.read_topic(self.stack.bootstrap, self.topics[topic])

    def lists(self) -> dict[str, dict[str, Any]]:
        """The newest list of each user."""
        newest = {record.key.decode(): record.value for record in self.records("recommendations")}
        return {user: json.loads(value) for user, value in newest.items() if value is not None}

    def states(self) -> dict[str, UserState]:
        """The newest state of each user, from the changelog alone."""
        topic = f"{self.group}-user_state-changelog"
        return {
            user: decode_state(value)
            for user, value in independent_fold.last_values(self.stack.bootstrap, topic).items()
            if value
        }

    def expected(self) -> tuple[dict[str, independent_fold.Expected], int]:
        """What the independent fold makes of the events topic."""
        self.producer.flush()
        return independent_fold.expected_states(self.stack.bootstrap, self.topics["events"])

    def settled(self) -> bool:
        """Whether every user's newest list is as of their last event."""
        users, _ = self.expected()
        lists = self.lists()
        return all(
            user in lists and (lists[user]["as_of"]["partition"], lists[user]["as_of"]["offset"]) == expected.last
            for user, expected in users.items()
        )

    def settle(self, patience: float = PATIENCE) -> None:
        """Wait until `settled`."""
        until(self.settled, "every user's last list is as of their last event", *self.workers, patience=patience)

    def archived(self, ends: Mapping[str, int] | None = None) -> Path:
        """The folder of an archive of the topics up to `ends`, by default of all records of three topics."""
        ends = ends or {topic: len(self.records(topic)) for topic in ("events", "items", "popularity")}
        folder = self.folder / "archive"
        own = {"FRESHET_ARCHIVE_DIR": str(folder), "FRESHET_ARCHIVE_ROLL": "0.2", "FRESHET_DATA_DIR": str(folder)}
        archiver, stopping = Archiver(load_settings(environ=self.settings | own), Health()), threading.Event()
        thread = threading.Thread(target=archiver.run, args=(stopping,))
        thread.start()
        try:
            for topic, end in ends.items():
                until(chains_end(folder / self.topics[topic], end), f"{topic} is archived")
        finally:
            stopping.set()
            thread.join()
        return folder

    def check(self) -> None:
        """State equals the independent fold; valid plus dead-lettered equals produced."""
        users, bad = self.expected()
        states = self.states()
        assert set(states) == set(users)
        for user, expected in users.items():
            state = states[user]
            assert (state.partition, state.offset) == expected.last, user
            assert state.folded == expected.folded, user
            assert state.counts == dict(expected.counts), user
            assert state.items == expected.items[-50:], user
            assert {kind: round(sum_, 6) for kind, sum_ in state.spend.items() if sum_} == {
                kind: round(sum_, 6) for kind, sum_ in expected.spend.items() if sum_
            }, user
        headers = [dict(record.headers) for record in self.records("events.dlq")]
        dead = {(letter["origin_partition"], letter["origin_offset"]) for letter in headers}
        assert len(dead) == bad
        settings = load_settings(environ=self.settings)
        with closing(open_log("kafka", settings)) as log:
            assert self.popularity() == pytest.approx(popularity_of(recounted(log, settings)), abs=COUNT_TOLERANCE)

    def popularity(self) -> dict[str, float]:
        """What the popularity topic says of each item."""
        partials = [decode_partial(record.value or b"") for record in self.records("popularity")]
        return popularity_of(partial for partial in partials if not isinstance(partial, str))

    def close(self) -> None:
        """End every worker."""
        self.producer.close()
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()


def popularity_of(partials: Iterable[Partial]) -> dict[str, float]:
    """The counts that the records say, those that have faded left out."""
    table = PopularityTable()
    for partial in partials:
        assert not isinstance(table.apply(partial), str), partial
    return {item: count for item, count in zip(*table.popularity(), strict=True) if count}


def chains_end(folder: Path, end: int) -> Callable[[], bool]:
    """Whether the files of an archived topic hold so many offsets."""
    return lambda: sum(chain.end() for chain in chains(folder)) >= end


def until(holds: Callable[[], bool], condition: str, *workers: Worker, patience: float = PATIENCE) -> None:
    """Wait until `holds`; fail with the workers' last log lines when it does not in time, or one ended badly."""
    deadline = time.monotonic() + patience
    while not holds():
        ended = [worker for worker in workers if worker.process.poll() not in (None, 0, -signal.SIGKILL)]
        if ended or time.monotonic() > deadline:
            logs = "\n".join("\n".join(worker.log.read_text().splitlines()[-15:]) for worker in workers)
            raise AssertionError(f"{'a worker ended' if ended else 'not in time'}: {condition}\n{logs}")
        time.sleep(0.25)
