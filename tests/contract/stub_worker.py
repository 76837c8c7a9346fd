"""A worker on real Faust whose pipeline only counts, and writes down what it is given.

    python -m tests.contract.stub_worker FOLDER

FOLDER holds `settings.json`, gets `calls.jsonl`, and steers the worker by
files: a run waits while `hold-PARTITION` is there, and raises where it has the
offset in `fail`. At the start, `impatient` lets it wait for 3 seconds at most, `short-session` stand still so long,
`deaf` keeps its changelog from it, `slow-seek` makes Faust linger between the seek
that ends a recovery and the resuming of the flow, `slow-inbox` lets runs wait in front
of the inbox while `hold-0` is there, and `faust-flow-control` takes the worker's own flow control away.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import faust
import msgspec
from confluent_kafka.admin import AdminClient
from faust.types import TP
from freshet.adapters import state_table
from freshet.adapters.faust import Inbox, RunConsumer
from freshet.adapters.kafka import KafkaPublisher, client_config
from freshet.adapters.source import create_changelog
from freshet.core.state import decode_state, empty_state, encode_state
from freshet.process import watchdog
from freshet.serving.app import SESSION_SECONDS, WorkerApp, run_app
from freshet.serving.pipeline import PartitionBatch
from freshet.settings import Settings


class CountingPipeline:
    """Counts the records of each user in the state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = (folder / "calls.jsonl").open("a")
        self._turn = asyncio.Lock()
        self._batches = 0

    async def process(self, runs: Sequence[PartitionBatch]) -> None:
        """Note the runs, wait if told to, fail if told to, count, write: one batch at a time."""
        self._batches = batch = self._batches + 1
        self.note(what="taken", batch=batch, sizes={run.partition: len(run.records) for run in runs})
        async with self._turn:
            for run in runs:
                await self._process(run)

    async def _process(self, run: PartitionBatch) -> None:
        store, partition, records, _ = run
        users = Counter((record.key or b"").decode() for record in records)
        states = [decode_state(raw) if raw is not None else empty_state(partition) for raw in store.read(list(users))]
        offsets = [record.offset for record in records]
        before = {user: [state.folded, state.offset] for user, state in zip(users, states, strict=True)}
        self.note(what="start", partition=partition, offsets=offsets, before=before)
        while (self._folder / f"hold-{partition}").exists():  # noqa: ASYNC110 - the test is another process
            await asyncio.sleep(0.01)
        fail = self._folder / "fail"
        if fail.exists() and int(fail.read_text()) in offsets:
            raise RuntimeError("as told")
        written = {}
        for (user, count), state in zip(users.items(), states, strict=True):
            state.folded += count
            state.offset = offsets[-1]
            written[user] = encode_state(state)
        await store.write(written)
        self.note(what="end", partition=partition, offsets=offsets)

    def release(self, partitions: Collection[int]) -> None:
        """Note that the partitions went away."""
        self.note(what="release", partitions=list(partitions))

    def note(self, **entry: Any) -> None:
        """Write down what has happened."""
        self._calls.write(json.dumps(entry) + "\n")
        self._calls.flush()


class FileStamps:
    """The stamps of an online store that loses nothing."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def stamp(self, _name: str) -> int | None:
        """The number in the file."""
        return int(self._file.read_text()) if self._file.exists() else None

    async def set_stamp(self, _name: str, number: int) -> None:
        """Write the number."""
        self._file.write_text(str(number))


class Runtime:
    """The least that a worker needs beside Faust."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self.features = FileStamps(folder / "stamp")

    async def start(self) -> None:
        """Open the publisher."""
        limit = 3.0 if (self._folder / "short-session").exists() else SESSION_SECONDS
        self.publisher = KafkaPublisher(self._settings, watchdog.Watchdog(limit).check)
        self.pipeline = CountingPipeline(self._folder)

    async def stop(self) -> None:
        """Close it."""
        await asyncio.to_thread(self.publisher.close)


def seek_slowly() -> None:
    """Widen the window in which records are fetched before the flow is resumed, and note its end."""
    seek = RunConsumer.perform_seek

    async def slow(consumer: RunConsumer) -> None:
        await seek(consumer)
        await asyncio.sleep(4.0)
        consumer.app.runtime.pipeline.note(what="sought")

    RunConsumer.perform_seek = slow


def note_what_is_queued() -> None:
    """Note the sizes of the runs that wait to be taken."""
    put = Inbox.put

    async def noted(inbox: Inbox, event: Any) -> None:
        await put(inbox, event)
        event.app.runtime.pipeline.note(what="queued", size=len(event.value.records))

    Inbox.put = noted  # type: ignore[method-assign]


def fill_the_inbox_slowly(folder: Path) -> None:
    """Let a run wait in front of the inbox, and those behind it in Faust's queue."""
    put = Inbox.put

    async def slow(inbox: Inbox, event: Any) -> None:
        event.app.runtime.pipeline.note(what="in front of the inbox")
        while (folder / "hold-0").exists():  # noqa: ASYNC110 - the test is another process
            await asyncio.sleep(0.01)
        await put(inbox, event)

    Inbox.put = slow  # type: ignore[method-assign]


def hear_no_changelog() -> None:
    """Read of the events alone."""
    read = RunConsumer._getmany

    async def deaf(consumer: RunConsumer, active_partitions: set[TP] | None, **limits: float) -> Any:
        heard = {tp for tp in active_partitions or () if consumer._has_events(tp)}
        return await read(consumer, heard, **limits)

    RunConsumer._getmany = deaf


def main(folder: Path) -> int:
    """Run until told to stop."""
    note_what_is_queued()
    if (folder / "impatient").exists():
        state_table.PATIENCE_SECONDS = watchdog.STOP_SECONDS = 3
    if (folder / "deaf").exists():
        hear_no_changelog()
    if (folder / "slow-seek").exists():
        seek_slowly()
    if (folder / "slow-inbox").exists():
        fill_the_inbox_slowly(folder)
    if (folder / "faust-flow-control").exists():
        WorkerApp.flow_control = faust.App.flow_control  # type: ignore[assignment]
    raw = json.loads((folder / "settings.json").read_text())
    partitions = raw.pop("partitions")
    settings = msgspec.convert(raw, Settings)
    create_changelog(settings, AdminClient(client_config(settings)), partitions)
    return run_app(WorkerApp(settings, partitions, Runtime(settings, folder)))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv.pop())))
