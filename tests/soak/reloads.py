"""Versions published one after the other while inferences go on: latency, memory, handles."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from freshet.core.rollout import MODEL, Rollout
from freshet.release.publish import Service, publish_bundle

from deploy import local
from tests.altered_bundles import SHIPPED, Keys
from tests.memory_ports import MemoryRecords
from tests.soak.load import Load
from tests.soak.resources import held

STEADY_SECONDS = 0.5
ROWS = 10


class Window(NamedTuple):
    """A publication: from and to when Triton was loading and unloading."""

    loading: float
    loaded: float


class _Timed:
    """Notes when the load began and ended."""

    def __init__(self) -> None:
        self.windows: list[Window] = []

    def step(self, name: str) -> object:
        """A step of a publication: entered when it begins."""
        if name == "loaded":
            self._began = time.monotonic()
        elif name.startswith("golden"):
            self.windows.append(Window(self._began, time.monotonic()))
        return nullcontext()


def reload_many_times(folder: Path, reloads: int) -> bool:
    """Publish so many versions under load; returns whether no inference failed."""
    keys = Keys(folder / "keys")
    stack = local.start(folder / "stack", kafka=False)
    load = None
    try:
        service = Service(stack.models, stack.triton, keys.folder, 2)
        pid = stack.processes["triton"].pid
        prefix = f"freshet-{stack.ports['triton_grpc']}-"
        records, timed = MemoryRecords(Rollout(MODEL, 1, "promoted", 0)), _Timed()
        load = Load(stack.triton_grpc, SHIPPED, 1)
        time.sleep(5)
        print("reloads  steady p50 / p99 ms  loading p50 / p99 ms  server MiB  stubs  stubs MiB  handles  shm  s each")
        begun, steady, loading = time.monotonic(), load.between(0, time.monotonic()), [0.0]
        first = held(pid, prefix)
        _row(0, steady, loading, first, 0.0)
        all_steady, all_loading = list(steady), []
        steady, loading = [], []
        for number in range(1, reloads + 1):
            published = publish_bundle(SHIPPED, service, records, step=timed.step)  # type: ignore[arg-type]
            load.version = published.version
            done = time.monotonic()
            time.sleep(2 * STEADY_SECONDS)  # the unloading is over after the first half
            loading += load.between(timed.windows[-1].loading, done + STEADY_SECONDS)
            steady += load.between(done + STEADY_SECONDS, done + 2 * STEADY_SECONDS)
            if number % max(1, reloads // ROWS) == 0:
                each = (time.monotonic() - begun) / max(1, reloads // ROWS)
                last = held(pid, prefix)
                _row(number, steady, loading, last, each)
                all_steady, all_loading = all_steady + steady, all_loading + loading
                begun, steady, loading = time.monotonic(), [], []
        ratio = np.percentile(all_loading, 99) / np.percentile(all_steady, 99)
        print(f"{reloads} reloads, {len(load.calls):,} inferences, {len(load.failures())} failed; ", end="")
        print(f"p99 while loading and unloading {ratio:.2f} × steady")
        for failure in sorted(set(load.failures())):
            print(f"  {failure}")
        return not load.failures()
    finally:
        if load is not None:
            load.close()
        local.stop(stack)


def _row(number: int, steady: list[float], loading: list[float], now: object, each: float) -> None:
    server_mib, stubs, stubs_mib, handles, regions = now  # type: ignore[misc]
    times = "  ".join(
        f"{np.percentile(latencies, 50):8.1f} / {np.percentile(latencies, 99):7.1f}" for latencies in (steady, loading)
    )
    print(
        f"{number:7}  {times}  {server_mib:10.0f}  {stubs:5}  {stubs_mib:9.0f}  {handles:7}  {regions:3}  {each:6.1f}",
        flush=True,
    )
