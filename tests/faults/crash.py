"""Workers that die, freeze, stop and hand over."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from confluent_kafka import Consumer, TopicPartition

from deploy.local.parts import ROOT
from tests.faults.arena import Arena, Trial, ends, last_words
from tests.faults.catalogue import fault
from tests.integration.deployment import until
from tests.integration.test_worker import stream

PER_SECOND = 150
SESSION_SECONDS = 10.0
MOST_USERS = 100_000
KILL_STEPS = ("fold", "changelog", "files", "encode", "features", "publish", "commit")
"""Steps of a micro-batch, as `tests.faults.errors` names them."""


def window(trial: Trial) -> int:
    """Lists that the faults of a trial may have had published twice (I4): what arrived in 2 s before each."""
    return trial.faults * 2 * PER_SECOND


@fault("F1", "SIGKILL in mid-stream, ten times")
def killed_again_and_again(arena: Arena) -> Sequence[str]:
    """A worker on its own files."""
    trial = arena.trial()
    worker = trial.worker()
    with trial.traffic(arena.seed, PER_SECOND):
        for _ in range(arena.times(10, 2)):
            arena.pause(0.5, 2.5)
            trial.kill(worker)
            worker = trial.restarted(worker)
    return trial.verdict(repeats=window(trial))


@fault("F2", "a kill at each step of a micro-batch")
def killed_at_each_step(arena: Arena) -> Sequence[str]:
    """The worker dies at the step by itself, and comes back without the error."""
    trial = arena.trial()
    said = []
    with trial.traffic(arena.seed, PER_SECOND):
        for step in KILL_STEPS:
            worker = trial.worker(error=f"kill:{step}", ready=False)
            if ends(worker, 60) != -signal.SIGKILL:
                said.append(f"the worker did not come to the step {step}")
                worker.kill()
            trial.workers.remove(worker)
            trial.faults += 1
        trial.worker()
    return said + list(trial.verdict(repeats=window(trial)))


@fault("F3", "kill and wipe; kill, restart, kill and wipe")
def killed_and_wiped(arena: Arena) -> Sequence[str]:
    """The changelog alone has every state."""
    trial = arena.trial()
    worker = trial.worker()
    with trial.traffic(arena.seed, PER_SECOND):
        for wiped in (True, False, True):
            arena.pause(1.0, 3.0)
            trial.kill(worker)
            if wiped:
                shutil.rmtree(worker.data)
            worker = trial.restarted(worker)
    return trial.verdict(repeats=window(trial))


@fault("F4", "hand-over from A to B and back, A with its old files")
def handed_over_and_back(arena: Arena) -> Sequence[str]:
    """What B has written is newer than A's files."""
    trial = arena.trial()
    first = trial.worker("a")
    with trial.traffic(arena.seed, PER_SECOND):
        arena.pause(1.0, 2.0)
        trial.kill(first)
        trial.workers.remove(first)
        second = trial.worker("b")
        arena.pause(2.0, 4.0)
        trial.kill(second)
        trial.workers.remove(second)
        trial.worker("a")
    return trial.verdict(repeats=window(trial), patience=90)


@fault("F5", "SIGTERM under load: nothing twice, no lag left, within 15 s", quick=True)
def stopped_under_load(arena: Arena) -> Sequence[str]:
    """A drain is clean."""
    trial = arena.trial()
    worker = trial.worker()
    said = []
    with trial.traffic(arena.seed, PER_SECOND):
        for _ in range(arena.times(3, 1)):
            arena.pause(1.0, 3.0)
            began = time.monotonic()
            status = worker.terminate()
            took = time.monotonic() - began
            if status != 0 or took > 15:
                said.append(f"the stop took {took:.1f} s, status {status}")
            worker = trial.restarted(worker)
    return said + list(trial.verdict(repeats=0))


@fault("F8", "a second worker in the same folder", quick=True, refusal="one line: the folder is another process's")
def two_in_one_folder(arena: Arena) -> Sequence[str]:
    """It ends at once with a sentence, and the first goes on."""
    trial = arena.trial()
    worker = trial.worker()
    trial.send(stream(arena.seed, 50))
    port = (worker.data / "health.port").read_text()
    second = trial.worker(ready=False)
    (worker.data / "health.port").write_text(port)
    status, words = ends(second, 30), last_words(second)
    second.kill()
    trial.workers.remove(second)
    said = [] if status == 1 and "another process runs on" in words else [f"status {status}: {words}"]
    return said + list(trial.verdict(repeats=0))


