"""Writes features again where the online store lost them: emptied, made anew, or put back from an old copy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from freshet.files import write_whole
from freshet.ports import StateStore, Unavailable
from freshet.process import metrics, watchdog
from freshet.serving.pipeline import PartitionBatch, Pipeline

STAMP_SECONDS = 5.0
"""Between two looks at whether the online store is as it was left."""
RESTORED_USERS = 64
"""Users of a micro-batch that restores features."""

log = logging.getLogger(__name__)


class Stamps(Protocol):
    """Numbers in the online store, beside the features."""

    async def stamp(self, name: str) -> int | None:
        """The number stored under a name; None for none."""

    async def set_stamp(self, name: str, number: int) -> None:
        """Store a number under a name."""


class FeatureStamp:
    """A rising number under the worker's name, in the online store and in the worker's own folder.

    A store that has another one is not as it was left. What was written between the last stamp and a copy that is
    put back within the same period is not noticed. A worker with a new folder knows of no loss.
    """

    def __init__(self, store: Stamps, name: str, file: Path) -> None:
        self._store = store
        self._name = name
        self._file = file

    async def lost(self) -> bool:
        """Whether the store has lost features. Raises `Unavailable`."""
        if not self._file.exists():
            return False
        number = int(self._file.read_text())
        # a worker that was killed between the two has written the store alone
        return await self._store.stamp(self._name) not in {number, number + 1}

    async def renew(self) -> None:
        """Say that all features are there now. Raises `Unavailable`."""
        number = int(self._file.read_text()) + 1 if self._file.exists() else 1
        await self._store.set_stamp(self._name, number)
        write_whole(self._file, str(number).encode())


class KeptStates(StateStore, Protocol):
    """The states of a partition, whose users can be named."""

    def users(self) -> list[str]:
        """Every user with a state."""


class Serving(Protocol):
    """The parts of a worker that restore features."""

    pipeline: Pipeline
    recovering: Callable[[], bool]
    assigned: Callable[[], set[int]]


class FeatureKeeper:
    """Has every user's features written again, out of the states, where the store has lost what was written to it."""

    def __init__(self, stamp: FeatureStamp, serving: Serving, states: Callable[[int], KeptStates]) -> None:
        self._stamp = stamp
        self._serving = serving
        self._states = states

    async def run(self) -> None:
        """Look for ever. A surprise ends the process."""
        while True:
            try:
                await self.look()
            except Unavailable as error:
                log.info("the online store is away", extra={"why": str(error)})
            except Exception as error:
                watchdog.fail_fast(error)
            await asyncio.sleep(STAMP_SECONDS)

    async def look(self) -> None:
        """Renew the stamp, after the features where they were lost. Raises `Unavailable`."""
        if await self._stamp.lost():
            if self._serving.recovering():
                return
            log.warning("the online store has lost features: every user's are written again")
            for partition in self._serving.assigned():
                await self._restore(partition)
        await self._stamp.renew()

    async def _restore(self, partition: int) -> None:
        """In micro-batches of their own, between those with events: an older state never replaces a newer one's row."""
        states = self._states(partition)
        users: Sequence[str] = states.users()
        for start in range(0, len(users), RESTORED_USERS):
            if partition not in self._serving.assigned() or self._serving.recovering():
                return
            restored = users[start : start + RESTORED_USERS]
            await self._serving.pipeline.process([PartitionBatch(states, partition, (), restored)])
            metrics.FEATURES_RESTORED.inc(len(restored))
