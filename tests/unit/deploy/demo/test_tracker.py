"""The demo's bookkeeping of events and lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.demo.tracker import DemoTracker, difference, percentile
from tests.unit.deploy.demo.demo_records import event, made


@pytest.mark.parametrize("acknowledged_first", [True, False])
def test_freshness_is_from_send_to_list_whichever_report_comes_first(acknowledged_first: bool) -> None:
    """Freshness runs from send to list, whether the acknowledgement or the list arrives first."""
    tracker = DemoTracker()
    sent = tracker.sending(event(0), at=10.0)
    if acknowledged_first:
        tracker.acknowledged(sent, 5)
    tracker.consumed(made(5), at=10.02)
    if not acknowledged_first:
        assert tracker.lag() == 1
        tracker.acknowledged(sent, 5)
    assert tracker.lag() == 0
    assert tracker.overall()[0] == pytest.approx(20.0)
    assert tracker.shortfall() is None


def test_one_list_answers_all_events_up_to_its_offset() -> None:
    """A list answers all events up to its offset and no event beyond."""
    tracker = DemoTracker()
    for number in range(3):
        tracker.acknowledged(tracker.sending(event(number), at=1.0), number)
    tracker.consumed(made(1), at=1.5)
    assert tracker.lag() == 1
    assert "1 of 1 users have no list as of their last event" in (tracker.shortfall() or "")
    tracker.consumed(made(2, degraded=True), at=1.6)
    assert tracker.shortfall() is None
    assert tracker.figures(1.7).degraded == 1


def test_a_run_without_lists_or_acknowledgements_falls_short() -> None:
    """A run without events sent, acknowledged or listed has a line of its own for each."""
    tracker = DemoTracker()
    assert tracker.shortfall() == "no event was sent"
    sent = tracker.sending(event(0), at=1.0)
    assert "not acknowledged" in (tracker.shortfall() or "")
    tracker.acknowledged(sent, 0)
    assert "1 of them none at all" in (tracker.shortfall() or "")


def test_an_older_list_never_replaces_a_newer_one() -> None:
    """The tracker passes an older list over."""
    tracker = DemoTracker()
    tracker.acknowledged(tracker.sending(event(0), at=1.0), 7)
    tracker.consumed(made(7), at=1.1)
    tracker.consumed(made(3), at=1.2)
    assert tracker.figures(1.2).lists == 1


def test_a_change_says_what_moved() -> None:
    """A change gives gained ranks as positive numbers, and names new and gone items."""
    change = difference("u", (), made(0, "abcd").items, made(1, "cabx").items)
    assert change.moved == {"c": 2, "a": -1, "b": -1}
    assert (change.entered, change.left) == (("x",), ("d",))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_percentile_is_a_value_with_that_share_below(values: list[float], share: float) -> None:
    """A percentile is a value that at least the given share of values does not exceed."""
    found = percentile(sorted(values), share)
    assert found in values
    assert sum(v <= found for v in values) >= share * len(values) - 1e-6
