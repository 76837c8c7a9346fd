"""A stack in a directory: started, found again from its ``stack.json``, stopped.

The directory holds everything: ``stack.json`` with every address, ``logs``, the broker's data, the
runtime model repository. A stack outlives the process that started it. After a stop, or a crash,
the next start has the same data and, where they are still free, the same ports.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from freshet.adapters.triton_address import TritonAddress
from freshet.files import write_json

from deploy.local import kafka, redis, triton
from deploy.local.errors import AlreadyRunning, NotRunning, StackError
from deploy.local.parts import TRITON_MODELS
from deploy.local.ports import LOOPBACK, choose_ports
from deploy.local.process import Process, kill, terminate

PARTS = ("kafka", "triton", "redis")
_PORTS = {"kafka": kafka.PORTS, "triton": triton.PORTS, "redis": redis.PORTS}
_GRACE = {
    "kafka": kafka.GRACE_SECONDS,
    "triton": triton.GRACE_SECONDS,
    "redis": redis.GRACE_SECONDS,
}
_WORKER_GRACE_SECONDS = 20


@dataclass
class Stack:
    """The parts of one stack: their ports, fixed for its life, and their processes.

    ``processes`` maps a part's name, or the name of a process added to the stack, to what runs.
    """

    directory: Path
    ports: dict[str, int]
    shipped_models: Path = TRITON_MODELS
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def bootstrap(self) -> str:
        """The broker's address, ``host:port``."""
        return self._address("kafka")

    @property
    def triton_grpc(self) -> str:
        """Triton's gRPC address, ``host:port``."""
        return self._address("triton_grpc")

    @property
    def triton(self) -> TritonAddress:
        """Where Triton is, with the key to load models there."""
        return TritonAddress(self.triton_grpc, control_key=triton.control_key(self.directory))

    @property
    def triton_metrics(self) -> str:
        """Where Triton serves its Prometheus metrics, ``host:port``."""
        return self._address("triton_metrics")

    @property
    def redis(self) -> str:
        """Redis's address, ``host:port``."""
        return self._address("redis")

    @property
    def models(self) -> Path:
        """The runtime model repository, which Triton reads."""
        return self.directory / "models"

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts this stack has, whether or not they run now."""
        return tuple(part for part in PARTS if _PORTS[part][0] in self.ports)

    @property
    def workers(self) -> list[int]:
        """The pids of the processes that were added to the stack."""
        return [process.pid for name, process in self.processes.items() if name not in PARTS]

    def log(self, name: str) -> Path:
        """The log file of a part."""
        return self.directory / "logs" / f"{name}.log"

    def _address(self, port: str) -> str:
        if port not in self.ports:
            raise KeyError(f"this stack has no {port.partition('_')[0]}")
        return f"{LOOPBACK}:{self.ports[port]}"


def start(
    directory: Path,
    *,
    redis: bool = False,
    triton: bool = True,
    kafka: bool = True,
    ports: dict[str, int] | None = None,
    models: Path = TRITON_MODELS,
) -> Stack:
    """Start a stack in ``directory`` and wait until every part is healthy.

    Args:
        directory: Holds all of the stack; made where it is not there.
        redis: Whether to have Redis.
        triton: Whether to have Triton.
        kafka: Whether to have the broker.
        ports: Ports to use, by the names in ``stack.json``; the others are chosen.
        models: The model repository that ships, copied into the runtime one.

    Raises:
        AlreadyRunning: The directory's stack is up.
        PortTaken: One of ``ports`` is in use.
        MissingPart: Something was not set up.
        PartDied: A server ended while starting; what had been started is stopped again.
        PartNotReady: A server was not healthy in time; what had been started is stopped again.
    """
    directory = Path(directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {"kafka": kafka, "triton": triton, "redis": redis}
    with _locked(directory):
        before = _read(directory)
        if before and any(process.is_alive() for process in before.processes.values()):
            raise AlreadyRunning(directory)
        chosen = choose_ports(
            [port for part in PARTS if wanted[part] for port in _PORTS[part]],
            asked=ports or {},
            preferred=before.ports if before else {},
        )
        stack = Stack(directory, chosen, Path(models).resolve())
        try:
            for part in stack.parts:
                _launch(stack, part)
        except BaseException:
            _end(stack)
            raise
    return stack


def load(directory: Path) -> Stack:
    """The stack of a directory, running or not.

    Raises:
        NotRunning: None was ever started there.
    """
    directory = Path(directory).resolve()
    stack = _read(directory)
    if stack is None:
        raise NotRunning(directory)
    return stack


def is_running(stack: Stack) -> bool:
    """Whether every part's process is alive."""
    return all(part in stack.processes and stack.processes[part].is_alive() for part in stack.parts)


