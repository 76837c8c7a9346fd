"""The archive's files hold each row exactly once, wherever a process ends."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from freshet.archive.chain import DAY_MS, ArchiveError, Chain, Superseded
from freshet.archive.merging import MERGE_FILES
from freshet.archive.rows import item_rows
from freshet.core.catalogue import CatalogueItem, encode_item
from freshet.ports import Record

from tests.unit.archive.archives import FILE_SIZE, START, appender, read, record, write


class Killed(BaseException):
    """The process ends here: nothing that follows is done."""


def steps(monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> Callable[[], int]:
    """Count the changes of the disk, and end the process before one of them; returns how many there were."""
    count = 0

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def change(*arguments: object, **keywords: object) -> object:
            nonlocal count
            if count == kill_at:
                raise Killed
            count += 1
            return call(*arguments, **keywords)

        return change

    for name in ("rename", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    return lambda: count


def offsets(folder: Path) -> list[int]:
    """The offsets that a reader finds in partition 0."""
    return [record.offset for record in read(folder)[0]]


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    """The archive returns keys, values and headers unchanged, poison and empty values included."""
    records = [
        record(0),
        Record(1, START, None, None, (("a", b"1"), ("a", None), ("é", b"\xff"))),
        Record(2, START, b"\xff", b"", ()),
        Record(3, START + 5, b"ada", b"{not json", ()),
        record(4, "ann"),
    ]
    write(tmp_path, records)
    assert read(tmp_path) == {0: records}


def test_outsiders_read_the_columns(tmp_path: Path) -> None:
    """Any Parquet reader finds decoded events with their date, and the reason of each record that is none."""
    good, bad = record(0), Record(1, START + 1, b"ada", b"{")
    write(tmp_path, [good, bad])
    first, second = pa.dataset.dataset(tmp_path / "events", partitioning="hive").to_table().to_pylist()
    assert (first["user_id"], first["type"], first["item_id"], first["bad_reason"]) == ("ada", "view", "0", None)
    assert first["event_time"].timestamp() * 1000 == START
    assert first["date"] == "1998-03-15"
    assert (second["partition"], second["offset"], second["value"]) == (0, 1, b"{")
    assert (second["user_id"], second["bad_reason"]) == (None, "not_json")


def test_items_are_decoded_too() -> None:
    """Catalogue fields stand beside the raw record, and a tombstone has no fields."""
    item = CatalogueItem("i1", title="Alien", price=9.5)
    table = item_rows(0, [Record(0, START, b"i1", encode_item(item)), Record(1, START, b"i1", None)])
    assert table["title"].to_pylist() == ["Alien", None]
    assert table["price"].to_pylist() == [9.5, None]
    assert table["key"].to_pylist() == [b"i1", b"i1"]


@pytest.mark.parametrize("seed", range(8))
def test_restarts_neither_lose_nor_double(tmp_path: Path, seed: int) -> None:
    """After cuts, kills and starts in any order, the files hold each offset once."""
    rng = random.Random(seed)
    chain = Chain(tmp_path / "events", 0)
    archiver = appender(chain)
    for _ in range(120):
        match rng.choices(("take", "cut", "kill", "merge"), (20, 3, 1, 1))[0]:
            case "take":
                each = record(archiver.next)
                archiver.take(each.offset, each.timestamp, 100, each)
            case "cut":
                archiver.cut()
            case "merge":
                chain.merge(FILE_SIZE)
            case "kill":
                chain.tidy()
                archiver = appender(chain)
    archiver.cut()
    assert offsets(tmp_path) == list(range(archiver.next))
    assert archiver.end == archiver.next == chain.end()


def test_of_two_writers_one_goes_on(tmp_path: Path) -> None:
    """An archiver that lost its partition unaware cannot add rows that another archiver has written."""
    chain = write(tmp_path, [record(number) for number in range(20)], per_file=10)
    zombie, heir = appender(chain), appender(chain)
    for number in range(20, 25):
        each = record(number)
        zombie.take(number, each.timestamp, 100, each)
    for number in range(20, 20 + MERGE_FILES):
        each = record(number)
        heir.take(number, each.timestamp, 100, each)
        heir.cut()
    assert chain.merge(FILE_SIZE) >= MERGE_FILES
    with pytest.raises(Superseded):
        zombie.cut()
    assert offsets(tmp_path) == list(range(20 + MERGE_FILES))


def test_a_file_tidied_away_is_not_added(tmp_path: Path) -> None:
    """A writer whose unfinished file the next owner removed does not add the file."""
    chain = Chain(tmp_path / "events", 0)
    slow = appender(chain)
    slow.take(0, START, 100, record(0))
    slow._flush()
    chain.tidy()
    with pytest.raises((Superseded, FileNotFoundError)):
        slow.cut()
    assert chain.segments() == []


def kills(action: Callable[[Path], object], prepare: Callable[[Path], object], folder: Path) -> Iterator[Path]:
    """An archive on which `action` was cut off before each of its changes of the disk in turn."""
    with pytest.MonkeyPatch.context() as patch:
        whole = folder / "whole"
        prepare(whole)
        count = steps(patch, None)
        action(whole)
        total = count()
    assert total >= 3
    for kill_at in range(total):
        copy = folder / f"cut-{kill_at}"
        prepare(copy)
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, kill_at)
            with pytest.raises(Killed):
                action(copy)
        yield copy


def test_an_addition_cut_off_anywhere(tmp_path: Path) -> None:
    """An addition cut off at any disk change leaves rows whole or absent, and the next archiver completes them."""

    def prepare(folder: Path) -> None:
        write(folder, [record(number) for number in range(10)])

    def add(folder: Path) -> None:
        write(folder, [record(number) for number in range(10, 20)])

    for folder in kills(add, prepare, tmp_path):
        chain = Chain(folder / "events", 0)
        assert offsets(folder) in (list(range(10)), list(range(20)))
        chain.tidy()
        assert not list((folder / "events" / ".partial").iterdir())
        write(folder, [record(number) for number in range(chain.end(), 30)])
        assert offsets(folder) == list(range(30))


def test_a_merge_cut_off_anywhere(tmp_path: Path) -> None:
    """A merge cut off at any disk change leaves every row once, and the next archiver merges again."""
    count = MERGE_FILES * 5

    def prepare(folder: Path) -> None:
        write(folder, [record(number) for number in range(count)], per_file=5)

    def merge(folder: Path) -> int:
        return Chain(folder / "events", 0).merge(FILE_SIZE)

    for folder in kills(merge, prepare, tmp_path):
        assert offsets(folder) == list(range(count))
        chain = Chain(folder / "events", 0)
        chain.tidy()
        chain.merge(FILE_SIZE)
        assert len(list((folder / "events").glob("*/*.parquet"))) == 1
        assert offsets(folder) == list(range(count))


def test_of_two_mergers_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge leaves alone what another process has merged meanwhile."""
    chain = write(tmp_path, [record(number) for number in range(MERGE_FILES * 5)], per_file=5)
    rename, raced = Path.rename, []

    def race(self: Path, target: Path) -> Path:
        if not raced:
            raced.append(target)
            self.write_bytes(self.read_bytes())
        return rename(self, target)

    stale = chain.segments()
    write(tmp_path, [record(number) for number in range(MERGE_FILES * 5, MERGE_FILES * 5 + 5)])
    assert chain.merge(FILE_SIZE) > MERGE_FILES
    monkeypatch.setattr(Path, "rename", race)
    monkeypatch.setattr("freshet.archive.chain.write_merged", lambda _paths, partial: partial.touch())
    chain._merge(stale)
    assert not raced
    assert offsets(tmp_path) == list(range(MERGE_FILES * 5 + 5))


