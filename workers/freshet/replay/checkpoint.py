"""Running a replay to its end: pace, progress, and checkpoints to go on from."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from freshet.adapters.rocks import RocksStateStore
from freshet.errors import FreshetError
from freshet.files import aside, write_whole
from freshet.ports import Log
from freshet.replay.engine import Replay
from freshet.replay.merge import Step, steps
from freshet.replay.output import FolderOutput
from freshet.replay.states import MemoryStates, States, StoredStates
from freshet.settings import Settings

BATCH_RECORDS = 2048
CHECKPOINT = "checkpoint.msgpack"
BEGUN = "begun"
"""Lies in the folder of a replay until it is complete: what is beside it is the replay's own."""
CHECKPOINT_SECONDS = 30.0


class CheckpointError(FreshetError):
    """The folder's checkpoint is of another replay or cannot be read; the message says so."""


class Folder:
    """The folder of a replay: output parts, states on disk, the checkpoint.

    `identity` says which replay it is: source, models, settings that matter.
    """

    def __init__(self, path: Path, identity: dict[str, Any], output: FolderOutput, *, on_disk: bool) -> None:
        self.path = path
        self.identity = msgspec.msgpack.decode(
            msgspec.msgpack.encode(identity), strict=False
        )  # as a checkpoint says it
        self.output = output
        self._store: RocksStateStore | None = None
        self._number = 0
        self._on_disk = on_disk

    @property
    def checkpoint(self) -> Path:
        """The file that says how far the replay has come."""
        return self.path / CHECKPOINT

    def open_states(self) -> States:
        """States as of the last checkpoint, or none yet."""
        if not self._on_disk:
            return MemoryStates()
        self._store = RocksStateStore(self.path / "state")
        return StoredStates(self._store)

    async def save(self, replay: Replay, states: States) -> None:
        """Make what was done so far durable; the replay is drained."""
        await replay.drain()
        await self.output.settle()
        parts = self.output.cut()
        self._number += 1
        if isinstance(states, StoredStates) and self._store is not None:
            await states.write()
            shutil.rmtree(self._saved_states(self._number), ignore_errors=True)  # a save that was cut off left it
            self._store.checkpoint(self._saved_states(self._number))
        document = {
            "identity": self.identity,
            "number": self._number,
            "parts": parts,
            "replay": replay.dump(),
            "states": states.dump() if isinstance(states, MemoryStates) else None,
        }
        write_whole(self.checkpoint, msgspec.msgpack.encode(document))
        shutil.rmtree(self._saved_states(self._number - 1), ignore_errors=True)

    def load(self) -> dict[str, Any]:
        """The last checkpoint, with everything behind it removed. Raises `CheckpointError`."""
        try:
            document: dict[str, Any] = msgspec.msgpack.decode(self.checkpoint.read_bytes(), strict=False)
        except msgspec.DecodeError as error:
            raise CheckpointError(f"{self.checkpoint} cannot be read: {error}") from None
        if document["identity"] != self.identity:
            raise CheckpointError(
                f"{self.path} holds another replay (source, models or settings differ): choose another --out"
            )
        self._number = document["number"]
        self.output.restore(document["parts"])
        if self._on_disk:
            shutil.rmtree(self.path / "state", ignore_errors=True)
            shutil.copytree(self._saved_states(self._number), self.path / "state")
        return document

    def close(self) -> None:
        """Close the states."""
        if self._store is not None:
            self._store.close()

    def finish(self) -> None:
        """The replay is complete: checkpoints go."""
        self.close()
        for written in (self.checkpoint, aside(self.checkpoint)):
            written.unlink(missing_ok=True)
        (self.path / BEGUN).unlink(missing_ok=True)
        for saved in self.path.glob("state-*"):  # one a save that was cut off may have left
            shutil.rmtree(saved)

    def _saved_states(self, number: int) -> Path:
        return self.path / f"state-{number}"


async def run(
    replay: Replay,
    log: Log,
    settings: Settings,
    *,
    batch: int = BATCH_RECORDS,
    speed: float | None = None,
    advanced: Callable[[int], None] = lambda _: None,
    save: Callable[[], Any] | None = None,
) -> None:
    """Feed the log to its end. `speed` is event time per wall-clock time; None is as fast as it goes.

    `advanced` is told how many records each batch held; `save` is awaited every
    `CHECKPOINT_SECONDS` between batches.
    """
    stream = steps(log, replay.positions, settings.behaviours)
    batches = _full_speed(stream, batch) if speed is None else _paced(stream, speed, batch)
    saved = time.monotonic()
    async for some in batches:
        await replay.feed(some)
        advanced(len(some))
        if save is not None and time.monotonic() - saved >= CHECKPOINT_SECONDS:
            await save()
            saved = time.monotonic()
    await replay.finish()


async def _full_speed(stream: Iterator[Step], batch: int) -> AsyncIterator[list[Step]]:
    """Batches as fast as they are taken."""
    while some := list(islice(stream, batch)):
        yield some


async def _paced(stream: Iterator[Step], speed: float, batch: int) -> AsyncIterator[list[Step]]:
    """Batches as their event times come up on a clock that runs `speed` times as fast as the wall's."""
    began, first = time.monotonic(), None
    waiting: list[Step] = []
    for step in stream:
        if first is None and step.clock:
            first = step.clock
        due = began + (step.clock - (first or step.clock)) / 1000 / speed
        if waiting and (due > time.monotonic() or len(waiting) == batch):
            yield waiting
            waiting = []
        if (ahead := due - time.monotonic()) > 0:
            await asyncio.sleep(ahead)
        waiting.append(step)
    if waiting:
        yield waiting
