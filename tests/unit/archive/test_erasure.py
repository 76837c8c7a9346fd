"""Erasing a user from an archive leaves nothing of the user, and everything else unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from freshet.archive import feature_history
from freshet.archive.chain import Chain
from freshet.archive.merging import MERGE_FILES
from freshet.archive.rows import erasures, holds, without
from freshet.ports import Record
from freshet.settings import Settings
from msgspec.structs import replace

from tests.unit.archive.archives import read, record, rows, write

USERS = ("ada", "bob")
ERASED_AT = 25


def stream(count: int) -> list[Record]:
    """Records of two users in turn, poison of each among them; one asks to be erased, and acts once more."""
    records = [record(number, USERS[number % 2]) for number in range(count)]
    records[ERASED_AT] = record(ERASED_AT, "bob", kind="user.erase")
    records[7] = replace(records[7], value=b"{ bob")
    records[8] = replace(records[8], value=b"{ ada")
    return records


def noted(chain: Chain) -> dict[bytes, int]:
    """What an archiver would note of the chain's files."""
    found: dict[bytes, int] = {}
    for segment in chain.segments():
        found |= erasures(pq.read_table(segment.path))
    return found


def bytes_held(chain: Chain) -> list[bytes]:
    """Every key and value in the files."""
    tables = [pq.read_table(segment.path) for segment in chain.segments()]
    return [cell for table in tables for name in ("key", "value") for cell in table[name].to_pylist() if cell]


def kept(records: list[Record]) -> list[Record]:
    """What is left of them: the other user, and the erased one from the erasure on."""
    return [record for record in records if record.key != b"bob" or record.offset >= ERASED_AT]


def test_an_erased_user_is_in_no_file(tmp_path: Path) -> None:
    """An erasure removes the user's earlier records from every file, and keeps offsets and later records."""
    records = stream(40)
    chain = write(tmp_path, records)
    before = [segment[1:3] for segment in chain.segments()]
    assert noted(chain) == {b"bob": ERASED_AT}
    chain.begin_erasing(noted(chain))
    assert chain.erase(holds, without) == 3
    of_bob = [content for content in bytes_held(chain) if b"bob" in content]
    assert len(of_bob) == 2 * len([record for record in kept(records) if record.key == b"bob"])
    assert [segment[1:3] for segment in chain.segments()] == before
    table = pa.concat_tables([pq.read_table(segment.path) for segment in chain.segments()])
    assert table["offset"].to_pylist() == list(range(40))
    erased = table.filter(pc.equal(table["bad_reason"], "erased"))
    assert erased["user_id"].null_count == len(erased) == 12
    assert read(tmp_path) == {0: kept(records)}
    assert read(tmp_path, start=3)[0][0].offset == 4
    assert chain.erase(holds, without) == 0


def test_what_was_noted_outlives_a_cut(tmp_path: Path) -> None:
    """A noted erasure waits for its file, and completes after a cut while files are rewritten."""
    records = stream(40)
    chain = write(tmp_path, records[:20])
    chain.begin_erasing({b"bob": ERASED_AT})
    assert Chain(chain.folder, 0).erase(holds, without) == 0
    write(tmp_path, records[20:])
    calls = []

    def cut(table: pa.Table, users: Mapping[bytes, int]) -> pa.Table:
        calls.append(users)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return without(table, users)

    with pytest.raises(KeyboardInterrupt):
        chain.erase(holds, cut)
    Chain(chain.folder, 0).tidy()
    assert Chain(chain.folder, 0).erase(holds, without) == 2
    assert read(tmp_path) == {0: kept(records)}
    assert sorted(path.name for path in chain.folder.iterdir() if path.is_file()) == [".lock-00000"]


def test_merged_files_stay_erased(tmp_path: Path) -> None:
    """A merge keeps the rows of erased records as empty rows."""
    records = stream(10 * MERGE_FILES)
    chain = write(tmp_path, records)
    chain.begin_erasing(noted(chain))
    chain.erase(holds, without)
    assert chain.merge(1 << 20) == MERGE_FILES
    assert read(tmp_path) == {0: kept(records)}


async def test_history_is_the_same_as_before_the_erasure(tmp_path: Path) -> None:
    """After an erasure the others' history is unchanged, the erased user has none, and new rows follow."""
    settings = Settings(archive_dir=str(tmp_path))
    records = stream(40)
    chain = write(tmp_path, records[:30])
    await feature_history.extend(settings, lambda _: None, lambda _: None)
    before = rows(tmp_path)
    assert {row["user_id"] for row in before} == {"ada"}
    chain.begin_erasing(noted(chain))
    chain.erase(holds, without)
    write(tmp_path, records[30:])
    await feature_history.extend(settings, lambda _: None, lambda _: None)
    went_on = rows(tmp_path)
    assert went_on[: len(before)] == before
    anew = tmp_path / "anew"
    anew.mkdir()
    (anew / "events").symlink_to(chain.folder)
    await feature_history.extend(Settings(archive_dir=str(anew)), lambda _: None, lambda _: None)
    assert rows(anew) == went_on
