"""Archiving a topic with Freshet's archiver, and consuming it with the same client and nothing after it."""

from __future__ import annotations

import tempfile
import threading
import uuid
from pathlib import Path

from confluent_kafka import Consumer
from freshet.adapters.kafka import client_config
from freshet.archive.archiver import FETCH_RECORDS, Archiver
from freshet.process.health import Health
from freshet.settings import Settings

from tests.bench import harness
from tests.bench.stream import require_events


def measure(
    *, kafka: str, topic: str, items_topic: str, popularity_topic: str, events: int, how: str
) -> harness.Figures:
    """Take `events` events, which `topic` holds: `archive` writes them to Parquet, synced; `consume` reads them."""
    require_events(kafka, topic, events)
    meter = harness.Meter()
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder:
        settings = Settings(
            kafka=kafka,
            group=f"bench-archive-{uuid.uuid4().hex[:8]}",
            events_topic=topic,
            items_topic=items_topic,
            popularity_topic=popularity_topic,
            archive_dir=folder,
            data_dir=folder,
        )
        if how == "archive":
            _archive(settings, meter, events)
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
            return {"system": "freshet archive", **meter.figures("events"), "bytes_per_event": round(size / events, 1)}
        _consume(settings, meter, events)
    return {"system": "confluent-kafka, consumed alone", **meter.figures("events")}


class _Counting(threading.Event):
    """Set once the archiver has fetched everything; it asks after each fetch."""

    def __init__(self, meter: harness.Meter, events: int) -> None:
        super().__init__()
        self.archiver: Archiver | None = None
        self._meter = meter
        self._events = events

    def is_set(self) -> bool:
        """Count what was fetched since."""
        assert self.archiver is not None
        taken = sum(partition.appender.next for partition in self.archiver._partitions.values())
        if taken > self._meter.count:
            self._meter.tick(taken - self._meter.count)
        return self._meter.count >= self._events


def _archive(settings: Settings, meter: harness.Meter, events: int) -> None:
    stopping = _Counting(meter, events)
    stopping.archiver = Archiver(settings, Health())
    stopping.archiver.run(stopping)
    meter.stop()


def _consume(settings: Settings, meter: harness.Meter, events: int) -> None:
    consumer = Consumer(client_config(settings) | {"group.id": settings.group, "auto.offset.reset": "earliest"})
    consumer.subscribe([settings.events_topic])
    while meter.count < events:
        messages = consumer.consume(FETCH_RECORDS, 0.5)
        if messages:
            meter.tick(sum(len(message.value()) > 0 for message in messages))
    meter.stop()
    consumer.close()


run = harness.launcher(measure)

if __name__ == "__main__":
    harness.command_line(measure)
