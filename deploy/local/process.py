"""Detached processes, named so exactly that a stranger with a reused pid is never touched."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import PartDied, PartNotReady

POLL_SECONDS = 0.05
_ZOMBIE = ("Z", "X")


@dataclass(frozen=True)
class Process:
    """A process, its start time in clock ticks since boot, and that boot: unique for ever."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> "Process":
        """The process that has this pid now.

        Raises:
            ProcessLookupError: There is none.
        """
        stat = _stat(pid)
        if stat is None:
            raise ProcessLookupError(pid)
        return cls(pid, stat[1], _boot())

    def is_alive(self) -> bool:
        """Whether it still runs; a child of ours that has ended is reaped."""
        stat = _stat(self.pid)
        if stat is None or stat[1] != self.started or self.boot != _boot():
            return False
        if stat[0] in _ZOMBIE and not _has_threads(self.pid):
            _reap(self.pid)
            return False
        return True


def spawn(command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> Process:
    """Start a process in a session of its own, with stdout and stderr appended to ``log``.

    It outlives this one, and a terminal's Ctrl-C does not reach it.

    Raises:
        FileNotFoundError: There is no such program.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    out = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        command[0],
        list(command),
        dict(env),
        setsid=True,
        setsigdef=[signal.SIGINT, signal.SIGPIPE, signal.SIGTERM],
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), out, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    return Process.of(pid)


def wait_until_ready(name: str, process: Process, healthy: Callable[[], bool], *, seconds: float, log: Path) -> None:
    """Wait until ``healthy()`` holds; a process that does not get there is killed.

    Raises:
        PartDied: The process ended first.
        PartNotReady: ``seconds`` passed first.
    """
    try:
        _poll(name, process, healthy, seconds, log)
    except BaseException:
        kill(process)
        raise


def _poll(name: str, process: Process, healthy: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not healthy():
        if not process.is_alive():
            raise PartDied(name, log)
        if time.monotonic() > deadline:
            raise PartNotReady(name, seconds, log)
        time.sleep(POLL_SECONDS)


def terminate(process: Process, *, grace: float) -> None:
    """End a process and its session: SIGTERM, after ``grace`` seconds SIGKILL."""
    if process.is_alive():
        _signal(os.kill, process.pid, signal.SIGTERM)
        _wait_for_end(process, grace)
    kill(process)


def kill(process: Process) -> None:
    """SIGKILL a process and all that is left of its session, and wait for its end."""
    stat = _stat(process.pid)
    ours = process.boot == _boot() and (stat is None or stat[1] == process.started)
    if ours:
        # While a member is left the kernel gives the group's number to nobody else.
        _signal(os.killpg, process.pid, signal.SIGKILL)
        _signal(os.kill, process.pid, signal.SIGKILL)
        _wait_for_end(process, seconds=10)


def _signal(send: Callable[[int, int], None], target: int, number: signal.Signals) -> None:
    try:
        send(target, number)
    except ProcessLookupError:
        return


def _wait_for_end(process: Process, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time in clock ticks since boot; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    after_name = text.rpartition(")")[2].split()
    return after_name[0], int(after_name[19])


def _has_threads(pid: int) -> bool:
    """Whether threads outlive a process's first one; till they end, its sockets stay open."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
