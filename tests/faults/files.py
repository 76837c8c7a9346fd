"""Local files that are torn, flipped or missing, a full disk, and states that are too large."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from freshet.core.events import Event

from tests.faults.arena import Arena, Trial, ends, last_words
from tests.faults.catalogue import fault
from tests.integration.deployment import Worker, until
from tests.integration.test_worker import stream

PER_SECOND = 150


def newest(folder: Path, pattern: str) -> Path:
    """The largest file of a kind in a partition's folder."""
    return max(folder.rglob(pattern), key=lambda file: file.stat().st_size)


def tear_log(folder: Path) -> None:
    """The write-ahead log ends in the middle of a record."""
    log = newest(folder, "*.log")
    log.write_bytes(log.read_bytes()[: log.stat().st_size * 2 // 3])


def lose_current(folder: Path) -> None:
    """The file that names the manifest is gone."""
    for file in folder.rglob("CURRENT"):
        file.unlink()


def flip_bits(folder: Path) -> None:
    """Every bit in the middle of the largest file is another."""
    tables = list(folder.rglob("*.sst"))
    file = newest(folder, "*.sst" if tables else "*.log")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = bytes(byte ^ 0xFF for byte in content[middle : middle + 500])
    file.write_bytes(content)


def garbage(folder: Path) -> None:
    """The manifests hold nothing that can be read."""
    for file in folder.rglob("MANIFEST-*"):
        file.write_bytes(b"garbage" * 100)


HARMS: Sequence[Callable[[Path], None]] = (tear_log, lose_current, flip_bits, garbage)


@fault("F6", "torn log, missing CURRENT, flipped data, garbage manifest")
def damaged_files(arena: Arena) -> Sequence[str]:
    """The files are rebuilt from the changelog; a worker that ends for it comes back whole."""
    trial = arena.trial()
    worker = trial.worker()
    with trial.traffic(arena.seed, PER_SECOND):
        for harm in HARMS if not arena.quick else arena.rng.sample(HARMS, 2):
            arena.pause(1.0, 2.0)
            trial.kill(worker)
            harm(worker.data)
            trial.workers.remove(worker)
            worker = supervised(trial)
    return trial.verdict()


def supervised(trial: Trial, tries: int = 3) -> Worker:
    """Start a worker until it is ready: it may end for damaged files that the next start rebuilds."""
    for _ in range(tries):
        worker = trial.worker(ready=False)
        until(
            lambda worker=worker: worker.process.poll() is not None or worker.get("/readyz")[0] == 200,  # type: ignore[misc]
            "the worker is ready or has ended",
        )
        if worker.process.poll() is None:
            return worker
        trial.workers.remove(worker)
    raise AssertionError(f"the worker ends again and again: {last_words(worker)}")


@fault("F7", "a full disk: ends with a sentence, goes on after")
def full_disk(arena: Arena) -> Sequence[str]:
    """The worker's folder is a file system of 3 MiB that is filled."""
    trial = arena.trial()
    folder = trial.folder / "w1"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], check=True)
    arena.afterwards(lambda: subprocess.run(["umount", "-l", str(folder)], check=False))
    worker = trial.worker()
    trial.send(stream(arena.seed, 200))
    trial.settle()
    (folder / "filler").write_bytes(b"")
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    with trial.traffic(arena.seed + 1, PER_SECOND):
        status, words = ends(worker, 60), last_words(worker)
        (folder / "filler").unlink()
        if status is not None:
            trial.workers.remove(worker)
            supervised(trial)
    said = (
        [] if status in {None, 70} and (status is None or "no space left" in words) else [f"status {status}: {words}"]
    )
    return said + list(trial.verdict())


@fault("F17", "a state too large for the changelog: trimmed and counted", quick=True)
def large_state(arena: Arena) -> Sequence[str]:
    """A history of 1,000 events whose ids have 256 characters of three bytes."""
    trial = arena.trial(FRESHET_HISTORY="1000")
    worker = trial.worker()
    ids = [chr(0x4E00 + number) * 256 for number in range(600)]
    trial.send(Event(f"e-{number}", "large", "view", 890_000_000_000 + number, ids[number]) for number in range(600))
    trial.send(stream(arena.seed, 100))
    until(lambda: {"large", "user-1"} <= trial.lists().keys(), "the large user and another have their lists", worker)
    state = trial.states()["large"]
    said = [] if state.folded == 600 and state.items[-1] == ids[-1] else [f"{state.folded} of 600 events are folded"]
    return said + ([] if worker.metric("freshet_states_full_total") > 0 else ["the full state is not counted"])
