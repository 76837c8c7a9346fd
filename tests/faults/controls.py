"""Errors put into the worker on purpose, and a fault that shows each: a judge who finds none proves nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from tests.faults import broker
from tests.faults.arena import Arena, ends
from tests.faults.catalogue import fault
from tests.integration.test_worker import stream


def found(complaints: Sequence[str], invariants: Sequence[str]) -> Sequence[str]:
    """Nothing where the judge complains of one of the invariants; that it did not, otherwise."""
    if any(complaint.startswith(tuple(invariants)) for complaint in complaints):
        return []
    return [f"the judge does not find it: {'; '.join(complaints) or 'no complaint'}"]


@fault("C1", "control: `take` (acknowledged before it is done)", quick=True)
def take(arena: Arena) -> Sequence[str]:
    """Killed in mid-stream, what was acknowledged is lost; or a sample shows it committed before it was durable."""
    trial = arena.trial()
    worker = trial.worker(error="take")
    with trial.traffic(arena.seed, 400):
        for _ in range(3):
            arena.pause(1.0, 2.0)
            trial.kill(worker)
            worker = trial.restarted(worker, error="take")
    return found(trial.verdict(patience=20), ("I1", "I2", "I3", "I6"))


@fault("C2", "control: no wait for deliveries before the commit")
def no_wait(arena: Arena) -> Sequence[str]:
    """Random kills do not see it, for the broker takes what was handed over; a topic that is gone does (F18)."""
    return found(broker.output_topic_gone(arena, "recommendations", "no_wait"), ("I3", "I6"))


@fault("C3", "control: no deduplication")
def no_deduplication(arena: Arena) -> Sequence[str]:
    """Events that are produced twice are folded twice."""
    trial = arena.trial()
    trial.worker(error="no_deduplication")
    trial.send(stream(arena.seed, 600))
    return found(trial.verdict(patience=20), ("I2",))


@fault("C4", "control: no effects for users who are touched by duplicates alone")
def skip_duplicates(arena: Arena) -> Sequence[str]:
    """Killed between the state and the list: what is delivered again changes no state, and the list never comes."""
    trial = arena.trial()
    worker = trial.worker(error="kill:publish", ready=False)
    with trial.traffic(arena.seed, 200, users=5000):
        complaints = [] if ends(worker, 60) == -signal.SIGKILL else ["the worker did not die before a list"]
    worker.kill()
    trial.workers.remove(worker)
    trial.worker(error="skip_duplicates")
    return complaints or found(trial.verdict(patience=15), ("I3",))


@fault(
    "C5",
    "control: agent concurrency 2, which is harmless",
    refusal="one inbox keeps the order: twice the agent changes nothing that the judge sees",
)
def concurrency_2(arena: Arena) -> Sequence[str]:
    """Both agents put into one inbox what Faust's one stream hands them, in turn; its batches take effect in order."""
    trial = arena.trial()
    worker = trial.worker(error="concurrency_2")
    with trial.traffic(arena.seed, 400, users=20):
        for _ in range(2):
            arena.pause(1.0, 2.0)
            trial.kill(worker)
            worker = trial.restarted(worker, error="concurrency_2")
        time.sleep(2)
    return trial.verdict()
