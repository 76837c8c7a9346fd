"""Versions promoted one after the other while events stream through a worker: no list degraded, none mixed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from deploy import local
from tests.altered_bundles import SHIPPED, Keys, renamed_items
from tests.integration.deployment import Deployment
from tests.soak.list_order import went_back
from tests.soak.load import events_sent

SETTLE_SECONDS = 3.0


def swap_under_load(folder: Path, swaps: int) -> bool:
    """Swap between two versions that rank quite differently; every list is then made again with its version."""
    folder.mkdir(parents=True)
    keys = Keys(folder / "keys")
    stack = local.start(folder / "stack")
    deployment = Deployment(
        stack,
        folder,
        "soak",
        FRESHET_TRUSTED_KEYS=str(keys.folder),
        FRESHET_TRITON_DEADLINE="1",
        FRESHET_VERSIONS_KEPT=str(swaps + 2),
    )
    windows: list[tuple[float, float]] = []
    try:
        deployment.worker()
        other = renamed_items(folder / "renamed", keys.private)
        with events_sent(deployment):
            for number in range(swaps):
                began = time.time()
                published = _freshet(deployment, "publish", str((other, SHIPPED)[number % 2]))
                windows.append((began, time.time()))
                print(f"swap {number + 1}: version {published['version']}, {windows[-1][1] - began:.1f} s", flush=True)
                time.sleep(SETTLE_SECONDS)
        deployment.settle()
        return _judge(deployment, windows)
    finally:
        deployment.close()
        local.stop(stack)


def _judge(deployment: Deployment, windows: list[tuple[float, float]]) -> bool:
    made = [json.loads(record.value) for record in deployment.records("recommendations")]
    degraded = sum(published["degraded"] for published in made)
    back = went_back(made, lambda published: int(published["model_version"]))
    swapping, steady = [], []
    for published in made:
        at, took = (
            published["timings"]["publish"] / 1000,
            published["timings"]["publish"] - published["timings"]["broker"],
        )
        inside = any(start <= at <= end for start, end in windows)
        if at > windows[0][0] - 5:
            (swapping if inside else steady).append(took)
    ratio = np.percentile(swapping, 99) / np.percentile(steady, 99)
    versions = len({published["model_version"] for published in made})
    print(f"{len(made):,} lists of {versions} versions, {degraded} degraded, ", end="")
    print(f"{back} of an older version than the user's list before")
    for name, times in (("steady", steady), ("swapping", swapping)):
        print(f"event to list, {name}: p50 {np.percentile(times, 50):.0f} ms, p99 {np.percentile(times, 99):.0f} ms")
    print(f"p99 while swapping {ratio:.2f} × steady")
    verified = _freshet(deployment, "verify", "kafka", "--feature-users", "200")
    for kind, compared in verified["compared"].items():
        print(f"made again from the log, {kind}: {compared:,} compared, {verified['mismatches'][kind]} differ")
    return not degraded and not back and not any(verified["mismatches"].values())


def _freshet(deployment: Deployment, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "freshet.cli", *arguments, "--json"]
    done = subprocess.run(command, env=os.environ | deployment.settings, capture_output=True, text=True, check=False)
    if done.returncode and not done.stdout:
        raise RuntimeError(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
