"""Logs to replay: Kafka topics and files of JSON lines, read a run at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

from workers.adapters.kafka import client_config
from workers.ports import Record
from workers.settings import Settings

RUN = 2048
PATIENCE_SECONDS = 10.0
"""How long the broker may take to answer."""
QUEUED_KB = 8192
"""What a partition's consumer may hold ahead."""
POLL_SECONDS = 0.1
"""How long a run may take to fill."""


class LogError(Exception):
    """The log cannot be read; the message says why and what to do."""


class EmptyLog(LogError):
    """The log is there and holds nothing in the window."""


class Window(NamedTuple):
    """The part of a log: record times in ms, the end left out, and offsets `(first, last)` by partition."""

    start_ms: int | None
    end_ms: int | None
    offsets: Mapping[int, tuple[int, int | None]]

    def holds(self, partition: int, record: Record) -> bool:
        """Whether the record is in the window."""
        if self.start_ms is not None and record.timestamp < self.start_ms:
            return False
        if self.end_ms is not None and record.timestamp >= self.end_ms:
            return False
        if not self.offsets:
            return True
        first, last = self.offsets.get(partition, (0, -1))
        return first <= record.offset and (last is None or record.offset <= last)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.start_ms is None and self.end_ms is None and not self.offsets


def open_log(source: str, settings: Settings, window: Window) -> KafkaLog | JsonLinesLog:
    """Open `kafka`, `kafka:TOPIC` or a file of JSON lines. Raises `LogError`."""
    if source == "kafka" or source.startswith("kafka:"):
        return KafkaLog(source.removeprefix("kafka").removeprefix(":") or settings.events_topic, settings, window)
    path = Path(source)
    if not path.exists():
        raise LogError(f"{source} does not exist: name a file of JSON lines, or kafka:TOPIC")
    if path.suffix not in {".jsonl", ".ndjson", ".json"}:
        raise LogError(f"{source} is no log: name a file of JSON lines (*.jsonl), or kafka:TOPIC")
    return JsonLinesLog(path, window)


class _Head(msgspec.Struct):
    user_id: str
    ts: int = 0


_head = msgspec.json.Decoder(_Head)


class JsonLinesLog:
    """Events one a line: partition 0, the offset counts lines from 0, the time is the event's own.

    A line whose user id cannot be read has no key, and becomes a dead letter as
    it would on the stream.
    """

    def __init__(self, path: Path, window: Window) -> None:
        self.name = str(path)
        self.partitions = [0]
        self._window = window
        try:
            with path.open("rb") as file:
                lines = sum(1 for line in file if line.strip())
        except OSError as error:
            raise LogError(f"{path}: {error.strerror}") from None
        if not lines:
            raise EmptyLog(f"{path} holds no events")
        self.total = lines if window.is_whole else None
        self._path = path

    def read(self, partition: int, start: int = 0) -> Iterator[list[Record]]:
        """Runs of lines from a line number on."""
        window = None if self._window.is_whole else self._window
        with self._path.open("rb") as file:
            lines = islice(enumerate(line for raw in file if (line := raw.strip())), start, None)
            while some := list(islice(lines, RUN)):
                run = [_record(offset, line) for offset, line in some]
                if window is not None:
                    run = [record for record in run if window.holds(partition, record)]
                if run:
                    yield run

    def close(self) -> None:
        """Files are open only while they are read."""


