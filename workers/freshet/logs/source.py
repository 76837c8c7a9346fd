"""Logs to replay: Kafka topics, archives of them, and files of JSON lines, read a run at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaException, TopicPartition

from freshet.adapters.kafka import client_config, record_of
from freshet.archive.chain import ArchiveError, Segment, chains, date_name, day_of, lost
from freshet.archive.rows import PARTITION_KEY, SCHEMA_KEY, SCHEMA_VERSION, read_records
from freshet.core.decoding import Int64, Undecodable, decode
from freshet.errors import FreshetError
from freshet.ports import Record
from freshet.settings import Settings

RUN = 2048
PATIENCE_SECONDS = 10.0
"""How long the broker may take to answer."""
QUEUED = 2 * RUN
"""Records that a partition's consumer holds ahead, beside the fetch they came in: each takes half a kilobyte more
than its bytes, which librdkafka's bound in kilobytes does not count."""
QUEUED_KB = 8192
"""What they may take, the half kilobyte apart."""
FETCH_AGAIN_MS = 5
"""How soon the broker is asked again where that much was held."""
POLL_SECONDS = 0.1
"""How long a run may take to fill."""


class LogError(FreshetError):
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


def open_log(source: str, settings: Settings, window: Window) -> KafkaLog | ArchiveLog | JsonLinesLog:
    """Open `kafka`, `kafka:TOPIC`, an archive's folder or file, or a file of JSON lines. Raises `LogError`."""
    _check(window)
    if source == "kafka" or source.startswith("kafka:"):
        return KafkaLog(source.removeprefix("kafka").removeprefix(":") or settings.events_topic, settings, window)
    path = Path(source)
    if not path.exists():
        raise LogError(f"{source} does not exist: name an archive's folder, a file of JSON lines, or kafka:TOPIC")
    if path.is_dir():
        return ArchiveLog(_topic_folder(path, settings.events_topic), window)
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


class _Head(msgspec.Struct):
    user_id: str
    ts: Int64 = 0


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
    head = decode(_head, line)
    return (
        Record(offset, 0, None, line)
        if isinstance(head, Undecodable)
        else Record(offset, head.ts, head.user_id.encode(), line)
    )


def _topic_folder(path: Path, topic: str) -> Path:
    """The folder of a topic's files: within the archive's, or the one that was named itself."""
    for folder in (path / topic, path):
        if any(folder.glob("date=*")):
            return folder
    raise EmptyLog(f"{path} holds no archived events: neither {topic}/date=… nor date=…")


class ArchiveLog:
    """What `freshet archive` wrote of a topic, or one file of it; read as the topic would be.

    Files are found when it is opened; where some have been merged since, the
    merged one is read on. Records that were taken out with their user are not
    there, and are no gap. `starts` are the partitions' first offsets.
    """

    def __init__(self, path: Path, window: Window) -> None:
        self.name = str(path)
        self._path = path
        self._window = window
        self._segments = self._found()
        self.partitions = sorted(self._segments)
        if gone := [number for number in lost(path) if not window.offsets or number in window.offsets]:
            raise LogError(
                f"{path}, partition {gone[0]}: all its files are missing: restore them, or name the other partitions "
                "with --offsets"
            )
        if unknown := sorted(set(window.offsets) - set(self.partitions)):
            raise LogError(f"{path} has no partition {unknown[0]}")
        self._ranges = {partition: self._range(partition) for partition in self.partitions}
        self.total = sum(self._checked(partition) for partition in self.partitions)
        if not self.total:
            raise EmptyLog(f"{path} holds no records in the window")
        self.starts = {partition: first for partition, (first, end) in self._ranges.items() if first < end}

    def _found(self) -> dict[int, list[Segment]]:
        try:
            if self._path.is_dir():
                return {chain.partition: found for chain in chains(self._path) if (found := chain.segments())}
            with _opened(self._path) as file:
                limits = [_limits(file, group, "offset") for group in range(file.num_row_groups)]
                partition = int(file.metadata.metadata[PARTITION_KEY])
            first, last = min(low for low, _ in limits), max(high for _, high in limits)
            return {partition: [Segment(self._path, first, last, self._path.stat().st_size)]}
        except ArchiveError as error:
            raise LogError(str(error)) from None

    def _range(self, partition: int) -> tuple[int, int]:
        """First offset and end, within the window."""
        segments = self._segments[partition]
        low, high = segments[0].first, segments[-1].last + 1
        first, end = low, high
        if self._window.start_ms is not None:
            first = self._offset_at(segments, self._window.start_ms)
        if self._window.end_ms is not None:
            end = self._offset_at(segments, self._window.end_ms)
        if self._window.offsets:
            wanted, last = self._window.offsets.get(partition, (0, -1))
            if last is None or last >= wanted:
                if wanted < low:
                    raise LogError(
                        f"{self.name}, partition {partition}: offset {wanted} is not there, the first is {low}"
                    )
                first = max(first, wanted)
            end = end if last is None else min(end, last + 1)
        return first, end

    def _offset_at(self, segments: Sequence[Segment], ms: int) -> int:
        """The first offset with this record time or a later one, as a broker would find it; the end where none has."""
        for segment in segments:
            if self._path.is_dir() and segment.path.parent.name < date_name(day_of(ms)):
                continue
            with _opened(segment.path) as file:
                for group in range(file.num_row_groups):
                    if _limits(file, group, "timestamp")[1].timestamp() * 1000 >= ms:
                        for run in _read(file, segment.path, [group]):
                            for record in run:
                                if record.timestamp >= ms:
                                    return record.offset
        return segments[-1].last + 1

    def _checked(self, partition: int) -> int:
        """How many records there are in the window, every file of it looked at. Raises `LogError`."""
        first, end = self._ranges[partition]
        segments = [one for one in self._segments[partition] if one.first < end and one.last >= first]
        for before, after in pairwise(segments):
            if after.first > before.last + 1:
                raise self._missing(partition, before.last + 1, after.first - 1)
        count = 0
        for segment in segments:
            with _opened(segment.path) as file:
                if not _fits(file, segment):
                    raise LogError(f"{segment.path} holds other offsets than its name says: restore it")
                count += min(file.metadata.num_rows, min(end, segment.last + 1) - max(first, segment.first))
        return count

    def _missing(self, partition: int, first: int, last: int) -> LogError:
        return LogError(
            f"{self.name}, partition {partition}: offsets {first} to {last} are missing: "
            f"restore their files, or replay what there is with --offsets"
        )

    def read(self, partition: int, start: int = 0) -> Iterator[list[Record]]:
        """Runs of a partition from an offset on."""
        first, end = self._ranges[partition]
        position = max(first, start)
        while position < end:
            segment, file = self._at(partition, position)
            with file:
                groups = [
                    group for group in range(file.num_row_groups) if _limits(file, group, "offset")[1] >= position
                ]
                for run in _read(file, segment.path, groups):
                    some = run
                    if run[0].offset < position or run[-1].offset >= end:
                        some = [record for record in run if position <= record.offset < end]
                    if some:
                        yield some
            position = segment.last + 1

    def _at(self, partition: int, position: int) -> tuple[Segment, pq.ParquetFile]:
        """The file that holds an offset, looked for again where it has just been merged into another."""
        for _ in range(MERGES_AT_ONCE):
            segment = next((one for one in self._segments[partition] if one.last >= position), None)
            if segment is None or segment.first > position:
                break
            try:
                return segment, _opened(segment.path)
            except FileNotFoundError:
                self._segments = self._found()
        raise self._missing(partition, position, position)

    def close(self) -> None:
        """Files are open only while they are read."""


