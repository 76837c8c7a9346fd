"""A whole local stack with its topics, feature repository and workers, started as one."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deploy.local import Stack, StackError, add_process, start, stop
from deploy.local.ports import choose_ports
from deploy.local.process import Process, spawn, wait_until_ready
from freshet.cli.options import FOLDERS, as_environment, keep_settings, resolve
from freshet.cli.signing import local_keys
from freshet.cli.stack_file import stack_settings
from freshet.cli.topics import make_topics
from freshet.settings import Settings

READY_SECONDS = 90.0
SERVICE = "serve"
"""Name of the read service's process in a stack, and of its folder."""

Step = Callable[[str], Any]
"""Told of each step as it begins; what it returns is a context manager that ends with the step."""


@dataclass(frozen=True)
class LocalWorker:
    """A worker, an archiver or a read service started as a detached process."""

    name: str
    process: Process
    data_dir: Path
    log: Path

    def address(self) -> str:
        """Where its pages are, ``host:port``. Raises `OSError`, `ValueError` before it has said so."""
        return f"127.0.0.1:{int((self.data_dir / 'health.port').read_text())}"

    def health(self, page: str) -> str | None:
        """The body of one of its health pages; None while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://{self.address()}/{page}", timeout=1) as answer:
                return str(answer.read().decode())
        except (OSError, ValueError, urllib.error.URLError):
            return None


def bring_up(
    directory: Path,
    step: Step,
    *,
    config: Path | None = None,
    redis: bool = False,
    partitions: int = 2,
    workers: int = 1,
    archive: bool = False,
    serve: bool = True,
    ports: dict[str, int] | None = None,
) -> tuple[Stack, Settings, list[LocalWorker]]:
    """Start everything in `directory`. If a step fails, everything that was started is stopped again.

    If a `config` is given, all commands that come to the stack read it from then on. Raises `StackError`,
    `SettingsError`, `UserError`.
    """
    parts = "Kafka, Triton and Redis" if redis else "Kafka and Triton"
    with step(parts):
        stack = start(directory, redis=redis, ports=ports)
    try:
        local_keys(directory)
        settings = resolve(config, directory, **_own(stack)).settings
        with step("topics"):
            make_topics(settings, partitions)
        running = []
        if workers:
            # a worker applies the feature repository itself before it is ready
            with step("feature repository, worker" if workers == 1 else f"feature repository, {workers} workers"):
                running = [start_worker(stack, settings, number, workers) for number in range(1, workers + 1)]
                for worker in running:
                    wait_for(worker)
        else:
            with step("feature repository"):
                apply_features(settings)
        if archive:
            with step("archiver"):
                wait_for(start_archiver(stack, settings))
        if serve:
            with step("read service and page"):
                service = start_service(stack, settings)
                wait_for(service)
                running.append(service)
        if config is not None:
            keep_settings(directory, config)
    except BaseException:
        with undisturbed():
            stop(stack)
        raise
    return stack, settings, running


def apply_features(settings: Settings) -> None:
    """Register the feature repository's definitions. To apply them twice changes nothing."""
    from freshet.adapters.feast import apply

    apply(settings)


def start_worker(stack: Stack, settings: Settings, number: int, of: int) -> LocalWorker:
    """Start one detached worker with a data directory of its own, and make it part of the stack."""
    return _start(stack, settings, f"worker-{number}", "worker", settings.health_port if of == 1 else 0)


def start_archiver(stack: Stack, settings: Settings) -> LocalWorker:
    """Start a detached archiver, and make it part of the stack."""
    return _start(stack, settings, "archiver", "archive", 0)


def start_service(stack: Stack, settings: Settings) -> LocalWorker:
    """Start a detached read service, on its own port where that is free, and make it part of the stack."""
    chosen = choose_ports(["http"], asked={}, preferred={"http": settings.http_port})
    own = msgspec.structs.replace(settings, http_port=chosen["http"])
    port_file = stack.directory / SERVICE / "health.port"
    return _start(stack, own, SERVICE, "serve", 0, "--port-file", str(port_file))


def _start(stack: Stack, settings: Settings, name: str, verb: str, health_port: int, *options: str) -> LocalWorker:
    data_dir = stack.directory / name
    (data_dir / "health.port").unlink(missing_ok=True)
    own = msgspec.structs.replace(settings, data_dir=str(data_dir), health_port=health_port)
    log = stack.log(name)
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "freshet.cli", verb, "--dir", str(stack.directory), *options]
    process = spawn(command, log=log, env={**os.environ, **as_environment(own)})
    add_process(stack, name, process.pid)
    return LocalWorker(name, process, data_dir, log)


def wait_for(worker: LocalWorker, seconds: float = READY_SECONDS) -> None:
    """Wait until a worker says that it is ready. Raises `StackError` if the worker ends or takes too long."""
    try:
        wait_until_ready(
            worker.name, worker.process, lambda: worker.health("readyz") is not None, seconds=seconds, log=worker.log
        )
    except StackError as error:
        reason = last_words(worker.log)
        raise StackError(f"{worker.name} did not start ({worker.log}): {reason}") if reason else error from None


def last_words(log: Path) -> str:
    """What a worker's log ends with, in a line: its exception, its message, or the plain text."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            if line.strip():
                return line.strip().removeprefix("freshet: ")[:300]
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "critical", "warning"):
            cause = str(entry.get("exception", "")).strip().splitlines()
            return f"{entry.get('message')}: {cause[-1] if cause else entry.get('why', '')}"[:300]
    return ""


def _own(stack: Stack) -> dict[str, Any]:
    """The addresses of what was just started win over any other source; its folders do not."""
    return {name: value for name, value in stack_settings(stack.directory).items() if name not in FOLDERS}


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for as long as something is being put back in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