def _record(offset: int, line: bytes) -> Record:
    try:
        head = _head.decode(line)
        return Record(offset, head.ts, head.user_id.encode(), line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Record(offset, 0, None, line)


class KafkaLog:
    """A topic up to the end it had when it was opened; no consumer group is touched."""

    def __init__(self, topic: str, settings: Settings, window: Window) -> None:
        self.name = f"kafka:{topic}"
        self._topic = topic
        self._settings = settings
        self._window = window
        with _consumer(settings) as consumer:
            self.partitions = _partitions(consumer, settings, topic)
            self._ranges = {partition: self._range(consumer, partition) for partition in self.partitions}
        if window.offsets:
            unknown = sorted(set(window.offsets) - set(self.partitions))
            if unknown:
                raise LogError(f"topic {topic} has no partition {unknown[0]}")
        self.total = sum(max(0, end - first) for first, end in self._ranges.values())
        if not self.total:
            raise EmptyLog(f"topic {topic} holds no records in the window")

    def _range(self, consumer: Consumer, partition: int) -> tuple[int, int]:
        """First offset and end, within the window."""
        low, high = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), PATIENCE_SECONDS)
        first, end = low, high
        if self._window.start_ms is not None:
            first = max(first, self._offset_at(consumer, partition, self._window.start_ms, high))
        if self._window.end_ms is not None:
            end = min(end, self._offset_at(consumer, partition, self._window.end_ms, high))
        if self._window.offsets:
            wanted, last = self._window.offsets.get(partition, (0, -1))
            if last is None or last >= wanted:
                if wanted < low:
                    raise LogError(
                        f"topic {self._topic}, partition {partition}: "
                        f"offset {wanted} is gone, the first there is is {low}"
                    )
                first = max(first, wanted)
            end = end if last is None else min(end, last + 1)
        return first, end

    def _offset_at(self, consumer: Consumer, partition: int, ms: int, high: int) -> int:
        [found] = consumer.offsets_for_times([TopicPartition(self._topic, partition, ms)], PATIENCE_SECONDS)
        return found.offset if found.offset >= 0 else high

    def read(self, partition: int, start: int = 0) -> Iterator[list[Record]]:
        """Runs of a partition from an offset on."""
        first, end = self._ranges[partition]
        position = max(first, start)
        if position >= end:
            return
        where = f"topic {self._topic}, partition {partition}"
        with _consumer(self._settings) as consumer:
            consumer.assign([TopicPartition(self._topic, partition, position)])
            heard = time.monotonic()
            while position < end:
                messages = consumer.consume(min(RUN, end - position), timeout=POLL_SECONDS)
                if messages:
                    heard = time.monotonic()
                elif time.monotonic() - heard > PATIENCE_SECONDS:
                    raise LogError(f"{where}: the broker sends nothing more")
                run = []
                for message in messages:
                    if message.error():
                        if message.error().code() != _PARTITION_EOF:
                            raise LogError(f"{where}: {message.error().str()}")
                        position = end
                    elif message.offset() < end:
                        run.append(_of(message))
                        position = message.offset() + 1
                    else:
                        position = end
                if run:
                    yield run

    def close(self) -> None:
        """Consumers live only while they read."""


_PARTITION_EOF = -191


def _of(message: Any) -> Record:
    return Record(message.offset(), message.timestamp()[1], message.key(), message.value(), message.headers() or ())


def read_topic(settings: Settings, topic: str) -> Iterator[Record]:
    """All records of a topic, partition by partition; none for an empty one. Raises `LogError`."""
    try:
        log = KafkaLog(topic, settings, Window(None, None, {}))
    except EmptyLog:
        return
    for partition in log.partitions:
        for run in log.read(partition):
            yield from run


def behind(settings: Settings, topic: str) -> int:
    """How many records of a topic the settings' group has not committed yet. Raises `LogError`."""
    with _consumer(settings, settings.group) as consumer:
        places = [TopicPartition(topic, partition) for partition in _partitions(consumer, settings, topic)]
        left = 0
        for place in consumer.committed(places, PATIENCE_SECONDS):
            low, high = consumer.get_watermark_offsets(place, PATIENCE_SECONDS)
            left += high - max(low, place.offset)
    return left


def _partitions(consumer: Consumer, settings: Settings, topic: str) -> list[int]:
    try:
        found = consumer.list_topics(topic, timeout=PATIENCE_SECONDS).topics[topic]
    except KafkaException as error:
        raise LogError(f"Kafka at {settings.kafka} does not answer: {error.args[0].str()}") from None
    if found.error is not None or not found.partitions:
        raise LogError(f"topic {topic} does not exist at {settings.kafka}")
    return sorted(found.partitions)


@contextmanager
def _consumer(settings: Settings, group: str | None = None) -> Iterator[Consumer]:
    """A consumer that joins no group and commits nothing."""
    consumer = Consumer(
        client_config(settings)
        | {
            "group.id": group or f"{settings.group}-replay",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": QUEUED_KB,
            "allow.auto.create.topics": False,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()
