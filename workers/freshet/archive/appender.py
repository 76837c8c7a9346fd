"""Carries a chain on: rows become row groups, row groups become files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from freshet.archive.chain import DAY_MS, Chain
from freshet.archive.merging import ROW_GROUP, WRITTEN
from freshet.files import sync

ROW_GROUP_BYTES = 16 << 20
"""Most bytes of records held in memory as one row group."""

T = TypeVar("T")


class _Writer:
    """A file on its way into a chain: written aside group by group, added whole."""

    def __init__(self, chain: Chain, schema: pa.Schema) -> None:
        self._chain = chain
        self._schema = schema
        self._partial = chain.partial()
        self._writer = pq.ParquetWriter(self._partial, self._schema, **WRITTEN)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._partial.stat().st_size

    def write(self, table: pa.Table) -> None:
        """Write a row group."""
        self._writer.write_table(table, ROW_GROUP)

    def add(self, first: int, last: int, day: int, *, expected: int) -> None:
        """Finish the file and add it to the chain. Raises `Superseded`."""
        self._writer.close()
        sync(self._partial)
        self._chain.add(self._partial, first, last, day, expected=expected)

    def abandon(self) -> None:
        """Leave everything out of the chain."""
        self._writer.close()
        self._partial.unlink(missing_ok=True)


class Appender(Generic[T]):
    """Carries a chain on: rows become row groups, and row groups become files of about `file_size` bytes.

    `encode` makes a row group of the rows that were taken. `added` is called with the number of offsets that each new
    file covers. `start` is the offset of the first record; it is the end of the chain, or later if records are gone.
    Everything before `next` has been taken, and everything before `end` is in the chain.
    """

    def __init__(
        self,
        chain: Chain,
        encode: Callable[[Sequence[T]], pa.Table],
        file_size: int,
        added: Callable[[int], None],
        start: int | None = None,
    ) -> None:
        self._chain = chain
        self._encode = encode
        self._added = added
        self._file_size = file_size
        self.end = chain.end()
        self._day = chain.day()
        self._first = self.next = self.end if start is None else start
        self._rows: list[T] = []
        self._bytes = 0
        self._writer: _Writer | None = None

    @property
    def is_empty(self) -> bool:
        """Whether everything taken is in the chain."""
        return self.next == self._first

    def take(self, offset: int, timestamp: int, size: int, row: T | None) -> None:
        """Cover the next offset, whose record time is `timestamp` (ms).

        The offset may have a row of about `size` bytes. Raises `Superseded`.
        """
        day = timestamp // DAY_MS
        if day > self._day:
            self.cut()
            self._day = day
        self.next = offset + 1
        if row is not None:
            self._rows.append(row)
            self._bytes += size
            if len(self._rows) >= ROW_GROUP or self._bytes >= ROW_GROUP_BYTES:
                self._flush()

    def cut(self) -> None:
        """Bring everything taken into the chain, as a file. Raises `Superseded`."""
        if self.is_empty:
            return
        self._written().add(self._first, self.next - 1, self._day, expected=self.end)
        count = self.next - self._first
        self._writer = None
        self._first = self.end = self.next
        self._added(count)

    def abandon(self) -> None:
        """Leave out what is not in the chain yet."""
        self._rows = []
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def _flush(self) -> None:
        if self._written().size >= self._file_size:
            self.cut()

    def _written(self) -> _Writer:
        """The file aside, with every row in it."""
        if self._rows or self._writer is None:
            table = self._encode(self._rows)
            self._writer = self._writer or _Writer(self._chain, table.schema)
            self._writer.write(table)
            self._rows, self._bytes = [], 0
        return self._writer
