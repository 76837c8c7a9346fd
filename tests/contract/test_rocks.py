"""A partition's RocksDB files: rebuilt where they are damaged, kept where they are held or the disk is full."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from freshet.core.events import Unreadable
from freshet.core.state import empty_state, encode_state
from freshet.ports import Record
from freshet.settings import Settings

USERS = [f"user-{number}".encode() for number in range(4000)]
Open = Callable[[], Any]


class Ended(BaseException):
    """The worker ended; the message is its last word."""


@pytest.fixture
def open_store(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Opens the store as a fresh worker would; the end of the worker is an exception."""
    monkeypatch.setattr(sys, "argv", ["freshet"])  # importing faust reads the command line
    from freshet.adapters import state_table  # noqa: PLC0415
    from freshet.serving.app import WorkerApp  # noqa: PLC0415

    def end(error: BaseException) -> None:
        raise Ended(str(error))

    monkeypatch.setattr(state_table, "fail_fast", end)
    opened: list[Any] = []

    def close() -> None:
        for store in opened:
            for database in store._dbs.values():
                database.close()
        opened.clear()

    def open_anew() -> Any:
        close()
        app = WorkerApp(Settings(group="group", data_dir=str(data_dir)), 2, None)  # type: ignore[arg-type]
        opened.append(app.table.data)
        return opened[-1]

    yield open_anew
    close()


@pytest.fixture
def folder(open_store: Open) -> Path:
    """The folder of partition 0 as a killed worker leaves it: with tables on disk, and what came last in the log."""
    store = open_store()
    for start in range(0, len(USERS), 400):
        store.write_states(
            0, dict.fromkeys(USERS[start : start + 400], encode_state(empty_state(0)) + os.urandom(90)), 7
        )
    store._dbs[0].flush()
    store.write_states(0, {b"last": encode_state(empty_state(0))}, 8)
    path: Path = store.partition_path(0)
    left = shutil.copytree(path, path.with_suffix(".left"))
    store._dbs.pop(0).close()
    shutil.rmtree(path)
    return left.rename(path)


def largest_table(folder: Path) -> Path:
    """The table with the states."""
    return max(folder.glob("*.sst"), key=lambda file: file.stat().st_size)


def flip(file: Path, start: int, end: int) -> None:
    """Flip the bits between two places."""
    content = bytearray(file.read_bytes())
    content[start:end] = bytes(byte ^ 0xFF for byte in content[start:end])
    file.write_bytes(content)


def flip_data(folder: Path) -> None:
    """Flip bits in the middle of the data blocks: files that open well."""
    table = largest_table(folder)
    flip(table, table.stat().st_size // 3, table.stat().st_size // 3 + 20)


def flip_index(folder: Path) -> None:
    """Flip bits in the blocks behind the data: what RocksDB says of them names a block."""
    table = largest_table(folder)
    flip(table, table.stat().st_size - 2000, table.stat().st_size - 100)


HARMS: dict[str, Callable[[Path], object]] = {
    "no CURRENT": lambda folder: (folder / "CURRENT").unlink(),
    "garbage in a table": lambda folder: largest_table(folder).write_bytes(b"garbage" * 99),
    "no table": lambda folder: largest_table(folder).unlink(),
    "flipped index": flip_index,
    "garbage in the manifest": lambda folder: next(folder.glob("MANIFEST-*")).write_bytes(b"garbage" * 99),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_does_not_open_is_made_anew(open_store: Open, folder: Path, harm: str) -> None:
    """Files that RocksDB does not open are replaced by empty files."""
    HARMS[harm](folder)
    store = open_store()
    assert store.read_states(0, [USERS[0], store.offset_key]) == [None, None]
    store.write_states(0, {USERS[0]: b"new"}, 9)
    assert open_store().read_states(0, [USERS[0], store.offset_key]) == [b"new", b"9"]


def test_the_word_block_is_no_lock(open_store: Open, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An error that names a block is damage and no lock, so the files are rebuilt."""
    flip_index(folder)
    open_store().read_states(0, USERS[:1])
    assert "block" in caplog.records[-1].__dict__["why"]


def test_a_torn_log_keeps_what_is_whole(open_store: Open, folder: Path) -> None:
    """A torn write is absent, and the offset is that of the last whole write."""
    log = max(folder.glob("*.log"))
    log.write_bytes(log.read_bytes()[:-3])
    store = open_store()
    assert store.read_states(0, [b"last", store.offset_key]) == [None, b"7"]
    assert None not in store.read_states(0, USERS)


def test_what_opens_and_cannot_be_read_is_rebuilt_by_the_next_start(open_store: Open, folder: Path) -> None:
    """Flipped bits fail a read with a reason, and the next worker begins with empty files."""
    from freshet.adapters.state_table import StateFilesError  # noqa: PLC0415

    flip_data(folder)
    store = open_store()
    with pytest.raises(StateFilesError, match=r"partition 0 .* are damaged .* the next start rebuilds them"):
        store.read_states(0, USERS)
    store = open_store()
    assert store.read_states(0, [USERS[0], store.offset_key]) == [None, None]
    store.write_states(0, {USERS[0]: b"new"}, 9)
    assert open_store().read_states(0, USERS[:1]) == [b"new"]


def test_flipped_bits_end_a_recovery_too(open_store: Open, folder: Path) -> None:
    """Flipped bits end a recovery with the same reason, and the next start rebuilds the files."""
    from types import SimpleNamespace  # noqa: PLC0415

    flip_data(folder)
    records = [SimpleNamespace(key=user, value=encode_state(empty_state(0))) for user in USERS]
    run = SimpleNamespace(topic="changelog", partition=0, offset=12, value=SimpleNamespace(records=records))
    with pytest.raises(Ended, match="the next start rebuilds them"):
        open_store().apply_changelog_batch([SimpleNamespace(message=run)], None, None)
    store = open_store()
    store.apply_changelog_batch([SimpleNamespace(message=run)], None, None)
    assert store.read_states(0, [USERS[7], store.offset_key]) == [encode_state(empty_state(0)), b"12"]


def test_files_that_are_held_are_kept(open_store: Open, folder: Path) -> None:
    """Files that another process holds are not deleted."""
    store = open_store()
    held = store._db_for_partition(0)
    del store._dbs[0]
    with pytest.raises(Exception, match="lock hold by current process"):
        store._db_for_partition(0)
    held.close()
    assert None not in store.read_states(0, USERS)


def test_a_recovery_leaves_out_what_is_no_state(open_store: Open, caplog: pytest.LogCaptureFixture) -> None:
    """A quarantined batch, garbage, a key that is not there: the states around them are taken, and each is told."""
    store, good = open_store(), encode_state(empty_state(0))
    values = [
        (b"u1", good),
        (b"u2", Unreadable("batch 1 to 1: garbage", 2)),
        (b"u1", b"{"),
        (None, good),
        (b"u3", None),
        (b"u4", good),
    ]
    records = [Record(offset, 0, key, value) for offset, (key, value) in enumerate(values)]
    store._apply(0, records, 5)
    assert store.read_states(0, [b"u1", b"u2", b"u3", b"u4"]) == [good, None, None, good]
    assert [record.offset for record in caplog.records] == [1, 2, 3]
