"""`freshet replay` of bad logs: one clear line each, a non-zero exit, and no output left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from freshet.archive.rows import EVENTS, SCHEMA_KEY
from freshet.cli import app
from freshet.ports import Record
from typer.testing import CliRunner

from deploy.local.parts import ROOT
from tests.unit.archive.archives import START, record, write

VALUE = EVENTS.get_field_index("value")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to work in, with an archive of thirty records in files of ten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(ROOT / "triton_models"))
    write(tmp_path / "archive", [record(number) for number in range(30)])
    return tmp_path


def files() -> list[Path]:
    """The archive's files, in order."""
    return sorted(Path("archive/events").glob("*/*.parquet"))


def refused(*arguments: str) -> str:
    """The line in which `freshet replay` refuses; its output folder is not there after."""
    result = CliRunner().invoke(app, ["replay", *arguments, "--out", "out"])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("freshet: ")
    assert not Path("out").exists()
    return line


def replayed(*arguments: str) -> dict[str, object]:
    """The summary of a replay that works."""
    result = CliRunner().invoke(app, ["replay", *arguments, "--fold-only", "--out", "out", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    raw, column = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0).column(VALUE)
    raw[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(raw)


def from_another_version(path: Path) -> None:
    table = pq.ParquetFile(path).read()
    pq.write_table(table.replace_schema_metadata({SCHEMA_KEY: "7"}), path)


def foreign(path: Path) -> None:
    pq.write_table(pa.table({"user": ["ada"]}), path)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut_short, "is cut off or damaged"),
        (emptied, "is cut off or damaged"),
        (flipped, "is cut off or damaged"),
        (from_another_version, "has archive schema 7, this freshet reads 1: use the one that wrote it"),
        (foreign, "was not written by `freshet archive`"),
    ],
)
@pytest.mark.parametrize("alone", [False, True], ids=["in the archive", "alone"])
def test_a_bad_file_is_named(harm: Callable[[Path], None], said: str, alone: bool) -> None:
    """A cut, damaged, foreign or outdated file is named, and offsets without the file are replayed."""
    harm(files()[1])
    line = refused(str(files()[1]) if alone else "archive", "--fold-only")
    assert said in line
    assert str(files()[1]) in line
    assert replayed("archive", "--offsets", "0:20-29")["records"] == 10


def test_a_file_under_another_name_is_named() -> None:
    """A file whose offsets do not fit its name is named."""
    files()[1].write_bytes(files()[0].read_bytes())
    assert f"{files()[1]} holds other offsets than its name says" in refused("archive", "--fold-only")


def test_a_gap_is_named() -> None:
    """Offsets whose file is missing are named, and the offsets that are there can be replayed."""
    files()[1].unlink()
    assert "partition 0: offsets 10 to 19 are missing: restore their files, or" in refused("archive", "--fold-only")
    assert replayed("archive", "--offsets", "0:20-")["records"] == 10


def test_a_partition_without_its_files_is_named() -> None:
    """A partition whose files are gone is named, and the other partition can be replayed alone."""
    write(Path("archive"), [record(number, "bob") for number in range(20)], partition=1)
    Path("archive/events/.lock-00002").touch()  # an archiver has it, and it holds nothing yet
    assert replayed("archive", "--offsets", "0:0-", "--offsets", "1:0-")["records"] == 50
    for path in Path("archive/events").glob("*/00001-*.parquet"):
        path.unlink()
    Path("out").rename("before")
    assert "archive/events, partition 1: all its files are missing: restore them, or" in refused("archive")
    assert replayed("archive", "--offsets", "0:0-")["records"] == 30


def test_offsets_before_the_archive_are_named() -> None:
    """Offsets before the archive's first offset are named."""
    files()[0].unlink()
    assert "offset 5 is not there, the first is 10" in refused("archive", "--fold-only", "--offsets", "0:5-29")
    assert replayed("archive")["records"] == 20


@pytest.mark.parametrize("name", ["nothing", "nothing/", "no.jsonl", "no.parquet"])
def test_a_missing_log_is_named(name: str) -> None:
    """A missing log of any kind is named."""
    assert f"{name} does not exist" in refused(name, "--fold-only")


