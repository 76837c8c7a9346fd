"""Triton away, frozen, restarted, swapped, and wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from deploy import local
from tests.altered_bundles import Keys, altered, with_nan
from tests.faults.arena import Arena, Trial
from tests.faults.catalogue import fault
from tests.integration.deployment import until
from tests.integration.test_worker import stream

PER_SECOND = 60
DEADLINE_SECONDS = "1.0"


def lists_of(trial: Trial) -> list[dict[str, Any]]:
    """Every list, in the order of the topic."""
    return [json.loads(record.value) for record in trial.records("recommendations") if record.value]


def repaired(arena: Arena) -> None:
    """Triton runs again after the scenario, whatever becomes of it."""
    arena.afterwards(lambda: None if local.is_running(arena.stack) else local.start_part(arena.stack, "triton"))


@fault("F21", "Triton killed, away for a while: degraded lists, state keeps folding, back within 5 s")
def triton_killed(arena: Arena) -> Sequence[str]:
    """From ready again at Triton to the first personal list."""
    trial = arena.trial(FRESHET_TRITON_DEADLINE=DEADLINE_SECONDS)
    trial.worker()
    repaired(arena)
    with trial.traffic(arena.seed, PER_SECOND):
        time.sleep(2)
        local.kill_part(arena.stack, "triton")
        killed = time.time()
        time.sleep(arena.times(30, 5))
        local.start_part(arena.stack, "triton")
        back = time.time()
        time.sleep(8)
    said = list(trial.verdict())
    made = lists_of(trial)
    degraded = [each["timings"]["publish"] / 1000 for each in made if each["degraded"]]
    whole = [each["timings"]["publish"] / 1000 for each in made if not each["degraded"]]
    if not degraded or min(degraded) > killed + 3:
        said.append("no degraded list within 3 s of the kill")
    if not any(back <= moment <= back + 5 for moment in whole):
        said.append("no personal list within 5 s of Triton's return")
    return said


@fault("F22", "Triton frozen: deadlines hold")
def triton_frozen(arena: Arena) -> Sequence[str]:
    """Lists keep coming, degraded, and are personal again."""
    trial = arena.trial(FRESHET_TRITON_DEADLINE=DEADLINE_SECONDS)
    trial.worker()
    server = arena.stack.processes["triton"].pid
    arena.afterwards(lambda: os.kill(server, signal.SIGCONT))
    with trial.traffic(arena.seed, PER_SECOND):
        time.sleep(2)
        os.kill(server, signal.SIGSTOP)
        time.sleep(15)
        os.kill(server, signal.SIGCONT)
        time.sleep(8)
    said = list(trial.verdict())
    made = lists_of(trial)
    waits = sorted(each["timings"]["publish"] - each["timings"]["broker"] for each in made)
    if waits[int(len(waits) * 0.99)] > 5000:
        said.append(f"p99 from event to list is {waits[int(len(waits) * 0.99)] / 1000:.1f} s")
    if not any(each["degraded"] for each in made) or made[-1]["degraded"]:
        said.append("lists are not degraded while Triton is frozen, or still are")
    return said


@fault("F23", "hot swaps under load: no degraded list, none of two versions")
def hot_swaps(arena: Arena) -> Sequence[str]:
    """Versions published one after the other."""
    trial = arena.trial()
    worker = trial.worker()
    said = []
    with trial.traffic(arena.seed, PER_SECOND):
        for _ in range(arena.times(8, 1)):
            version = trial.freshet("publish", str(arena.stack.models / "user_encoder" / "1"))["version"]
            until(lambda version=version: worker.metric("freshet_model_version") == version, "live", worker)  # type: ignore[misc]
    said += trial.verdict()
    if degraded := sum(each["degraded"] for each in lists_of(trial)):
        said.append(f"{degraded} lists are degraded")
    return said


@fault("F24", "bad bundles: truncated, NaN weights, unsigned, of a foreign key", refusal="not published, one line")
def bad_bundles(arena: Arena) -> Sequence[str]:
    """Each is refused, and the live version stays."""
    trial = arena.trial()
    (trial.folder / "keys").mkdir()
    keys, foreign = Keys(trial.folder / "keys"), trial.folder / "foreign"
    foreign.mkdir()
    stranger = Keys(foreign)
    trial.settings["FRESHET_TRUSTED_KEYS"] = str(keys.folder)
    worker = trial.worker()
    graph = (arena.stack.models / "user_encoder" / "1" / "model.onnx").read_bytes()
    bundles = {
        "truncated": altered(trial.folder / "b1" / "2", {"model.onnx": graph[: len(graph) // 2]}, keys.private),
        "NaN": altered(trial.folder / "b2" / "2", {"model.onnx": with_nan()}, keys.private),
        "unsigned": altered(trial.folder / "b3" / "2", {"model.onnx": graph + b"\0"}),
        "foreign": altered(trial.folder / "b4" / "2", {}, stranger.private),
    }
    said = []
    for kind, folder in bundles.items():
        try:
            trial.freshet("publish", str(folder), fails=True)
        except AssertionError as error:
            said.append(f"{kind}: {str(error)[:200]}")
    if worker.metric("freshet_model_version") != 1:
        said.append("the live version changed")
    return said


@fault("F25", "two publishers at once", refusal="one of them waits, or says that the other has the lock")
def two_publishers(arena: Arena) -> Sequence[str]:
    """Whichever comes first, the version that is live in the end is whole."""
    trial = arena.trial()
    worker = trial.worker()
    bundle = str(arena.stack.models / "user_encoder" / "1")

    def publish() -> str:
        return trial.verb("publish", bundle, "--json")

    with ThreadPoolExecutor(2) as pool:
        answers = [answer.result() for answer in (pool.submit(publish), pool.submit(publish))]
    versions = [json.loads(answer)["version"] for answer in answers if answer.startswith("{")]
    if not versions:
        return [f"neither was published: {answers}"]
    until(lambda: worker.metric("freshet_model_version") in versions, "a published version is live", worker)
    trial.send(stream(arena.seed, 100))
    return trial.verdict()


@fault("F26", "Triton restarted: reloaded within 10 s, no version goes back")
def triton_restarted(arena: Arena) -> Sequence[str]:
    """After a swap, so that the version that ships is not what must come back."""
    trial = arena.trial(FRESHET_TRITON_DEADLINE=DEADLINE_SECONDS)
    worker = trial.worker()
    version = trial.freshet("publish", str(arena.stack.models / "user_encoder" / "1"))["version"]
    until(lambda: worker.metric("freshet_model_version") == version, "the version is live", worker)
    repaired(arena)
    with trial.traffic(arena.seed, PER_SECOND):
        time.sleep(2)
        local.kill_part(arena.stack, "triton")
        began = time.monotonic()
        local.start_part(arena.stack, "triton")
        until(lambda: worker.get("/readyz")[0] == 200, "the worker is ready", worker)
        took = time.monotonic() - began
        time.sleep(4)
    said = list(trial.verdict())
    if took > 30:
        said.append(f"ready after {took:.1f} s")
    if lists_of(trial)[-1]["degraded"]:
        said.append("lists are degraded still")
    return said


@fault("F27", "the encoder answers zeros, NaN, too few rows or columns, items out of range")
def wrong_answers(arena: Arena) -> Sequence[str]:
    """No answer that does not fit has a part in a list: the user's list is degraded, and the worker goes on."""
    said = []
    for error in ("zero_embedding", "nan_embedding", "short_embedding", "short_batch", "wrong_index"):
        trial = arena.trial()
        worker = trial.worker(error=error)
        with trial.traffic(arena.seed, PER_SECOND):
            time.sleep(3)
        said += [f"{error}: {complaint}" for complaint in trial.verdict(patience=20)]
        worker.kill()
    return said