@fault("F9", "a rebalance storm")
def rebalance_storm(arena: Arena) -> Sequence[str]:
    """Workers come and go, killed and stopped, while another stays."""
    trial = arena.trial(4)
    trial.worker("stays")
    with trial.traffic(arena.seed, PER_SECOND):
        for number in range(5):
            worker = trial.worker(f"w{number % 2}", ready=number % 2 == 0)
            arena.pause(0.5, 3.0)
            if arena.rng.random() < 0.5:
                trial.kill(worker)
            else:
                worker.terminate()
            trial.workers.remove(worker)
    return trial.verdict(patience=90)


@fault("F10", "a zombie: frozen past its session, then awake")
def zombie(arena: Arena) -> Sequence[str]:
    """Its partitions are another's by then: it ends itself, and what it does until then changes nothing."""
    trial = arena.trial(4)
    first, second = trial.worker("a"), trial.worker("b")
    said = []
    with trial.traffic(arena.seed, PER_SECOND):
        arena.pause(1.0, 2.0)
        first.process.send_signal(signal.SIGSTOP)
        time.sleep(SESSION_SECONDS + 5)
        first.process.send_signal(signal.SIGCONT)
        status = ends(first, 20)
        if status is None:
            said.append("the zombie goes on")
            first.kill()
        trial.workers.remove(first)
        trial.worker("a")
    if second.process.poll() is not None:
        said.append(f"the other worker ended: {last_words(second)}")
    return said + list(trial.verdict(patience=90))


@fault("F11", "restart with 100,000 users: first list within 5 s warm, 20 s wiped")
def restart_times(arena: Arena) -> Sequence[str]:
    """From the start of the process to the first list of an event that waits."""
    trial = arena.trial()
    worker = trial.worker()
    events = (event for event in stream(arena.seed, 10**6, users=MOST_USERS))
    for _ in range(60):
        trial.send([next(events) for _ in range(2500)])
    until(lambda: sum(_committed(trial).values()) >= trial._sent, "all is committed", worker, patience=400)
    said = []
    for wiped, most in ((False, 5.0), (True, 20.0)):
        trial.kill(worker)
        if wiped:
            shutil.rmtree(worker.data)
        trial.send([next(events)])
        before, began = len(trial.records("recommendations")), time.monotonic()
        trial.workers.remove(worker)
        worker = trial.worker(ready=False)
        consumer_sees_list(trial, before)
        took = time.monotonic() - began
        if took > most:
            said.append(
                f"I9: the first list came after {took:.1f} s {'wiped' if wiped else 'warm'}, {most:.0f} allowed"
            )
    return said


def consumer_sees_list(trial: Trial, before: int) -> None:
    """Wait, without reading everything again, until more lists are published than before."""
    consumer = Consumer({"bootstrap.servers": trial.stack.bootstrap, "group.id": "faults"})
    partitions = [TopicPartition(trial.topics["recommendations"], number) for number in range(2)]
    ended = lambda: sum(consumer.get_watermark_offsets(at, 10)[1] for at in partitions) > before  # noqa: E731
    until(ended, "a list is published", *trial.workers)
    consumer.close()


def _committed(trial: Trial) -> dict[int, int]:
    consumer = Consumer({"bootstrap.servers": trial.stack.bootstrap, "group.id": trial.group})
    partitions = [TopicPartition(trial.topics["events"], number) for number in range(2)]
    found = {at.partition: max(0, at.offset) for at in consumer.committed(partitions, timeout=10)}
    consumer.close()
    return found


@fault("F42", "every crash point, and every pair, in process")
def every_crash_point(arena: Arena) -> Sequence[str]:
    """The simulation, which `make test` runs too."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/simulation/test_crash_points.py"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    return [] if done.returncode == 0 else [done.stdout.strip().splitlines()[-1]]
