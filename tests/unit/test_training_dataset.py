"""Reading a log and splitting it by time."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.dataset import DatasetError, read_events, read_items, split_by_time, vocabulary
from workers.core.events import Event, encode_event


def event(number: int, ts: int, kind: str = "view", item: str | None = None) -> Event:
    return Event(f"e{number}", "u", kind, 1_700_000_000_000 + ts, item or f"i{number}")


def write(path: Path, events: list[Event]) -> Path:
    path.write_bytes(b"\n".join(encode_event(event) for event in events) + b"\n")
    return path


def test_reads_what_the_topic_holds(tmp_path: Path) -> None:
    """A log is the events topic in a file: it is decoded by the core."""
    events = [event(number, number) for number in range(3)]
    assert read_events(write(tmp_path / "log", events)) == events


def test_a_log_that_goes_back_in_time_is_refused(tmp_path: Path) -> None:
    """Order is what makes examples point-in-time correct."""
    path = write(tmp_path / "log", [event(0, 5), event(1, 4)])
    with pytest.raises(DatasetError, match=r"log:2: .*goes back in time"):
        read_events(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"event_id":"e","user_id":"u","type":"like","ts":1700000000000,"item_id":"i"}', "unknown_type"),
        (b'{"event_id":"e","user_id":"u","type":"view","ts":1700000000000}', "missing_item"),
        (b"not json", "log:1: "),
        (b"[]", "log:1: "),
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    """The first bad line stops the run with its number and its reason."""
    (tmp_path / "log").write_bytes(line)
    with pytest.raises(DatasetError, match=reason):
        read_events(tmp_path / "log")


def test_no_log_is_said(tmp_path: Path) -> None:
    """A missing or empty file is one line, not a traceback from deep inside."""
    with pytest.raises(DatasetError, match="does not exist"):
        read_events(tmp_path / "nothing")
    (tmp_path / "empty").write_bytes(b"\n")
    with pytest.raises(DatasetError, match="holds no events"):
        read_events(tmp_path / "empty")


def test_the_last_upsert_of_an_item_stands(tmp_path: Path) -> None:
    """As on the compacted topic."""
    (tmp_path / "items").write_bytes(b'{"item_id":"a","title":"old"}\n{"item_id":"a","title":"new"}\n')
    assert read_items(tmp_path / "items")["a"].title == "new"


def test_split_is_by_time() -> None:
    """80, 10 and 10 % of the log, in order, nothing lost."""
    events = [event(number, number) for number in range(50)]
    split = split_by_time(events)
    assert [len(split.train), len(split.validation), len(split.test)] == [40, 5, 5]
    assert [*split.train, *split.validation, *split.test] == events


def test_vocabulary_is_what_had_an_event() -> None:
    """Items in order of first appearance, each once; control events bring none."""
    events = [event(0, 0, item="b"), event(1, 1, item="a"), event(2, 2, item="b"), event(3, 3, "user.opt_out", "c")]
    assert vocabulary(events) == ["b", "a"]
