"""An archive read as a topic: windows, start offsets, and files that change during a read."""

from __future__ import annotations

from pathlib import Path

import pytest
from freshet.archive.merging import MERGE_FILES
from freshet.logs.source import open_log
from freshet.ports import EmptyLog, LogError, Window
from freshet.settings import Settings

from tests.unit.archive.archives import FILE_SIZE, START, read, record, write


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two partitions of a hundred and of thirty records, in files of ten."""
    write(tmp_path, [record(number) for number in range(100)])
    write(tmp_path, [record(number, "ann") for number in range(30)], partition=1)
    return tmp_path


def offsets(folder: Path, window: Window) -> dict[int, list[int]]:
    """The offsets in a window, by partition."""
    return {partition: [record.offset for record in records] for partition, records in read(folder, window).items()}


def test_the_total_is_known(archive: Path) -> None:
    """The reader gives the total before it reads, windows included."""
    assert open_log(str(archive), Settings()).total == 130
    assert open_log(str(archive), Settings(), Window(None, None, {0: (15, 44)})).total == 30
    assert open_log(str(archive), Settings(), Window(START + 95_000, None, {})).total == 5


def test_windows_of_offsets(archive: Path) -> None:
    """Both ends of an offset window count, and partitions that the window does not name are left out."""
    assert offsets(archive, Window(None, None, {0: (15, 31)})) == {0: list(range(15, 32)), 1: []}
    assert offsets(archive, Window(None, None, {1: (25, None)})) == {0: [], 1: list(range(25, 30))}
    assert offsets(archive, Window(None, None, {0: (98, 500)})) == {0: [98, 99], 1: []}


def test_windows_of_time(archive: Path) -> None:
    """A time window takes records from the first one at its start up to the first one at its end."""
    window = Window(START + 12_000, START + 25_000, {})
    assert offsets(archive, window) == {0: list(range(12, 25)), 1: list(range(12, 25))}


def test_windows_of_time_over_disorder(tmp_path: Path) -> None:
    """Over disordered times a window begins where its time is first reached, as at the broker."""
    day = 86_400_000
    times = [START, START + day, START + 10, START + day + 5, START + 2 * day, START + day + 7]
    write(tmp_path, [record(number, ts=ts) for number, ts in enumerate(times)], per_file=2)
    assert offsets(tmp_path, Window(START + day, None, {})) == {0: [1, 2, 3, 4, 5]}
    assert offsets(tmp_path, Window(START + day + 1, START + 2 * day, {})) == {0: [3]}


@pytest.mark.parametrize("start", [0, 1, 9, 10, 55, 99, 100])
def test_a_read_starts_at_any_offset(archive: Path, start: int) -> None:
    """The reader starts at any offset."""
    assert [record.offset for record in read(archive, start=start)[0]] == list(range(start, 100))


def test_one_file_is_a_log(archive: Path) -> None:
    """A single archive file is a log with its partition and offsets."""
    [file] = (archive / "events").glob("*/00001-*10-*.parquet")
    assert read(file) == {1: [record(number, "ann") for number in range(10, 20)]}


def test_the_topics_own_folder_is_a_log(archive: Path) -> None:
    """The folder of a topic of any name is a log."""
    renamed = (archive / "events").rename(archive / "clicks")
    assert read(renamed) == read(renamed)
    assert len(read(renamed)[0]) == 100
    with pytest.raises(EmptyLog, match="holds no archived events"):
        read(archive)


def test_offsets_with_holes(tmp_path: Path) -> None:
    """Offsets that the topic itself lacks are no gap."""
    kept = [record(number) for number in (0, 1, 4, 5, 9, 17, 18)]
    chain = write(tmp_path, kept[:2], per_file=2)
    for part in (kept[2:5], kept[5:]):
        write(tmp_path, part, per_file=3)
        [segment] = chain.segments()[-1:]
        first = chain.segments()[-2].last + 1
        segment.path.rename(segment.path.with_name(segment.path.name.replace(f"{segment.first:020d}", f"{first:020d}")))
    assert read(tmp_path) == {0: kept}


def test_files_merged_during_a_read(archive: Path) -> None:
    """The reader continues in the merged file at its own offset."""
    log = open_log(str(archive), Settings())
    runs = log.read(0)
    found = [record.offset for record in next(runs)]
    [chain] = [write(archive, [])]
    assert chain.merge(FILE_SIZE) >= MERGE_FILES
    found += [record.offset for run in runs for record in run]
    assert found == list(range(100))


def test_a_file_that_disappears_during_a_read(archive: Path) -> None:
    """A file that disappears during a read is a one-line error."""
    log = open_log(str(archive), Settings())
    runs = log.read(0)
    next(runs)
    [file] = (archive / "events").glob("*/00000-*50-*.parquet")
    file.unlink()
    with pytest.raises(LogError, match="offsets 50 to 50 are missing"):
        list(runs)
