"""`demo`: the whole of Freshet on real data, live."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from freshet.cli.console import out, say
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, require_checkout
from freshet.cli.stack import steps
from freshet.settings import Settings

if TYPE_CHECKING:  # a local stack is of a checkout alone
    from deploy.demo.run import DemoResult
    from deploy.local import Stack
    from freshet.cli.bring_up import LocalWorker

DEMO_DIRECTORY = DEFAULT_DIRECTORY / "demo"


def demo(
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Folder of the demo's stack.")
    ] = DEMO_DIRECTORY,
    speed: Annotated[float, typer.Option(min=0.1, help="Events a second.")] = 200.0,
    seconds: Annotated[
        float | None, typer.Option(min=1, envvar="DEMO_SECONDS", help="Stop by itself after so long.")
    ] = None,
    redis: Annotated[bool, typer.Option("--redis", help="Features in Redis instead of SQLite.")] = False,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Strictly by event time: nearly one user after the other.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of going on.")] = False,
) -> None:
    """Stream MovieLens-100K through a stack of its own, and watch a user's list change.

    Goes on where the last run stopped. Exits 0 only if every user's list came out as of their last event.
    """
    require_checkout("demo")
    from deploy.demo.run import PlayedOut

    with _interrupts() as interrupted:
        if fresh:
            _wipe(directory)
        try:
            outcome = _play(
                directory, redis=redis, speed=speed, seconds=seconds, in_order=in_order, stopping=interrupted
            )
        except PlayedOut:
            say("the data was played to its end: starting over")
            _wipe(directory)
            outcome = _play(
                directory, redis=redis, speed=speed, seconds=seconds, in_order=in_order, stopping=interrupted
            )
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    say(outcome.summary())
    if outcome.shortfall is not None:
        raise UserError(outcome.shortfall)


def _play(
    directory: Path,
    *,
    redis: bool,
    speed: float,
    seconds: float | None,
    in_order: bool,
    stopping: threading.Event,
) -> DemoResult:
    """Bring the stack up, play, and stop all that was started."""
    from deploy.local import AlreadyRunning
    from freshet.cli.bring_up import bring_up

    try:
        stack, settings, workers = bring_up(directory, steps, redis=redis, workers=1)
    except AlreadyRunning:
        raise UserError(f"a stack is running in {directory}; `freshet down --dir {directory}` stops it") from None
    try:
        return _stream(settings, workers, speed=speed, seconds=seconds, in_order=in_order, stopping=stopping)
    finally:
        _stop(stack)


def _stream(
    settings: Settings,
    workers: list[LocalWorker],
    *,
    speed: float,
    seconds: float | None,
    in_order: bool,
    stopping: threading.Event,
) -> DemoResult:
    from deploy.demo.run import play
    from freshet.cli.bring_up import SERVICE, last_words

    def fault() -> str | None:
        dead = next((worker for worker in workers if not worker.process.is_alive()), None)
        return None if dead is None else f"{dead.name} ended ({dead.log}): {last_words(dead.log)}"

    page = next(process for process in workers if process.name == SERVICE)
    say(f"http://{page.address()} has the page: be a visitor, and watch your list")
    with _gently(stopping):
        return play(settings, rate=speed, seconds=seconds, stop=stopping, fault=fault, console=out, in_order=in_order)


def _stop(stack: Stack) -> None:
    from deploy.local import stop
    from freshet.cli.bring_up import undisturbed

    with undisturbed(), steps("stopped"):
        stop(stack)


def _wipe(directory: Path) -> None:
    """Remove a demo's folder. Raises `UserError` for one that is in use or is none."""
    from deploy.local import NotRunning, load

    try:
        stack = load(directory)
    except NotRunning:
        if directory.exists() and any(directory.iterdir()):
            raise UserError(f"{directory} holds something that is no stack: not removing it") from None
        return
    if any(process.is_alive() for process in stack.processes.values()):
        raise UserError(f"a stack is running in {directory}; `freshet down --dir {directory}` stops it")
    shutil.rmtree(directory)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Have SIGTERM and a closed terminal unwind as Ctrl-C does. Yields the event that `_gently` sets."""

    def unwind(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, unwind) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield threading.Event()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _gently(stopping: threading.Event) -> Iterator[None]:
    """While the stream runs, the first interrupt lets it end in order; the next one does not wait."""

    def ask(_number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
