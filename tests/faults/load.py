"""Floods, hot partitions, many users, and random mixes of faults."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from confluent_kafka import Producer
from freshet.core.events import Event, encode_event

from tests.faults.arena import Arena, Trial, ends, last_words, rss_mib
from tests.faults.catalogue import fault
from tests.integration.deployment import Worker, until

PER_SECOND = 100
TS = 890_000_000_000
RSS_MIB = 600.0


def waits_of_others(trial: Trial, since: float, flooded: str, users: str = "user-") -> list[float]:
    """How long the lists of users took that are not part of a flood, in s, from the broker's time on."""
    waits = []
    for record in trial.records("recommendations"):
        made = json.loads(record.value)
        timings = made["timings"]
        if made["user_id"].startswith(users) and made["user_id"] != flooded and timings["broker"] / 1000 >= since:
            waits.append((timings["publish"] - timings["broker"]) / 1000)
    return sorted(waits)


def p99(waits: Sequence[float]) -> float:
    """The 99th percentile; infinite where there is nothing."""
    return waits[int(len(waits) * 0.99)] if waits else math.inf


def produce_quickly(trial: Trial, events: Sequence[Event], partition: int) -> None:
    """Put a backlog into one partition at once."""
    producer = Producer({"bootstrap.servers": trial.stack.bootstrap, "queue.buffering.max.messages": 1_000_000})
    for event in events:
        producer.produce(trial.topics["events"], encode_event(event), event.user_id.encode(), partition=partition)
    producer.flush()


@fault(
    "F35",
    "20 times the load from one user: the others' p99 at most twice as long",
    known="no per-user token bucket; popularity counts a user once per item",
)
def flood_of_one(arena: Arena) -> Sequence[str]:
    """On the same two partitions."""
    trial = arena.trial()
    trial.worker()
    with trial.traffic(arena.seed, 30, users=500):
        time.sleep(12)
        quiet = p99(waits_of_others(trial, time.time() - 8, "flood"))
        began = time.time()
        flood = [
            Event(f"e-flood{number}", "flood", "view", TS + number, str(number % 1500 + 1)) for number in range(8000)
        ]
        for second in range(10):
            trial.send(flood[second * 600 : second * 600 + 600])
            time.sleep(max(0.0, began + second + 1 - time.time()))
        loud = p99(waits_of_others(trial, began, "flood"))
    print(f"       p99 of the others {quiet * 1000:.0f} ms, in the flood {loud * 1000:.0f} ms", flush=True)
    said = list(trial.verdict())
    return said + ([f"p99 {quiet * 1000:.0f} ms becomes {loud * 1000:.0f} ms"] if loud > 2 * max(quiet, 0.02) else [])


@fault("F36", "60,000 events of backlog in one partition: the other's p99 stays within 3 s")
def hot_partition(arena: Arena) -> Sequence[str]:
    """Partitions are taken in turn."""
    trial = arena.trial()
    worker = trial.worker()
    backlog = [
        Event(f"e-b{number}", f"back-{number % 9000}", "view", TS + number, str(number % 1500 + 1))
        for number in range(arena.times(60_000, 10_000))
    ]
    began = time.time()
    produce_quickly(trial, backlog, 0)
    for number in range(60):
        events = [Event(f"e-o{number}-{n}", f"user-{n}", "view", TS + number, str(n + 1)) for n in range(3)]
        produce_quickly(trial, events, 1)
        time.sleep(0.1)
    until(lambda: worker.metric("freshet_lag_events") == 0, "the backlog is folded", worker, patience=200)
    wait = p99(waits_of_others(trial, began, ""))
    print(f"       p99 of the other partition {wait:.2f} s", flush=True)
    return list(trial.verdict(patience=90)) + ([f"p99 of the other partition is {wait:.1f} s"] if wait > 3.0 else [])


@fault("F37", "200,000 users: under 600 MiB resident, disk in proportion")
def many_users(arena: Arena) -> Sequence[str]:
    """One event of each; a million of them took 340 MiB and 38 MB of disk (2026-11-30)."""
    trial = arena.trial()
    worker = trial.worker()
    sizes = []
    for part in range(2):
        events = [
            Event(f"e-{n}", f"user-{n}", "view", TS + n, str(n % 1500 + 1))
            for n in range(part * 100_000, (part + 1) * 100_000)
        ]
        for partition in (0, 1):
            produce_quickly(trial, events[partition::2], partition)
        folded = (part + 1) * 100_000
        until(
            lambda folded=folded: worker.metric("freshet_events_folded_total") >= folded, "folded", worker, patience=240
        )  # type: ignore[misc]
        sizes.append(sum(file.stat().st_size for file in worker.data.rglob("*") if file.is_file()))
    said = []
    if rss_mib(worker.process.pid) > RSS_MIB:
        said.append(f"{rss_mib(worker.process.pid):.0f} MiB resident")
    if sizes[1] > 3 * sizes[0]:
        said.append(f"{sizes[0]:,} bytes of disk became {sizes[1]:,}")
    return said


@fault("F39", "minutes of a random mix of kills, wipes, stops and freezes on two workers; nothing grows")
def random_mix_of_minutes(arena: Arena) -> Sequence[str]:
    """The soak, cut short (`python -m tests.faults soak --hours N`)."""
    return random_mix(arena, 120.0)


def random_mix(arena: Arena, seconds: float) -> Sequence[str]:
    """Faults drawn at random for so long, with all that the judge asks, and handles, threads and memory (I8)."""
    trial = arena.trial(4)
    workers = {name: trial.worker(name) for name in ("a", "b")}
    deadline = time.monotonic() + seconds
    said = []
    with trial.traffic(arena.seed, PER_SECOND, users=1000):
        while time.monotonic() < deadline:
            arena.pause(1.0, 6.0)
            name, act = arena.rng.choice(sorted(workers)), arena.rng.choice(("kill", "wipe", "stop", "freeze"))
            said += _act(trial, workers[name], act)
            trial.workers.remove(workers[name])
            workers[name] = trial.worker(name)
        said += _growth(arena, workers["a"])
    return said + list(trial.verdict(patience=120))


def _act(trial: Trial, worker: Worker, act: str) -> list[str]:
    if act == "stop":
        status = worker.terminate()
        return [] if status == 0 else [f"stopped with status {status}: {last_words(worker)}"]
    if act == "freeze":
        worker.process.send_signal(signal.SIGSTOP)
        time.sleep(15)
        worker.process.send_signal(signal.SIGCONT)
        ends(worker, 20)
    trial.kill(worker)
    if act == "wipe":
        shutil.rmtree(worker.data)
    return []


def _growth(arena: Arena, worker: Worker) -> list[str]:
    """I8: handles and threads of a worker under load do not grow, and memory stays bounded."""
    proc = Path(f"/proc/{worker.process.pid}")

    def held() -> tuple[int, int]:
        return len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))

    time.sleep(5)
    handles, threads = held()
    time.sleep(15)
    later_handles, later_threads = held()
    said = []
    if later_handles > handles + 20 or later_threads > threads + 5:
        said.append(f"I8: {handles} handles and {threads} threads became {later_handles} and {later_threads}")
    if rss_mib(worker.process.pid) > RSS_MIB:
        said.append(f"I8: {rss_mib(worker.process.pid):.0f} MiB resident")
    return said
