"""Everything that reads topics, beside a fuzzing producer: a worker, an archiver and the verbs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from click.testing import Result
from confluent_kafka import Producer
from freshet.cli import app
from freshet.core.events import Event, encode_event
from freshet.core.state import decode_state
from freshet.logs.kafka import KafkaLog
from freshet.ports import EmptyLog
from freshet.settings import load_settings
from typer.testing import CliRunner

from deploy.local import Stack
from tests.fuzz.batches import TS, Batch
from tests.integration.deployment import Deployment, chains_end, until
from tests.record_batches import batch, produce, records

VERB_SECONDS = 120.0
VERBS: Sequence[Sequence[str]] = (
    ("tail", "--from-beginning", "--until-end"),
    ("tail", "--from-beginning", "--until-end", "--json"),
    ("inspect", "user-1"),
    ("inspect", "stored-1"),
    ("explain", "user-1"),
    ("models",),
    ("dlq", "list"),
    ("dlq", "replay", "--dry-run"),
    ("popularity", "repair"),
    ("replay", "kafka", "--items", "kafka", "--evaluate", "--out", "{folder}/replay", "--overwrite"),
    ("verify", "kafka", "--feature-users", "5"),
    ("compare",),
    ("ope",),
    ("features", "history"),
    ("check",),
)


class Arena(Deployment):
    """A deployment of one partition whose good events must be folded, whatever else is on its topics."""

    def __init__(self, stack: Stack, folder: Path, name: str) -> None:
        super().__init__(stack, folder, name, 1)
        self.topics["changelog"] = f"{name}-user_state-changelog"
        self.settings |= {"FRESHET_ARCHIVE_ROLL": "0.2", "FRESHET_DATA_DIR": str(folder / "w1")}
        self.good: dict[str, int] = {}
        self.taken = 0
        self.archiver: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start the worker and the archiver."""
        self.worker()
        with (self.folder / "archive.log").open("ab") as log:
            self.archiver = subprocess.Popen(
                [sys.executable, "-m", "freshet.cli", "archive", "--state-dir", str(self.folder / "a1")],
                env=os.environ | self.settings,
                stdout=log,
                stderr=log,
            )

    def produce(self, made: Iterable[Batch]) -> None:
        """Send batches as they are, each followed by an event that is folded; the broker may refuse a batch."""
        for number, each in enumerate(made):
            self.taken += produce(self.stack.bootstrap, self.topics[each.topic], 0, each.data) == 0
            if number % 5 == 4:
                self.send_good()
        self._abort()
        self.send_good()

    def send_good(self) -> None:
        """A valid event of a user of its own, once the broker takes it."""
        user = f"good-{len(self.good) % 7}"
        event = Event(f"g{sum(self.good.values())}-{self.group}", user, "view", TS + len(self.good), "50")
        data = batch(records([(user.encode(), encode_event(event))]), 1, timestamp=int(time.time() * 1000))
        send = partial(produce, self.stack.bootstrap, self.topics["events"], 0, data)
        until(lambda: send() == 0, "the broker takes an event")
        self.good[user] = self.good.get(user, 0) + 1

    def _abort(self) -> None:
        """Events in a transaction that is aborted."""
        producer = Producer({"bootstrap.servers": self.stack.bootstrap, "transactional.id": self.group})
        producer.init_transactions()
        producer.begin_transaction()
        for topic in ("events", "items", "models", "popularity"):
            producer.produce(self.topics[topic], b"{", b"user-1", partition=0)
        producer.flush()
        producer.abort_transaction()

    def records(self, topic: str) -> list[Any]:
        """All records of a topic, as the worker's parser reads them: no other client reads all that is there."""
        try:
            log = KafkaLog(self.topics[topic], load_settings(environ=self.settings))
        except EmptyLog:
            return []
        return [record for run in log.read(0) for record in run]

    def folded(self) -> bool:
        """Whether every good event is folded, by the changelog, and the user has a list."""
        listed = {record.key for record in self.records("recommendations") if record.value}
        folds = {}
        for record in self.records("changelog"):
            if record.key is not None and record.key.decode(errors="replace") in self.good:
                folds[record.key.decode()] = decode_state(record.value).folded
        return folds == self.good and {user.encode() for user in self.good} <= listed

    def settle_round(self) -> None:
        """Wait until all that is good is folded and archived, with the worker and the archiver alive."""
        until(self.folded, "good events are folded and listed", *self.workers)
        end = self.records("events")[-1].offset + 1
        folder = Path(self.settings["FRESHET_ARCHIVE_DIR"]) / self.topics["events"]
        until(chains_end(folder, end), "events are archived")
        archiver = self.archiver
        assert archiver is not None
        assert archiver.poll() is None, (self.folder / "archive.log").read_text()[-3000:]

    def recover(self) -> None:
        """Start the worker again without its files: the states come from the changelog alone."""
        worker = self.workers.pop()
        worker.kill()
        shutil.rmtree(worker.data)
        self.worker()
        self.send_good()

    def run_verbs(self) -> None:
        """Every verb that reads a topic ends in time: well, or with one line that says why."""
        for verb in VERBS:
            arguments = [part.format(folder=self.folder) for part in verb]
            ended: list[Result] = []
            runner = threading.Thread(
                target=lambda given=arguments, into=ended: into.append(
                    CliRunner().invoke(app, given, env=self.settings)
                ),
                daemon=True,
            )
            runner.start()
            runner.join(VERB_SECONDS)
            assert ended, f"freshet {' '.join(verb)} hangs"
            [result] = ended
            surprise = result.exception is not None and not isinstance(result.exception, SystemExit)
            trace = "".join(traceback.format_exception(*result.exc_info)[-12:]) if surprise and result.exc_info else ""
            assert not surprise, f"freshet {' '.join(verb)} ends in a traceback:\n{trace}"

    def close(self) -> None:
        """End the worker and the archiver."""
        super().close()
        if self.archiver is not None:
            self.archiver.kill()
            self.archiver.wait()
