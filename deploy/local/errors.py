"""What can go wrong with a local stack; every message is fit to be shown as it is."""

from pathlib import Path

from freshet.errors import FreshetError


class StackError(FreshetError):
    """Anything a local stack can fail with."""


class AlreadyRunning(StackError):
    """The directory's stack is up already."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"a stack is already running in {directory}; `freshet down` stops it")
        self.directory = directory


class NotRunning(StackError):
    """The directory has no stack."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"no stack in {directory}; `freshet up` starts one")
        self.directory = directory


class PortTaken(StackError):
    """A port that was asked for is in use by somebody else."""

    def __init__(self, name: str, port: int) -> None:
        super().__init__(f"port {port}, asked for {name}, is taken")
        self.port = port


class MissingPart(StackError):
    """Something that `make setup` fetches, or that ships with the repository, is not there."""

    def __init__(self, part: str) -> None:
        super().__init__(f"{part} is missing: run `make setup`")


class PartDied(StackError):
    """A server ended while it was being started; carries the end of its log, shortened."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(f"{name} died while starting ({log}): {_tail(log)}")
        self.log = log


class PartNotReady(StackError):
    """A server runs, yet did not become healthy in time."""

    def __init__(self, name: str, seconds: float, log: Path) -> None:
        super().__init__(f"{name} was not ready after {seconds:.0f} s ({log}): {_tail(log)}")
        self.log = log


def _tail(log: Path, lines: int = 5, width: int = 240) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    kept = [line.strip()[:width] for line in text.splitlines() if line.strip()]
    return " | ".join(kept[-lines:]) or "it logged nothing"