def test_what_is_no_log_is_named() -> None:
    """A file of another kind is named."""
    Path("notes.txt").write_text("hello")
    assert "notes.txt is no log" in refused("notes.txt", "--fold-only")


def test_an_empty_log_is_named() -> None:
    """A log or window without records is named."""
    Path("empty.jsonl").write_text("\n\n")
    assert "empty.jsonl holds no events" in refused("empty.jsonl", "--fold-only")
    Path("folder").mkdir()
    assert "folder holds no archived events" in refused("folder", "--fold-only")
    Path("folder/events/date=2026-01-01").mkdir(parents=True)
    assert "holds no records in the window" in refused("folder", "--fold-only")
    assert "holds no records in the window" in refused("archive", "--fold-only", "--from", "2030-01-01")


@pytest.mark.parametrize(
    ("window", "said"),
    [
        (("--from", "2026-01-02", "--until", "2026-01-01"), "the window is empty: it ends before it begins"),
        (("--from", "2026-01-01", "--until", "2026-01-01"), "the window is empty: it ends before it begins"),
        (("--offsets", "0:9-5"), "the window is empty: partition 0 ends at offset 5, before 9"),
        (("--offsets", "7:0-5"), "has no partition 7"),
        (("--offsets", "0:5"), "--offsets is PARTITION:FIRST-LAST"),
        (("--from", "yesterday"), "--from is a time such as"),
    ],
)
def test_a_bad_window_is_named(window: tuple[str, str], said: str) -> None:
    """A bad window is refused before anything is read or written."""
    assert said in refused("archive", "--fold-only", *window)


def test_an_unknown_model_version_is_named() -> None:
    """An unknown version is named with the folder of versions."""
    line = refused("archive", "--model", "99")
    assert "99" in line
    assert "triton_models" in line


def test_an_output_that_exists_is_left_alone() -> None:
    """A replay refuses an output that exists and writes nothing over it."""
    out = Path("out")
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    result = CliRunner().invoke(app, ["replay", "archive", "--fold-only", "--out", "out"])
    assert result.exit_code == 1
    assert "out is not empty: choose another --out" in result.stderr
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    replayed("archive")
    again = CliRunner().invoke(app, ["replay", "archive", "--fold-only", "--out", "out"])
    assert again.exit_code == 1
    assert "out holds a complete replay: choose another --out" in again.stderr


def test_what_was_cut_off_before_its_first_checkpoint_is_begun_anew() -> None:
    """`--resume` begins a replay anew that was cut off before its first checkpoint."""
    script = (
        "import os, signal, freshet.replay.checkpoint as run\n"
        "run.Folder.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from freshet.cli import app\n"
        "app(['replay', 'archive', '--fold-only', '--features', '--out', 'out'])\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    Path("out/replay.json").unlink()
    assert list(Path("out/features").iterdir())
    result = CliRunner().invoke(app, ["replay", "archive", "--fold-only", "--features", "--out", "out"])
    assert result.exit_code == 1
    assert "cut off before its first checkpoint: --resume begins it anew" in result.stderr
    again = replayed("archive", "--features", "--resume")
    assert again["counts"] == {"records": 30, "folded": 30}
    assert len(pq.read_table("out/features")) == 30
    assert sorted(path.name for path in Path("out").iterdir()) == ["features", "replay.json"]


def test_poison_in_an_archive_is_dead_lettered() -> None:
    """Each archived record that is no event is a dead letter with reason and origin, and others are folded."""
    poison = [
        None,
        b"",
        b"{",
        b"[]",
        b'{"event_id":"x","user_id":"ada","type":"hover","ts":890000000000,"item_id":"1"}',
    ]
    write(Path("archive"), [Record(30 + number, START + 30_000, b"ada", value) for number, value in enumerate(poison)])
    assert replayed("archive")["counts"] == {"records": 35, "folded": 30, "dead letters": 5}
    [part] = Path("out/dead_letters").glob("*.parquet")
    letters = [dict(row["headers"]) for row in pq.ParquetFile(part).read().to_pylist()]
    assert [letter["reason"] for letter in letters] == [b"empty", b"empty", b"not_json", b"invalid", b"unknown_type"]
    assert [int(letter["origin_offset"]) for letter in letters] == [30, 31, 32, 33, 34]
    assert {letter["origin_topic"] for letter in letters} == {b"events"}