def stop(stack: Stack) -> None:
    """Stop everything of the stack: what was added to it first, the broker last.

    SIGTERM, then SIGKILL after some seconds, and only to processes that are the stack's own. The
    data stays.
    """
    with _locked(stack.directory):
        _refresh(stack)
        _end(stack)


def add_process(stack: Stack, name: str, pid: int) -> None:
    """Make a running process part of the stack, so that ``stop`` ends it too.

    Give it a session of its own: its whole process group is ended.

    Raises:
        ProcessLookupError: There is no such process.
        ValueError: ``name`` is a part's.
    """
    if name in PARTS:
        raise ValueError(f"{name} is the name of a part")
    with _locked(stack.directory):
        _refresh(stack)
        stack.processes[name] = Process.of(pid)
        _write(stack)


def stop_part(stack: Stack, part: str) -> None:
    """Stop one part with SIGTERM, SIGKILL after some seconds; it keeps its ports and data."""
    with _locked(stack.directory):
        _refresh(stack)
        _end_part(stack, part, at_once=False)
        _write(stack)


def kill_part(stack: Stack, part: str) -> None:
    """End one part with SIGKILL, as a crash would; it keeps its ports and data."""
    with _locked(stack.directory):
        _refresh(stack)
        _end_part(stack, part, at_once=True)
        _write(stack)


def start_part(stack: Stack, part: str) -> None:
    """Start one part again on the ports it had, and wait until it is healthy.

    Raises:
        AlreadyRunning: It runs.
        PortTaken: Somebody else took one of its ports.
        PartDied: It ended while starting.
        PartNotReady: It was not healthy in time.
    """
    with _locked(stack.directory):
        _refresh(stack)
        if part in stack.processes and stack.processes[part].is_alive():
            raise AlreadyRunning(stack.directory)
        choose_ports(_PORTS[part], asked=stack.ports, preferred={})
        _launch(stack, part)


def restart_part(stack: Stack, part: str) -> None:
    """Kill one part with SIGKILL where it runs, and start it again on the same ports.

    Raises:
        PortTaken: Somebody else took one of its ports.
        PartDied: It ended while starting.
        PartNotReady: It was not healthy in time.
    """
    kill_part(stack, part)
    start_part(stack, part)


def _launch(stack: Stack, part: str) -> None:
    match part:
        case "kafka":
            process = kafka.start(stack.directory, stack.ports)
        case "triton":
            process = triton.start(stack.directory, stack.ports, stack.shipped_models)
        case "redis":
            process = redis.start(stack.directory, stack.ports)
        case _:
            raise ValueError(f"{part} is no part; the parts are {', '.join(PARTS)}")
    stack.processes[part] = process
    _write(stack)


def _end(stack: Stack) -> None:
    added = [name for name in stack.processes if name not in PARTS]
    for name in added:
        terminate(stack.processes.pop(name), grace=_WORKER_GRACE_SECONDS)
    for part in reversed(stack.parts):
        _end_part(stack, part, at_once=False)
    _write(stack)


def _end_part(stack: Stack, part: str, *, at_once: bool) -> None:
    process = stack.processes.pop(part, None)
    if process is not None and at_once:
        kill(process)
    elif process is not None:
        terminate(process, grace=_GRACE[part])
    if part == "triton":
        triton.remove_shared_memory(stack.ports)


def _refresh(stack: Stack) -> None:
    """Take in what another process wrote about this stack since it was loaded."""
    on_disk = _read(stack.directory)
    if on_disk is not None:
        stack.processes = on_disk.processes


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(stack: Stack) -> None:
    addresses = {name: f"{LOOPBACK}:{port}" for name, port in stack.ports.items()}
    content = {
        "directory": str(stack.directory),
        "addresses": addresses,
        "models": str(stack.models),
        "shipped_models": str(stack.shipped_models),
        "workers": stack.workers,
        "processes": {name: asdict(process) for name, process in stack.processes.items()},
    }
    write_json(stack.directory / "stack.json", content)


def _read(directory: Path) -> Stack | None:
    file = directory / "stack.json"
    try:
        content = json.loads(file.read_text())
        return Stack(
            directory,
            {name: int(at.rpartition(":")[2]) for name, at in content["addresses"].items()},
            Path(content["shipped_models"]),
            {name: Process(**process) for name, process in content["processes"].items()},
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StackError(f"{file} cannot be read ({error!r}): end what it started by hand, and remove it") from None
