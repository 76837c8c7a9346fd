"""The converter of the Deskdrop log."""

import gzip
from pathlib import Path

import msgspec
import pytest
from freshet.core.catalogue import decode_item
from freshet.core.events import Event, decode_event

from deploy.demo import deskdrop

EVENTS = [
    ("u2", "a", "view", "1457963020"),
    ("u1", "b", "like", "1457963010"),
    ("u1", "a", "comment_created", "1457963030"),
]


def write(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    lines = ["\t".join(deskdrop.EVENTS_HEADER), *("\t".join(row) for row in rows)]
    (folder / "events.tsv.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    (folder / "items.tsv").write_text("item_id\ttitle\na\tolá mundo\n")
    return folder


def test_each_line_becomes_one_event_in_time_order(tmp_path: Path) -> None:
    """Each line becomes an event with its real time and its own id, which the worker decodes."""
    deskdrop.convert(write(tmp_path, EVENTS), tmp_path / "out")
    lines = (tmp_path / "out" / "events.jsonl").read_bytes().splitlines()
    events = [decode_event(line, msgspec.json.decode(line)["user_id"].encode(), deskdrop.TYPES) for line in lines]
    assert all(isinstance(event, Event) for event in events)
    found = [(e.user_id, e.item_id, e.type, e.ts) for e in events if isinstance(e, Event)]
    assert found == [
        ("u1", "b", "like", 1_457_963_010_000),
        ("u2", "a", "view", 1_457_963_020_000),
        ("u1", "a", "comment_created", 1_457_963_030_000),
    ]
    assert len({e.event_id for e in events if isinstance(e, Event)}) == 3


def test_an_article_comes_just_behind_its_first_event(tmp_path: Path) -> None:
    """An article's item comes behind the article's first event, with a title where known and a text always."""
    deskdrop.convert(write(tmp_path, EVENTS), tmp_path / "out")
    lines = (tmp_path / "out" / "items.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line)["ts"] for line in lines] == [1_457_963_010_001, 1_457_963_020_001]
    items = [decode_item(line, msgspec.json.decode(line)["item_id"].encode()) for line in lines]
    assert [item if isinstance(item, str) else item.text() for item in items] == ["article", "olá mundo. article"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("u", "a", "stare", "1")], "events.tsv.gz:2"),
        ([("u", "a")], "2 columns"),
        ([("u", "a", "view", "soon")], "soon"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, rows: list[tuple[str, ...]], says: str) -> None:
    """A bad line is named with its number, and nothing is written."""
    with pytest.raises(deskdrop.DeskdropError, match=says):
        deskdrop.convert(write(tmp_path, rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A missing folder and a file cut off in the middle are named."""
    with pytest.raises(deskdrop.DeskdropError, match=r"events\.tsv\.gz"):
        deskdrop.convert(tmp_path, tmp_path / "out")
    whole = (write(tmp_path, EVENTS) / "events.tsv.gz").read_bytes()
    (tmp_path / "events.tsv.gz").write_bytes(whole[:-9])
    with pytest.raises(deskdrop.DeskdropError, match=r"events\.tsv\.gz"):
        deskdrop.convert(tmp_path, tmp_path / "out")
