"""Reading a log and splitting it by time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from freshet.core.events import ERASE, OPT_IN, OPT_OUT, Event, encode_event
from freshet_training.config import TrainingConfig
from freshet_training.dataset import CleanedLog, DatasetError, read_items, read_log, split_by_time, vocabulary

NOW = 1_700_000_000_000
HOUR = 3_600_000


def event(number: int, ts: int, kind: str = "view", item: str | None = None) -> Event:
    return Event(f"e{number}", "u", kind, NOW + ts, item or f"i{number}")


def write(path: Path, events: list[Event]) -> Path:
    path.write_bytes(b"\n".join(encode_event(event) for event in events) + b"\n")
    return path


def read(path: Path, **config: Any) -> CleanedLog:
    return read_log(path, TrainingConfig(min_users=1, **config), NOW + HOUR)


def test_reads_what_the_topic_holds(tmp_path: Path) -> None:
    """A log's events are decoded by the core."""
    events = [event(number, number) for number in range(3)]
    log = read(write(tmp_path / "log", events))
    assert (log.events, log.cleaning) == (events, {})


def test_the_digest_is_of_what_is_kept(tmp_path: Path) -> None:
    """Other bytes of the same events have the same digest, and another event has another."""
    events = [event(number, number) for number in range(3)]
    digest = read(write(tmp_path / "log", events)).digest
    (tmp_path / "log").write_bytes(b"\n\n" + (tmp_path / "log").read_bytes() + b"not json\n")
    assert read(tmp_path / "log").digest == digest
    assert read(write(tmp_path / "log", [*events, event(9, 9)])).digest != digest


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    """Duplicates, impossible times, floods, bad lines and withdrawn events are counted by reason."""
    kept = [event(number, number) for number in range(5)]
    flood = [event(100 + number, 60_000 + number) for number in range(12)]
    log = write(
        tmp_path / "log",
        [
            kept[1],
            kept[0],
            *kept[2:],
            kept[0],
            event(50, 3 * HOUR),
            *flood,
            Event("o1", "v", "view", NOW + 7, "i"),
            Event("o2", "v", ERASE, NOW + 8),
        ],
    )
    with log.open("ab") as file:
        file.write(b'not json\n{"event_id":"x","user_id":"u","type":"view","ts":5,"item_id":"i"}\n')
    read_back = read(log, flood_per_minute=10)
    assert read_back.events == [*kept, *flood[:10]]
    assert read_back.forgotten == {"v"}
    assert read_back.cleaning == {
        "duplicate": 1,
        "impossible time": 1,
        "flood": 2,
        "out of order": 1,
        "unreadable": 1,
        "invalid": 1,
        "opted out or erased": 1,
    }


@pytest.mark.parametrize("word", [OPT_OUT, ERASE])
def test_a_users_own_word_is_never_left_out(tmp_path: Path, word: str) -> None:
    """A withdrawal is kept with a clock ahead and with another user's event id."""
    before = [event(0, 0), Event("e1", "v", "view", NOW + 1, "i"), Event("e2", "w", "view", NOW + 2, "i")]
    words = [Event("x", "v", word, NOW + 30 * HOUR), Event("e1", "w", word, NOW + 3)]
    after = [event(4, 4), Event("e5", "v", "view", NOW + 5, "i"), Event("e6", "w", "view", NOW + 6, "i")]
    log = read(write(tmp_path / "log", [*before, *words, *after]))
    assert log.events == [before[0], after[0]]
    assert log.forgotten == {"v", "w"}
    assert log.cleaning == {"opted out or erased": 4}


def test_a_word_dated_ahead_stands_where_the_log_has_it(tmp_path: Path) -> None:
    """A withdrawal or opt-in dated ahead counts at its place in the log, as in the live fold."""
    views = [event(number, number) for number in range(4)]
    ahead = Event("in", "u", OPT_IN, NOW + 30 * HOUR)
    out = Event("out", "u", OPT_OUT, NOW + 1)
    other = [Event(f"o{number}", "v", "view", NOW, "i") for number in range(2)]
    assert read(write(tmp_path / "log", [*other, views[0], ahead, out, *views[2:]])).events == other
    log = read(write(tmp_path / "log", [*other, views[0], out, ahead, *views[2:]]))
    assert log.events == [*other, *views[2:]]


