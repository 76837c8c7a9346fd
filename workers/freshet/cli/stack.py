"""`up` and `down`: the local stack."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freshet.cli.console import emit, err, rows, say
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, kept_settings, require_checkout

if TYPE_CHECKING:  # a local stack is of a checkout alone
    from deploy.local import Stack

PORT_NAMES = ("kafka", "kafka_controller", "triton_grpc", "triton_metrics", "redis")
HIGHEST_PORT = 65_535
TITLES = {
    "kafka": "Kafka",
    "kafka_controller": "Kafka controller",
    "triton_grpc": "Triton gRPC",
    "triton_metrics": "Triton metrics",
    "redis": "Redis",
}


def up(
    directory: Directory = DEFAULT_DIRECTORY,
    config: Config = None,
    redis: Annotated[bool, typer.Option("--redis", help="Features in Redis instead of SQLite.")] = False,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Stream workers to start.")] = 1,
    archive: Annotated[bool, typer.Option("--archive", help="An archiver too: the topics as Parquet.")] = False,
    serve: Annotated[bool, typer.Option(help="The read service and its page too.")] = True,
    partitions: Annotated[
        int, typer.Option(min=1, max=1024, help="Partitions of the topics keyed by user; two per worker overlap well.")
    ] = 2,
    port: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PORT", help=f"A fixed port, for one of {', '.join(PORT_NAMES)}; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start Kafka, Triton, the topics, the features and workers, on loopback and free ports."""
    require_checkout("up")
    from freshet.cli.bring_up import bring_up

    ports = _ports(port or [])
    if (running := _running(directory)) is not None:
        if config is not None and config.resolve() != kept_settings(directory):
            raise UserError(f"a stack is running in {running.directory} with other settings: `freshet down` first")
        say(f"a stack is already running in {running.directory}")
        _show(running, as_json=as_json)
        return
    stack, _, _ = bring_up(
        directory,
        steps,
        config=config,
        redis=redis,
        partitions=partitions,
        workers=workers,
        archive=archive,
        serve=serve,
        ports=ports,
    )
    _show(stack, as_json=as_json)


def down(directory: Directory = DEFAULT_DIRECTORY) -> None:
    """Stop the local stack and its workers; the data stays."""
    require_checkout("down")
    from deploy.local import NotRunning, load, stop
    from freshet.cli.bring_up import undisturbed

    stack = load(directory)
    if not _alive(stack):
        raise NotRunning(stack.directory)
    with steps("stopping"), undisturbed():
        stop(stack)


@contextmanager
def steps(name: str) -> Iterator[None]:
    """Show a step of work while it lasts, and how long it took."""
    began = time.monotonic()
    if err.is_terminal:
        with err.status(f"{name} …"):
            yield
        err.print(f"[green]✓[/] {name} [dim]{time.monotonic() - began:.1f} s[/]", markup=True)
    else:
        yield
        say(f"{name}: {time.monotonic() - began:.1f} s")


def _running(directory: Path) -> Stack | None:
    """The stack of a directory, if all of the stack runs. Raises `UserError` if only parts of the stack run."""
    from deploy.local import NotRunning, is_running, load

    try:
        stack = load(directory)
    except NotRunning:
        return None
    except NotADirectoryError:
        raise UserError(f"{directory} is a file, not a folder") from None
    alive = _alive(stack)
    if not alive:
        return None
    if not is_running(stack):
        dead = ", ".join(part for part in stack.parts if part not in alive)
        raise UserError(f"the stack in {stack.directory} runs without {dead}: `freshet down`, then up again")
    return stack


def _alive(stack: Stack) -> list[str]:
    return [name for name, process in stack.processes.items() if process.is_alive()]


def _ports(asked: list[str]) -> dict[str, int]:
    ports = {}
    for text in asked:
        name, _, number = text.partition("=")
        if name not in PORT_NAMES or not number.isdigit() or not 0 < int(number) <= HIGHEST_PORT:
            raise typer.BadParameter(f"{text!r} is not NAME=PORT with a NAME of {', '.join(PORT_NAMES)}")
        ports[name] = int(number)
    return ports


def _show(stack: Stack, *, as_json: bool) -> None:
    from freshet.cli.bring_up import SERVICE

    workers = {name: process for name, process in stack.processes.items() if name not in (*stack.parts, SERVICE)}
    health = {name: _health_address(stack.directory / name) for name in workers}
    page = _health_address(stack.directory / SERVICE) if SERVICE in stack.processes else None
    addresses = {name: f"127.0.0.1:{number}" for name, number in stack.ports.items()}
    if as_json:
        emit(
            {
                "directory": str(stack.directory),
                "addresses": addresses,
                "models": str(stack.models),
                "serve": f"http://{page}" if page else None,
                "workers": {name: {"pid": worker.pid, "health": health[name]} for name, worker in workers.items()},
            }
        )
        return
    lines = [(TITLES.get(name, name), address, "") for name, address in addresses.items()]
    lines.append(("models", str(stack.models), ""))
    for name, process in workers.items():
        lines.append((name, f"http://{health[name]}/metrics" if health[name] else "-", f"pid {process.pid}"))
    if page is not None:
        lines.append(("lists and page", f"http://{page}/", f"pid {stack.processes[SERVICE].pid}"))
    lines.append(("logs", str(stack.directory / "logs"), ""))
    if (settings := kept_settings(stack.directory)) is not None:
        lines.append(("settings", str(settings), ""))
    rows(lines, ("bold", "cyan", "dim"))


def _health_address(data_dir: Path) -> str | None:
    try:
        return f"127.0.0.1:{int((data_dir / 'health.port').read_text())}"
    except (OSError, ValueError):
        return None
