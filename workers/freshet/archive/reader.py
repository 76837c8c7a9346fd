"""An archive of a topic as a log, read as the topic would be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from freshet.archive.chain import ArchiveError, chains, date_name, day_of, lost
from freshet.archive.merging import Segment
from freshet.archive.rows import PARTITION_KEY, SCHEMA_KEY, SCHEMA_VERSION, read_records
from freshet.ports import RUN_RECORDS, WHOLE, EmptyLog, LogError, Record, Window


def topic_folder(path: Path, topic: str) -> Path:
    """The folder of a topic's files: inside the archive's folder, or the folder itself. Raises `EmptyLog`."""
    for folder in (path / topic, path):
        if any(folder.glob("date=*")):
            return folder
    raise EmptyLog(f"{path} holds no archived events: neither {topic}/date=… nor date=…")


class ArchiveLog:
    """The files that `freshet archive` wrote of a topic, or a single file, as a log.

    The files are found when the log is opened. If files have been merged since then, the log reads on in the merged
    file. Records that were taken out with their user are not there, and count as no gap. `starts` holds the first
    offset of each partition.
    """

    def __init__(self, path: Path, window: Window = WHOLE) -> None:
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
        return self._window.narrow(f"{self.name}, partition {partition}", partition, low, (first, end))

    def _offset_at(self, segments: Sequence[Segment], ms: int) -> int:
        """The first offset with this record time or a later time, as a broker would find it; else the end."""
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
        """Count the records in the window, and look at every file of the window. Raises `LogError`."""
        first, end = self._ranges[partition]
        segments = [segment for segment in self._segments[partition] if segment.first < end and segment.last >= first]
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
                    within = run
                    if run[0].offset < position or run[-1].offset >= end:
                        within = [record for record in run if position <= record.offset < end]
                    if within:
                        yield within
            position = segment.last + 1

    def _at(self, partition: int, position: int) -> tuple[Segment, pq.ParquetFile]:
        """The file that holds an offset. If the file has just been merged, the merged file is looked for."""
        for _ in range(MERGES_AT_ONCE):
            segment = next((held for held in self._segments[partition] if held.last >= position), None)
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
        yield from read_records(file, RUN_RECORDS, groups)
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
