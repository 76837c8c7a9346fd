"""Where faults happen: a stack, deployments on it with a judge each, traffic, and workers with an error put in."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.local import Stack
from tests.integration.deployment import Deployment, Worker, until
from tests.integration.test_worker import stream

PATIENCE = 60.0
UNCOMMITTED_SECONDS = 2.0
"""Events of so long may be delivered again after a fault: what is committed lags behind by a batch and a commit."""


class Traffic:
    """A seeded stream of events at an even pace, with a sequence for each user, until it is stopped."""

    def __init__(self, deployment: Deployment, seed: int, per_second: int, users: int = 300) -> None:
        self._deployment = deployment
        self._events = iter(stream(seed, 10**6, users=users))
        self._per_second = per_second
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sending; everything sent is on the broker then."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ending.is_set():
            self._deployment.send([next(self._events) for _ in range(max(1, self._per_second // 10))])
            due = max(due + 0.1, time.monotonic() - 1.0)
            time.sleep(max(0.0, due - time.monotonic()))


class Trial(Deployment):
    """A deployment that a judge watches."""

    def __init__(self, stack: Stack, folder: Path, name: str, partitions: int = 2, **settings: str) -> None:
        super().__init__(stack, folder, name, partitions, **settings)
        self.faults = 0
        self._started: list[Worker] = []
        self._judge: subprocess.Popen[bytes] | None = None

    def worker(self, name: str = "w1", *, ready: bool = True, error: str = "", **settings: str) -> Worker:
        """Start a worker, with an error put into it (`tests.faults.errors`) where one is named."""
        self._watch()
        (self.folder / name / "health.port").unlink(missing_ok=True)
        environment = self.settings | {"FRESHET_DATA_DIR": str(self.folder / name), "PUT_IN_ERROR": error} | settings
        module = "tests.faults.errors" if error else "freshet.cli"
        worker = Worker(environment, self.folder / f"{name}.log", module)
        self.workers.append(worker)
        self._started.append(worker)
        if ready:
            until(lambda: worker.get("/readyz")[0] == 200, "the worker is ready", worker)
        return worker

    def restarted(self, worker: Worker, *, error: str = "") -> Worker:
        """Start a worker that has ended again, on its files."""
        self.workers.remove(worker)
        return self.worker(worker.data.name, error=error)

    def verb(self, *arguments: str) -> str:
        """Run a verb in a process of its own; what it printed."""
        command = [sys.executable, "-m", "freshet.cli", *arguments]
        done = subprocess.run(command, env=os.environ | self.settings, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def kill(self, worker: Worker) -> None:
        """SIGKILL, counted as a fault."""
        self.faults += 1
        worker.kill()

    @contextmanager
    def traffic(self, seed: int, per_second: int = 100, users: int = 300) -> Iterator[None]:
        """Send events while the block runs."""
        self._watch()
        traffic = Traffic(self, seed, per_second, users)
        try:
            yield
        finally:
            traffic.stop()

    def _watch(self) -> None:
        if self._judge is None:
            topics = {name: self.topics[name] for name in ("events", "recommendations", "events.dlq")}
            given = {"bootstrap": self.stack.bootstrap, "group": self.group, "topics": topics}
            command = [sys.executable, "-m", "tests.faults.judge", json.dumps(given)]
            self._judge = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def verdict(self, *, patience: float = PATIENCE, repeats: int | None = None) -> list[str]:
        """What the judge has to complain of, once all is read; and which workers have ended by themselves."""
        assert self._judge is not None
        asked = {"patience": patience, "repeats": repeats}
        answer, _ = self._judge.communicate(json.dumps(asked).encode() + b"\n")
        complaints: list[str] = json.loads(answer) if answer else ["the judge has ended"]
        self._judge = None
        ended = [worker for worker in self.workers if worker.process.poll() not in (None, 0, -9)]
        return complaints + [f"{worker.data.name} ended: {last_words(worker)}" for worker in ended]

    def close(self) -> None:
        """End the workers and the judge."""
        self.workers = self._started
        super().close()
        if self._judge is not None:
            self._judge.kill()
            self._judge.wait()


class Arena:
    """What a scenario is given: the stack, its own random numbers, and deployments that end with it."""

    def __init__(self, stack: Stack, folder: Path, seed: int, *, quick: bool = False) -> None:
        self.stack = stack
        self.folder = folder
        self.rng = random.Random(seed)
        self.seed = seed
        self.quick = quick
        self._trials: list[Trial] = []
        self._repairs: list[Callable[[], object]] = []

    def trial(self, partitions: int = 2, **settings: str) -> Trial:
        """A deployment with topics and folders of its own."""
        name = f"fault-{uuid.uuid4().hex[:8]}"
        (self.folder / name).mkdir(parents=True)
        trial = Trial(self.stack, self.folder / name, name, partitions, **settings)
        self._trials.append(trial)
        return trial

    def afterwards(self, repair: Callable[[], object]) -> None:
        """What brings the stack back, whatever becomes of the scenario."""
        self._repairs.append(repair)

    def times(self, whole: int, quick: int) -> int:
        """How often something is done: fewer times in `make test`."""
        return quick if self.quick else whole

    def pause(self, least: float, most: float) -> None:
        """Wait for a random time."""
        time.sleep(self.rng.uniform(least, most))

    def close(self) -> None:
        """End what was started, and repair the stack."""
        for repair in reversed(self._repairs):
            repair()
        for trial in self._trials:
            trial.close()


def last_words(worker: Worker) -> str:
    """The last line of a worker's log, shortened to its message."""
    lines = worker.log.read_text(errors="replace").strip().splitlines()
    try:
        entry: dict[str, Any] = json.loads(lines[-1])
        return str(entry.get("exception", entry["message"])).strip().splitlines()[-1][:300]
    except (ValueError, IndexError, KeyError):
        return lines[-1][:300] if lines else "no word"


def ends(worker: Worker, seconds: float) -> int | None:
    """The exit status of a worker that ends within a time; None where it does not."""
    try:
        return worker.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
