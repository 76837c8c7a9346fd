"""Fold-only ingest with Freshet: the worker's transport, fold and state table, nothing after them.

State is written to the changelog, awaited, and to RocksDB, as in the whole
worker; the time runs to the commit of the last run.
"""
# ruff: noqa: PLC0415 - importing faust reads sys.argv

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import uuid
from collections.abc import Sequence

from freshet.adapters.kafka import KafkaPublisher
from freshet.serving.pipeline import PartitionBatch, Pipeline
from freshet.settings import Settings

from tests.bench import harness
from tests.bench.stream import require_events


class FoldOnly(Pipeline):
    """The pipeline without features, encoder and lists."""

    meter: harness.Meter
    events: int

    async def process(self, runs: Sequence[PartitionBatch]) -> None:
        """Fold a batch and write its states."""
        self._folded = folded = asyncio.create_task(self._fold_next(runs, self._folded))
        await (await folded).written
        if self.meter.tick(sum(len(run.records) for run in runs)) >= self.events:
            self.meter.stop()
            asyncio.get_running_loop().call_later(1.0, os.kill, os.getpid(), signal.SIGTERM)


class FoldRuntime:
    """A worker's runtime with a publisher and the fold alone."""

    class _NoModel:
        def partial(self, _partition: int) -> None:
            """No popularity is restored."""

        async def caught_up(self) -> None:
            """No version is awaited."""

    def __init__(self, settings: Settings, events: int) -> None:
        self._settings = settings
        self.meter = harness.Meter()
        self._events = events

    async def start(self) -> None:
        """Open the publisher."""
        self.publisher = KafkaPublisher(self._settings)
        self.pipeline = FoldOnly(self._settings, self._NoModel(), None, None, self.publisher, None)  # type: ignore[arg-type]
        self.pipeline.meter, self.pipeline.events = self.meter, self._events

    async def stop(self) -> None:
        """Close the publisher."""
        await asyncio.to_thread(self.publisher.close)


def measure(*, kafka: str, topic: str, events: int, max_batch_events: int = 32_768) -> harness.Figures:
    """Fold `events` events, which `topic` holds, into per-user state."""
    from freshet.serving.app import WorkerApp, run_app

    partitions = require_events(kafka, topic, events)
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder:
        settings = Settings(
            kafka=kafka,
            group=f"bench-fold-{uuid.uuid4().hex[:8]}",
            events_topic=topic,
            data_dir=folder,
            max_batch_events=max_batch_events,
        )
        runtime = FoldRuntime(settings, events)
        run_app(WorkerApp(settings, partitions, runtime))  # type: ignore[arg-type]
    return {"system": "freshet, fold only", **runtime.meter.figures("events")}


run = harness.launcher(measure)

if __name__ == "__main__":
    harness.command_line(measure)
