"""Which small files of a chain are merged, and how files are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from freshet.files import sync

ROW_GROUP = 16_384
"""Most rows written, and held in memory, as one row group."""
MERGE_FILES = 8
"""So many small files in a row are merged."""
WRITTEN: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How every file of an archive is written."""


class Segment(NamedTuple):
    """One file of a partition's chain: its offsets, both included, and its size."""

    path: Path
    first: int
    last: int
    size: int


def small_files(segments: Sequence[Segment], target_size: int) -> Sequence[Segment]:
    """The newest files in a row that are worth merging. Fewer than `MERGE_FILES` files are never worth it."""
    for end in range(len(segments), MERGE_FILES - 1, -1):
        first = _first_small(segments[:end], target_size)
        if end - first >= MERGE_FILES:
            return segments[first:end]
    return []


def _first_small(segments: Sequence[Segment], target_size: int) -> int:
    """How far back the files before the end are worth merging into one."""
    small = target_size // MERGE_FILES
    total, first = 0, len(segments)
    while first:
        size = segments[first - 1].size
        outweighs = size > total and (len(segments) - first >= MERGE_FILES or size > small)
        if outweighs or total + size > target_size:
            break
        total += size
        first -= 1
    return first


def write_merged(paths: Sequence[Path], partial: Path) -> None:
    """Write the rows of several files to one file, a row group at a time."""
    schema = pq.read_schema(paths[0])
    with pq.ParquetWriter(partial, schema, **WRITTEN) as writer:
        gathered: list[pa.RecordBatch] = []
        rows = 0
        for path in paths:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(ROW_GROUP):
                    gathered.append(batch)
                    rows += len(batch)
                    if rows >= ROW_GROUP:
                        writer.write_table(pa.Table.from_batches(gathered, schema), ROW_GROUP)
                        gathered, rows = [], 0
        if gathered:
            writer.write_table(pa.Table.from_batches(gathered, schema), ROW_GROUP)
    sync(partial)
