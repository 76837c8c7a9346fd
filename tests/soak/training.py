"""`freshet train --every` beside a worker: from event to list while it trains, against the same without it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
from freshet.core.events import Event, encode_event

from deploy import local
from deploy.demo import movielens
from deploy.local.parts import ROOT
from tests.altered_bundles import Keys
from tests.integration.deployment import Deployment
from tests.soak.load import events_sent

STEADY_SECONDS = 40.0
NEW = 5000
ENDED = "run 1 ended with status"


def train_beside(folder: Path) -> bool:
    """Returns whether the run came to its end and no list was degraded meanwhile."""
    folder.mkdir(parents=True)
    keys = Keys(folder / "keys")
    log = _log(folder)
    parent = folder / "parent"
    subprocess.run(_command(log.with_name("first.jsonl"), folder / "job", out=parent, epochs=1), check=True)
    stack = local.start(folder / "stack")
    deployment = Deployment(stack, folder, "beside", FRESHET_TRUSTED_KEYS=str(keys.folder), FRESHET_TRITON_DEADLINE="1")
    try:
        deployment.worker()
        with events_sent(deployment):
            began = time.time()
            time.sleep(STEADY_SECONDS)
            trained = time.time()
            status = _train(_command(log, folder / "job", live=parent, every="1h", epochs=4))
            ended = time.time()
        deployment.settle()
        return status in ("0", "3") and _judge(deployment, began, trained, ended)
    finally:
        deployment.close()
        local.stop(stack)


def _log(folder: Path) -> Path:
    """MovieLens-100K, `first.jsonl`, and with some of it over again by new users: what an hour would bring."""
    movielens.convert(movielens.FOLDER, folder / "log")
    path = folder / "log" / "events.jsonl"
    first = path.read_bytes()
    path.with_name("first.jsonl").write_bytes(first)
    events = [msgspec.json.decode(line, type=Event) for line in first.splitlines()]
    later = events[-1].ts - events[-NEW].ts + 1000
    with path.open("ab") as file:
        for event in events[-NEW:]:
            names = {"event_id": f"again-{event.event_id}", "user_id": f"again-{event.user_id}"}
            file.write(encode_event(msgspec.structs.replace(event, **names, ts=event.ts + later)) + b"\n")
    return path


def _command(log: Path, work: Path, **options: object) -> list[str]:
    """`freshet train` on a log of films, on one thread."""
    given = {"events": log, "items": log.with_name("items.jsonl"), "config": ROOT / "deploy/domains/films.toml"}
    given |= {"dir": work, "threads": "1", "tracking": "none", **options}
    command = [sys.executable, "-m", "freshet.cli", "train"]
    return command + [part for name, value in given.items() for part in (f"--{name}", str(value))]


def _train(command: list[str]) -> str:
    """One turn of the periodic job; its status."""
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in job.stdout or ():
            print(f"  {line.rstrip()}", flush=True)
            if ENDED in line:
                return line.partition(ENDED)[2].split(";")[0].strip()
        return f"none, it exited with {job.wait()}"
    finally:
        job.terminate()
        job.wait()


def _judge(deployment: Deployment, began: float, trained: float, ended: float) -> bool:
    made = [json.loads(record.value) for record in deployment.records("recommendations")]
    degraded = sum(published["degraded"] for published in made)
    times: dict[str, list[float]] = {"alone": [], "beside training": []}
    for published in made:
        at, took = (
            published["timings"]["publish"] / 1000,
            published["timings"]["publish"] - published["timings"]["broker"],
        )
        if began <= at < trained:
            times["alone"].append(took)
        elif trained <= at < ended:
            times["beside training"].append(took)
    print(f"{len(made):,} lists, {degraded} degraded; training took {ended - trained:.0f} s")
    for name, ms in times.items():
        p50, p99 = np.percentile(ms, (50, 99))
        print(f"event to list, {name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms over {len(ms):,} lists")
    ratio = np.percentile(times["beside training"], 99) / np.percentile(times["alone"], 99)
    print(f"p99 beside training {ratio:.2f} × alone")
    return not degraded
