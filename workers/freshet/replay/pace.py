"""The pace of a replay: batches at full speed or by event time, with progress and checkpoints between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from typing import Any

from freshet.ports import Log
from freshet.replay.engine import Replay
from freshet.replay.merge import DecodedRecord, steps
from freshet.settings import Settings

BATCH_RECORDS = 2048
CHECKPOINT_SECONDS = 30.0


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
    """Feed the log to its end. `speed` is event time per wall-clock time, and None means full speed.

    `advanced` is called with the number of records of each batch. `save` is awaited between batches, every
    `CHECKPOINT_SECONDS`.
    """
    stream = steps(log, replay.positions, settings)
    batches = _full_speed(stream, batch) if speed is None else _paced(stream, speed, batch)
    saved = time.monotonic()
    async for steps_of_batch in batches:
        await replay.feed(steps_of_batch)
        advanced(len(steps_of_batch))
        if save is not None and time.monotonic() - saved >= CHECKPOINT_SECONDS:
            await save()
            saved = time.monotonic()
    await replay.finish()


async def _full_speed(stream: Iterator[DecodedRecord], batch: int) -> AsyncIterator[list[DecodedRecord]]:
    """Batches as fast as they are taken."""
    while steps_of_batch := list(islice(stream, batch)):
        yield steps_of_batch


async def _paced(stream: Iterator[DecodedRecord], speed: float, batch: int) -> AsyncIterator[list[DecodedRecord]]:
    """Batches as their event times come up on a clock that runs `speed` times as fast as the wall's."""
    began, first = time.monotonic(), None
    waiting: list[DecodedRecord] = []
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