MERGES_AT_ONCE = 5
"""So often a file may be merged away between being found and being opened."""


def _opened(path: Path) -> pq.ParquetFile:
    """A file of an archive. Raises `LogError`, `FileNotFoundError`."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from None
    version = (file.metadata.metadata or {}).get(SCHEMA_KEY, b"").decode()
    if version != SCHEMA_VERSION:
        file.close()
        if not version:
            raise LogError(f"{path} was not written by `freshet archive`: its records have no offsets to replay by")
        raise LogError(
            f"{path} has archive schema {version}, this freshet reads {SCHEMA_VERSION}: use the one that wrote it"
        )
    return file


def _read(file: pq.ParquetFile, path: Path, groups: Sequence[int]) -> Iterator[list[Record]]:
    try:
        yield from read_records(file, RUN, groups)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> LogError:
    return LogError(
        f"{path} is cut off or damaged ({str(error).splitlines()[0]}): "
        f"restore it, or leave its offsets out with --offsets"
    )


def _fits(file: pq.ParquetFile, segment: Segment) -> bool:
    """Whether a file's offsets are those of its name."""
    groups = file.num_row_groups
    if not groups:
        return True
    return bool(
        segment.first <= _limits(file, 0, "offset")[0] and _limits(file, groups - 1, "offset")[1] == segment.last
    )


def _limits(file: pq.ParquetFile, group: int, column: str) -> tuple[Any, Any]:
    """The smallest and the largest value of a column in a row group."""
    row_group = file.metadata.row_group(group)
    statistics = row_group.column(file.schema_arrow.get_field_index(column)).statistics
    return statistics.min, statistics.max


class KafkaLog:
    """A topic up to the end it had when it was opened; no consumer group is touched.

    `starts` are the partitions' first offsets.
    """

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
        self.starts = {partition: first for partition, (first, end) in self._ranges.items() if first < end}

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
                run = [record_of(message) for message in messages if message.error() is None]
                if run:
                    position = run[-1].offset + 1
                if len(run) < len(messages):
                    _check_ended(messages, where)
                    position = end
                if position > end:
                    run = [record for record in run if record.offset < end]
                if run:
                    yield run

    def close(self) -> None:
        """Consumers live only while they read."""


_PARTITION_EOF = -191


def _check_ended(messages: Sequence[Any], where: str) -> None:
    """Raises `LogError` where anything but the partition's end was met."""
    for message in messages:
        if (error := message.error()) is not None and error.code() != _PARTITION_EOF:
            raise LogError(f"{where}: {error.str()}")


def read_topic(settings: Settings, topic: str) -> Iterator[Record]:
    """All records of a topic, partition by partition; none for an empty one. Raises `LogError`."""
    try:
        log = KafkaLog(topic, settings, Window(None, None, {}))
    except EmptyLog:
        return
    yield from _records(log)


def read_beside(source: str, settings: Settings, topic: str) -> Iterator[Record]:
    """All records of a topic that stands beside the events: of the archive that `source` is, else of the broker.

    An archive has side inputs where it has the popularity topic; what it lacks then was never there. Raises `LogError`.
    """
    archive = Path(source)
    if not any((archive / settings.popularity_topic).glob("date=*")):
        yield from read_topic(settings, topic)
    elif any((archive / topic).glob("date=*")):
        yield from _records(ArchiveLog(archive / topic, Window(None, None, {})))


def _records(log: KafkaLog | ArchiveLog) -> Iterator[Record]:
    """All records of a log, partition by partition."""
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
            "queued.min.messages": QUEUED,
            "queued.max.messages.kbytes": QUEUED_KB,
            "fetch.queue.backoff.ms": FETCH_AGAIN_MS,
            "allow.auto.create.topics": False,
            "log_level": 0,  # a broker that is away is an error of the caller's
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()
