"""A Kafka topic as Parquet files, each row exactly once: the layout, and the only ways in which it changes.

    ARCHIVE/<topic>/date=2026-11-25/00000-00000000000000000000-00000000000000001999.parquet

A file's name is its partition and the offsets it covers, both included. The
files of a partition form a chain: each begins where the one before it ends.
Where the archive goes on is read off the chain and stored nowhere else, so
what is written and how far it goes cannot disagree.

A file is written aside, synced, and renamed into the chain under the
partition's lock, and only where the chain still ends where the file begins.
So a writer that was cut off or has lost its partition can neither lose nor
double a row. Merging renames the merged file in first and removes its parts
after; until they are gone the widest file at an offset counts.

What is in a file stays as it is, with one exception: records of a user who was
erased are taken out of all files up to the erasure (`Chain.erase`), and leave
rows that hold their place. Which erasures are under way is noted beside the
chain before the file that brings them counts, so none is forgotten.

The date is that of the broker's record time, in UTC; it never goes back within
a partition. It needs a POSIX file system with locks.
"""

from __future__ import annotations

import fcntl
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from freshet.archive.merging import ROW_GROUP, WRITTEN, Segment, small_files, write_merged
from freshet.errors import FreshetError
from freshet.files import sync

DAY_MS = 86_400_000

Erasure = Callable[[pa.Table, Mapping[bytes, int]], pa.Table]

_NAME = re.compile(r"(\d{5,})-(\d{20})-(\d{20})\.parquet")
_PARTIAL = ".partial"
_LOCK = ".lock-"
_HAS_FILES = b"has files"
"""What the lock of a partition holds once there is a file."""


class ArchiveError(FreshetError):
    """The archive cannot be read or written; the message says why and what to do."""


class Superseded(ArchiveError):
    """Another process has carried the chain on, so that the new file no longer begins where the chain ends."""


