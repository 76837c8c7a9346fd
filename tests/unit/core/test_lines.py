"""Keys and times of JSON lines."""

from __future__ import annotations

import pytest
from freshet.core.decoding import Undecodable
from freshet.core.lines import (
    CatalogueLine,
    EventLine,
    ItemLine,
    UserLine,
    catalogue_line,
    event_line,
    item_line,
    user_line,
)


def test_a_key_needs_nothing_else() -> None:
    """A line with a bad time still gives its key."""
    line = b'{"user_id": "ada", "item_id": "film", "ts": "noon"}'
    assert user_line(line) == UserLine("ada")
    assert item_line(line) == ItemLine("film")
    assert isinstance(event_line(line), Undecodable)
    assert isinstance(catalogue_line(line), Undecodable)


def test_a_time_may_be_left_out() -> None:
    """A line without a time gives the time 0 for an event and None for an item."""
    assert event_line(b'{"user_id": "ada"}') == EventLine("ada", 0)
    assert event_line(b'{"user_id": "ada", "ts": 7}') == EventLine("ada", 7)
    assert catalogue_line(b'{"item_id": "film"}') == CatalogueLine("film", None)
    assert catalogue_line(b'{"item_id": "film", "ts": 0}') == CatalogueLine("film", 0)


@pytest.mark.parametrize("line", [b"", b"[]", b'{"user_id": 1, "item_id": 1}', b'{"user_id": "\xff"}', b"{" * 200])
def test_what_has_no_key_says_so(line: bytes) -> None:
    """A line without a key is returned as `Undecodable` and raises nothing."""
    assert all(isinstance(read(line), Undecodable) for read in (user_line, event_line, item_line, catalogue_line))