def test_event_ids_are_a_users_own(tmp_path: Path) -> None:
    """Event ids are compared within a user, as in the live fold."""
    events = [Event(f"e{number // 2}", f"u{number % 2}", "view", NOW + number, "i") for number in range(6)]
    log = read(write(tmp_path / "log", [*events, events[0]]))
    assert (log.events, log.cleaning) == (events, {"duplicate": 1})


def test_a_log_out_of_order_is_put_in_order(tmp_path: Path) -> None:
    """A log of partitions one after the other is ordered by event time."""
    events = [event(number, number) for number in range(6)]
    log = read(write(tmp_path / "log", [*events[3:], *events[:3]]))
    assert (log.events, log.cleaning) == (events, {"out of order": 3})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"event_id":"e","user_id":"u","type":"like","ts":1700000000000,"item_id":"i"}', "--types like, or"),
        (b'{"event_id":"e","user_id":"u","type":"view","ts":1700000000000}', "missing item"),
        (b"not json", "log:1: "),
        (b"[]", "log:1: "),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, line: bytes, reason: str) -> None:
    """A file whose lines are mostly no events is refused with the first line and its reason."""
    (tmp_path / "log").write_bytes(line)
    with pytest.raises(DatasetError, match=reason):
        read(tmp_path / "log")


def test_hostile_lines_are_counted_as_bad(tmp_path: Path) -> None:
    """A line in Latin-1 or of deep nesting counts as bad."""
    path = write(tmp_path / "log", [event(number, number) for number in range(9)])
    deep = b"[" * 1200 + b"]" * 1200
    with path.open("ab") as file:
        file.write(b'{"user_id":"\xe9"}\n' + b'{"user_id":"u","context":{"x":%s}}\n' % deep)
    log = read(path)
    assert (len(log.events), log.cleaning) == (9, {"unreadable": 2})
    items = tmp_path / "items"
    items.write_bytes(b'{"item_id":"a","x":%s}\n' % deep)
    with pytest.raises(DatasetError, match="items:1: nested"):
        read_items(items)


def test_no_log_is_said(tmp_path: Path) -> None:
    """A missing or empty file, or a log of too few users, is one line."""
    with pytest.raises(DatasetError, match="No such file"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").write_bytes(b"\n")
    with pytest.raises(DatasetError, match="holds no events"):
        read(tmp_path / "empty")
    with pytest.raises(DatasetError, match="1 users have two events or more"):
        read_log(write(tmp_path / "log", [event(n, n) for n in range(9)]), TrainingConfig(min_users=2), NOW)


def test_the_last_upsert_of_an_item_stands(tmp_path: Path) -> None:
    """The last upsert of an item counts."""
    (tmp_path / "items").write_bytes(b'{"item_id":"a","title":"old"}\n{"item_id":"a","title":"new"}\n')
    assert read_items(tmp_path / "items")["a"].title == "new"


def test_split_is_by_time() -> None:
    """The split has 80, 10 and 10 % of the log in time order and loses nothing."""
    events = [event(number, number) for number in range(50)]
    split = split_by_time(events)
    assert [len(split.train), len(split.validation), len(split.test)] == [40, 5, 5]
    assert [*split.train, *split.validation, *split.test] == events


def test_vocabulary_is_what_had_an_event() -> None:
    """The vocabulary has each item with an event once, by first appearance."""
    events = [event(0, 0, item="b"), event(1, 1, item="a"), event(2, 2, item="b"), event(3, 3, "user.opt_out", "c")]
    assert vocabulary(events) == ["b", "a"]
    assert vocabulary(events, ["z", "a"]) == ["z", "a", "b"]