class Chain:
    """The files of one partition of one archived topic."""

    def __init__(self, folder: Path, partition: int) -> None:
        self.folder = folder
        self.partition = partition

    def segments(self) -> list[Segment]:
        """The files that count, in offset order."""
        return counted(self._files())

    def end(self) -> int:
        """The offset to go on from."""
        for date in reversed(_dates(self.folder)):
            if found := self._files(date):
                return max(segment.last for segment in found) + 1
        return 0

    def day(self) -> int:
        """The newest date there is, in days since the epoch."""
        for date in reversed(_dates(self.folder)):
            if self._files(date):
                moment = datetime.fromisoformat(date.removeprefix("date=")).replace(tzinfo=UTC)
                return int(moment.timestamp() * 1000) // DAY_MS
        return 0

    def tidy(self) -> None:
        """Remove what a process left behind that was cut off: unfinished files, and parts of merged files."""
        with self._locked():
            for path in self._partials():
                path.unlink(missing_ok=True)
            files = self._files()
            for segment in set(files) - set(counted(files)):
                segment.path.unlink(missing_ok=True)

    def partial(self) -> Path:
        """A new name to write under, aside."""
        aside = self.folder / _PARTIAL
        aside.mkdir(parents=True, exist_ok=True)
        return aside / f"{self.partition:05d}-{uuid.uuid4().hex}"

    def add(self, partial: Path, first: int, last: int, day: int, *, expected: int) -> None:
        """Make a finished file the next of the chain. Raises `Superseded` where the chain no longer ends at `expected`.

        `first` is `expected`, or later where the records between are gone.
        """
        target = self.folder / date_name(day) / _file_name(self.partition, first, last)
        _make_folder(target.parent)
        with self._locked():
            if not partial.exists() or self.end() != expected:
                raise Superseded(
                    f"{self.folder}, partition {self.partition}: another process has written from offset {expected} on"
                )
            partial.rename(target)
            sync(target.parent)
            self._lock().write_bytes(_HAS_FILES)

    def is_lost(self) -> bool:
        """Say whether there were files and none is left. Archives from before this was noted always answer no."""
        try:
            return bool(self._lock().read_bytes()) and not self._files()
        except FileNotFoundError:
            return False

    def merge(self, target_size: int) -> int:
        """Merge the newest small files of one date into a file of at most `target_size` bytes.

        Files are merged as soon as there are `MERGE_FILES` of them. Older files are merged with them if none of the
        older files outweighs all files behind it. No row is therefore written again very often. Returns how many
        files were merged.
        """
        for date in reversed(_dates(self.folder)[-2:]):  # a day's last files may come in after midnight
            if parts := small_files(counted(self._files(date)), target_size):
                self._merge(parts)
                return len(parts)
        return 0

    def _merge(self, parts: Sequence[Segment]) -> None:
        partial = self.partial()
        try:
            write_merged([part.path for part in parts], partial)
            target = parts[0].path.with_name(_file_name(self.partition, parts[0].first, parts[-1].last))
            with self._locked():
                if not partial.exists() or not all(part.path.exists() for part in parts):
                    return  # another process has merged them, or tidied this one's file away
                partial.rename(target)
                sync(target.parent)
                for part in parts:
                    part.path.unlink()
        finally:
            partial.unlink(missing_ok=True)

    def rewrite(self, segment: Segment, change: Callable[[pa.Table], pa.Table]) -> None:
        """Put other rows under a file's name in one step. `change` is called with one row group at a time."""
        partial = self.partial()
        try:
            with (
                pq.ParquetFile(segment.path, page_checksum_verification=True) as file,
                pq.ParquetWriter(partial, file.schema_arrow, **WRITTEN) as writer,
            ):
                for group in range(file.num_row_groups):
                    writer.write_table(change(file.read_row_group(group)), ROW_GROUP)
            sync(partial)
            with self._locked():
                if segment.path.exists():  # else another process has merged it
                    partial.rename(segment.path)
                    sync(segment.path.parent)
        finally:
            partial.unlink(missing_ok=True)

    def begin_erasing(self, users: Mapping[bytes, int]) -> None:
        """Note durably whose records are to be taken out: by key, with the offset up to which records go."""
        self._note_erasing({**self._erasing(), **users})

    def erase(self, holds: Callable[[pa.Table, Mapping[bytes, int]], bool], without: Erasure) -> int:
        """Take out the records that were noted and are in the chain by now. Returns how many files were rewritten.

        `holds` says whether rows of these users are in a file's columns `key` and `offset`. `without` leaves the
        users out of a row group.
        """
        noted, end, count = self._erasing(), self.end(), 0
        users = {key: offset for key, offset in noted.items() if offset < end}
        if not users:
            return 0
        last = max(users.values())
        for segment in self.segments():
            if segment.first > last:
                continue
            with pq.ParquetFile(segment.path, page_checksum_verification=True) as file:
                found = holds(file.read(["key", "offset"]), users)
            if found:
                self.rewrite(segment, lambda table: without(table, users))
                count += 1
        self._note_erasing({key: offset for key, offset in noted.items() if key not in users})
        return count

    def _erasing(self) -> dict[bytes, int]:
        try:
            return msgspec.msgpack.decode(self._note().read_bytes(), type=dict[bytes, int])
        except FileNotFoundError:
            return {}

    def _note_erasing(self, users: Mapping[bytes, int]) -> None:
        note = self._note()
        if users:
            partial = self.partial()
            partial.write_bytes(msgspec.msgpack.encode(users))
            sync(partial)
            partial.rename(note)
        else:
            note.unlink(missing_ok=True)
        sync(self.folder)

    def _note(self) -> Path:
        return self.folder / f".erasing-{self.partition:05d}"

    def _files(self, date: str = "date=*") -> list[Segment]:
        found = []
        for path in self.folder.glob(f"{date}/{self.partition:05d}-*.parquet"):
            if match := _NAME.fullmatch(path.name):
                try:
                    size = path.stat().st_size
                except FileNotFoundError:  # merged since it was listed
                    continue
                found.append(Segment(path, int(match[2]), int(match[3]), size))
        return found

    def _partials(self) -> Iterable[Path]:
        return (self.folder / _PARTIAL).glob(f"{self.partition:05d}-*")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock().open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _lock(self) -> Path:
        return self.folder / f"{_LOCK}{self.partition:05d}"


def chains(folder: Path) -> list[Chain]:
    """The chains of an archived topic's folder."""
    numbers = {int(match[1]) for path in folder.glob("date=*/*.parquet") if (match := _NAME.fullmatch(path.name))}
    return [Chain(folder, number) for number in sorted(numbers)]


def lost(folder: Path) -> list[int]:
    """The partitions of an archived topic's folder whose files are all gone."""
    numbers = sorted(int(path.name.removeprefix(_LOCK)) for path in folder.glob(f"{_LOCK}*"))
    return [number for number in numbers if Chain(folder, number).is_lost()]


def counted(files: Iterable[Segment]) -> list[Segment]:
    """The files that count: the widest file at each offset.

    Parts of a merged file lie within the merged file. Raises `ArchiveError` if two files overlap in any other way.
    """
    found: list[Segment] = []
    for segment in sorted(files, key=lambda segment: (segment.first, -segment.last)):
        if found and segment.first <= found[-1].last:
            if segment.last > found[-1].last:
                raise ArchiveError(f"{segment.path} and {found[-1].path} overlap: remove the one that does not belong")
            continue
        found.append(segment)
    return found


def day_of(timestamp_ms: int) -> int:
    """The UTC date of a record time, in days since the epoch."""
    return timestamp_ms // DAY_MS


def date_name(day: int) -> str:
    """The folder of a date; names sort as their dates do."""
    return f"date={datetime.fromtimestamp(day * DAY_MS / 1000, UTC).date()}"


def _dates(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("date=*"))


def _file_name(partition: int, first: int, last: int) -> str:
    return f"{partition:05d}-{first:020d}-{last:020d}.parquet"


def _make_folder(path: Path) -> None:
    """Make a folder whose entry in its parent outlives a power cut."""
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)
