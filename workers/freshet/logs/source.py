"""Open the log that a source names, and decode the records of a log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from freshet.archive.reader import ArchiveLog, topic_folder
from freshet.core.events import BadEvent, Event, decode_event
from freshet.logs.json_lines import JsonLinesLog
from freshet.logs.kafka import KafkaLog
from freshet.ports import WHOLE, EmptyLog, Log, LogError, Record, Window
from freshet.settings import Settings


def open_log(source: str, settings: Settings, window: Window = WHOLE) -> Log:
    """Open `kafka`, `kafka:TOPIC`, an archive's folder or file, or a file of JSON lines. Raises `LogError`."""
    _check(window)
    if source == "kafka" or source.startswith("kafka:"):
        return KafkaLog(source.removeprefix("kafka").removeprefix(":") or settings.events_topic, settings, window)
    path = Path(source)
    if not path.exists():
        raise LogError(f"{source} does not exist: name an archive's folder, a file of JSON lines, or kafka:TOPIC")
    if path.is_dir():
        return ArchiveLog(topic_folder(path, settings.events_topic), window)
    if path.suffix == ".parquet":
        return ArchiveLog(path, window)
    if path.suffix not in {".jsonl", ".ndjson", ".json"}:
        raise LogError(
            f"{source} is no log: name an archive's folder, one of its *.parquet, JSON lines (*.jsonl), or kafka:TOPIC"
        )
    return JsonLinesLog(path, window)


def _check(window: Window) -> None:
    """Raises `LogError` where nothing can be in the window."""
    if window.start_ms is not None and window.end_ms is not None and window.start_ms >= window.end_ms:
        raise LogError("the window is empty: it ends before it begins")
    for partition, (first, last) in window.offsets.items():
        if last is not None and last < first:
            raise LogError(f"the window is empty: partition {partition} ends at offset {last}, before {first}")


def decoded(
    log: Log, partition: int, settings: Settings, start: int = 0
) -> Iterator[list[tuple[Record, Event | BadEvent]]]:
    """Runs of one partition from an offset on, each record with its event, or with the reason why it is none."""
    for run in log.read(partition, start):
        yield [(record, _event(record, settings)) for record in run]


def _event(record: Record, settings: Settings) -> Event | BadEvent:
    latest = settings.latest_ts(record.timestamp)
    return decode_event(record.value, record.key, settings.behaviours, record.headers, latest)


def events(log: Log, settings: Settings) -> Iterator[tuple[int, Record, Event]]:
    """Yield all events of a log with their partitions and records, partition by partition.

    Records that are no events are left out.
    """
    for partition in log.partitions:
        for run in decoded(log, partition, settings):
            for record, event in run:
                if isinstance(event, Event):
                    yield partition, record, event


def read_topic(settings: Settings, topic: str) -> Iterator[Record]:
    """Yield all records of a topic, partition by partition. An empty topic has none. Raises `LogError`."""
    try:
        log = KafkaLog(topic, settings)
    except EmptyLog:
        return
    yield from _records(log)


def read_beside(source: str, settings: Settings, topic: str) -> Iterator[Record]:
    """Yield all records of a side-input topic, from the archive that `source` is, or else from the broker.

    An archive counts as having side inputs if it has the popularity topic. A topic that such an archive lacks never
    had records. Raises `LogError`.
    """
    archive = Path(source)
    if not any((archive / settings.popularity_topic).glob("date=*")):
        yield from read_topic(settings, topic)
    elif any((archive / topic).glob("date=*")):
        yield from _records(ArchiveLog(archive / topic))


def _records(log: Log) -> Iterator[Record]:
    """All records of a log, partition by partition."""
    for partition in log.partitions:
        for run in log.read(partition):
            yield from run
