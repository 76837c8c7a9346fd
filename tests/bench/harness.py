"""How the benchmark's comparators are run, pinned and measured.

A comparator is a module with `measure(...)`, which does the work in this
process and returns figures, and `run(...)`, which does the same in a process
of its own. `python -m tests.bench.<name> --help` lists its flags; it prints one
JSON line.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Figures = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
FLAG_TYPES = {"str": str, "int": int, "float": float, "str | None": str, "float | None": float}


class ComparatorError(Exception):
    """A comparator did not finish; the message ends with what it last wrote."""


def peak_rss_mb() -> float:
    """This process's peak resident memory; `ru_maxrss` would count what it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Meter:
    """Counts units of work and times them, from the last warm-up unit to the last one.

    `stop` ends the timing later, where work of the counted units is still to
    be made durable.
    """

    def __init__(self, warmup: int = 0) -> None:
        self.count = 0
        self._warmup = warmup
        self._start = self._end = (0.0, 0.0)
        self._first = self._last = 0

    def tick(self, units: int = 1) -> int:
        """Count finished work; return the total so far."""
        if self.count <= self._warmup:
            self._start = (time.perf_counter(), time.process_time())
            self._first = self.count + units
        self.count += units
        return self.count

    def stop(self) -> None:
        """The work counted so far is done now."""
        self._last = self.count
        self._end = (time.perf_counter(), time.process_time())

    def figures(self, unit: str) -> Figures:
        """Rate, processor time of this process per unit, and peak memory."""
        counted = self._last - self._first
        seconds, cpu_s = (end - start for start, end in zip(self._start, self._end, strict=True))
        return {
            unit: counted,
            "seconds": round(seconds, 3),
            f"{unit}_per_s": round(counted / seconds, 1),
            f"cpu_us_per_{unit.removesuffix('s')}": round(cpu_s / counted * 1e6, 2),
            "peak_rss_mb": round(peak_rss_mb(), 1),
        }


def command_line(measure: Callable[..., Figures]) -> None:
    """Parse flags named and typed like the keywords of `measure`, call it, print its figures."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(measure))
    for name, parameter in inspect.signature(measure).parameters.items():
        required = parameter.default is parameter.empty
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=FLAG_TYPES[parameter.annotation],
            required=required,
            default=None if required else parameter.default,
            help="" if required else "(default: %(default)s)",
        )
    arguments = vars(parser.parse_args())
    del sys.argv[1:]  # Faust reads it when it is imported
    sys.stdout.write(json.dumps(measure(**arguments)) + "\n")
    sys.stdout.flush()


def launcher(measure: Callable[..., Figures]) -> Callable[..., Figures]:
    """The `run` of a comparator: `measure` in a process of its own.

    Besides the keywords of `measure` it takes `pin_core`, the one core that the
    process and its threads may use, and `timeout_s`. Raises `ComparatorError`.
    """
    module = measure.__module__
    signature = inspect.signature(measure)

    def run(*, pin_core: int | None = None, timeout_s: float = 600, **keywords: object) -> Figures:
        signature.bind(**keywords)
        command = [sys.executable, "-m", module]
        for name, value in keywords.items():
            if value is not None:
                command += [f"--{name.replace('_', '-')}", str(value)]
        if pin_core is not None:
            taskset = shutil.which("taskset")
            if taskset is None:
                raise ComparatorError("pin_core needs taskset (Debian package util-linux)")
            command[:0] = [taskset, "--cpu-list", str(pin_core)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(  # noqa: PLW1510 - the exit code is read below
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            output = error.stderr or b""
            raise ComparatorError(
                f"{module} ran past {timeout_s} s: {_tail(output.decode(errors='replace'))}"
            ) from None
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0 or not lines:
            raise ComparatorError(f"{module} exited {done.returncode}: {_tail(done.stderr)}")
        figures: Figures = json.loads(lines[-1])
        return figures

    run.__doc__ = f"{inspect.getdoc(measure)}\n\nRuns in a process of its own."
    return run


def _tail(text: str) -> str:
    return "\n".join(deque(text.splitlines(), maxlen=12))


@contextmanager
def pinned(pid: int, core: int) -> Iterator[None]:
    """Keep a running process, all its present threads, on one core; lift it afterwards.

    For the broker while a comparator has the other core.
    """
    before = os.sched_getaffinity(pid)
    _set_affinity(pid, {core})
    try:
        yield
    finally:
        _set_affinity(pid, before)


def _set_affinity(pid: int, cores: set[int]) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:  # the thread has just ended
            continue