def test_large_files_are_left_alone(tmp_path: Path) -> None:
    """A merge makes no file larger than the requested size."""
    chain = write(tmp_path, [record(number) for number in range(300)], per_file=10)
    limit = chain.segments()[0].size * 12
    while chain.merge(limit):
        pass
    sizes = [segment.size for segment in chain.segments()]
    assert max(sizes) <= limit
    assert len(sizes) < 15
    assert offsets(tmp_path) == list(range(300))


def test_dates_never_go_back(tmp_path: Path) -> None:
    """A late record lies in the archive's current day, and each day has files of its own."""
    day = START - START % DAY_MS
    times = [day + DAY_MS - 1, day + DAY_MS, day + 5, day + DAY_MS + 7]
    write(tmp_path, [record(number, ts=ts) for number, ts in enumerate(times)])
    table = pa.dataset.dataset(tmp_path / "events", partitioning="hive").to_table(columns=["date", "offset"])
    dates = dict(zip(table["offset"].to_pylist(), table["date"].to_pylist(), strict=True))
    assert dates == {0: "1998-03-15", 1: "1998-03-16", 2: "1998-03-16", 3: "1998-03-16"}
    assert offsets(tmp_path) == [0, 1, 2, 3]


def test_a_full_row_group_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds at most a row group, by rows and by bytes, and a full file is finished."""
    monkeypatch.setattr("freshet.archive.appender.ROW_GROUP", 50)
    monkeypatch.setattr("freshet.archive.appender.ROW_GROUP_BYTES", 20_000)
    chain = Chain(tmp_path / "events", 0)
    archiver = appender(chain, file_size=30_000)
    for number in range(400):
        each = record(number)
        archiver.take(number, each.timestamp, 100 if number < 200 else 1000, each)
        assert len(archiver._rows) < (50 if number < 200 else 20)
    archiver.cut()
    segments = chain.segments()
    assert len(segments) > 1
    with pq.ParquetFile(segments[0].path) as file:
        assert file.metadata.row_group(0).num_rows == 50
    assert offsets(tmp_path) == list(range(400))


def test_files_that_overlap_are_refused(tmp_path: Path) -> None:
    """A folder with two overlapping chains is refused."""
    chain = write(tmp_path, [record(number) for number in range(20)], per_file=10)
    first = chain.segments()[0].path
    first.rename(first.with_name(first.name.replace(f"{9:020d}", f"{14:020d}")))
    with pytest.raises(ArchiveError, match="overlap"):
        chain.segments()
