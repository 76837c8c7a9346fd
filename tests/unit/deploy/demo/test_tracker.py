"""The demo's converter, bookkeeping and view."""

import io
from pathlib import Path

import pytest
from freshet.core.catalogue import decode_item, encode_item
from freshet.core.events import Event, decode_event, encode_event
from freshet.core.recommendation import AsOf, Item, Reason, Recommendation, SideInputs, Timings
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from deploy.demo import movielens
from deploy.demo.tracker import DemoTracker, difference, percentile
from deploy.demo.view import Facts, line, render, sparkline

RATINGS = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 50), st.integers(1, 5), st.integers(874_724_710, 893_286_638)),
    max_size=60,
    unique_by=lambda row: row[:2],
)


def write(folder: Path, ratings: list[tuple[int, int, int, int]]) -> Path:
    rows = ["\t".join(movielens.INTERACTIONS_HEADER), *("\t".join(map(str, row)) for row in ratings)]
    (folder / "ml-100k.inter").write_text("\n".join(rows) + "\n")
    return folder


@given(ratings=RATINGS)
def test_each_rating_becomes_one_valid_event_in_time_order(
    ratings: list[tuple[int, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing is lost or invented; every event decodes as the worker decodes it; time never goes back."""
    events = movielens.read_events(write(tmp_path_factory.mktemp("ml"), ratings))
    assert len(events) == len(ratings)
    assert {e.event_id for e in events} == {f"ml-{user}-{item}" for user, item, _, _ in ratings}
    assert [e.ts for e in events] == sorted(seconds * 1000 for *_, seconds in ratings)
    assert all(decode_event(encode_event(e), e.user_id.encode()) == e for e in events)
    kinds = {f"ml-{user}-{item}": movielens.TYPE_BY_RATING[rating] for user, item, rating, _ in ratings}
    assert {e.event_id: e.type for e in events} == kinds


@given(ratings=RATINGS)
def test_the_order_does_not_depend_on_the_files(
    ratings: list[tuple[int, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Equal times are ordered by user and item."""
    folder = tmp_path_factory.mktemp("ml")
    forwards = movielens.read_events(write(folder, ratings))
    assert movielens.read_events(write(folder, ratings[::-1])) == forwards


@given(ratings=RATINGS, span=st.integers(1, 100))
def test_sessions_at_once_keep_every_event_and_each_users_order(
    ratings: list[tuple[int, int, int, int]], span: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Drawing sessions out is a permutation that never swaps two events of one user."""
    events = movielens.read_events(write(tmp_path_factory.mktemp("ml"), ratings))
    mixed = movielens.at_once(events, span)
    assert sorted(e.event_id for e in mixed) == sorted(e.event_id for e in events)
    for user in {e.user_id for e in events}:
        assert [e for e in mixed if e.user_id == user] == [e for e in events if e.user_id == user]


def test_films_become_valid_items(tmp_path: Path) -> None:
    """Genres are the category, the year the description; titles are shown as people say them."""
    rows = ["\t".join(movielens.ITEMS_HEADER), "2\tMatrix, The\t1999\tAction Sci-Fi", "267\tunknown\t\tunknown"]
    (tmp_path / "ml-100k.item").write_text("\n".join(rows) + "\n")
    matrix, unknown = movielens.read_items(tmp_path)
    assert (matrix.title, matrix.category, matrix.description) == ("Matrix, The", "Action Sci-Fi", "1999")
    assert movielens.spoken_title(matrix) == "The Matrix"
    assert unknown.description == ""
    assert all(decode_item(encode_item(i), i.item_id.encode()) == i for i in (matrix, unknown))


@pytest.mark.parametrize("text", ["", "a\tb\n", "\t".join(movielens.INTERACTIONS_HEADER) + "\n1\t2\t9\t881250949\n"])
def test_foreign_files_are_refused(text: str, tmp_path: Path) -> None:
    """A header, column or rating that is not MovieLens's is an error."""
    (tmp_path / "ml-100k.inter").write_text(text)
    with pytest.raises(movielens.MovieLensError):
        movielens.read_events(tmp_path)


# --- bookkeeping ---------------------------------------------------------------------------------


def event(number: int, user: str = "u") -> Event:
    return Event(f"e{number}", user, "click", 881_250_949_000 + number, item_id=f"i{number}")


def made(offset: int, items: str = "abc", user: str = "u", *, degraded: bool = False) -> Recommendation:
    ranked = [Item(name, 1.0, "model", reasons=(Reason("i0", "click", 0, 0.5),)) for name in items]
    timings = Timings(0, 0, 0, 0, 0)
    as_of = AsOf(0, offset, 0)
    return Recommendation("r", user, ranked, 3, as_of, SideInputs(-1, -1, -1), timings, degraded, personalised=True)


@pytest.mark.parametrize("acknowledged_first", [True, False])
def test_freshness_is_from_send_to_list_whichever_report_comes_first(acknowledged_first: bool) -> None:
    """The broker's acknowledgement may reach us after the list does."""
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
    """A burst that became one list is complete; an event beyond it is not."""
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
    """Nothing sent, nothing acknowledged and nothing listed are three different lines."""
    tracker = DemoTracker()
    assert tracker.shortfall() == "no event was sent"
    sent = tracker.sending(event(0), at=1.0)
    assert "not acknowledged" in (tracker.shortfall() or "")
    tracker.acknowledged(sent, 0)
    assert "1 of them none at all" in (tracker.shortfall() or "")


def test_an_older_list_never_replaces_a_newer_one() -> None:
    """Lists that come again after a crash are passed over."""
    tracker = DemoTracker()
    tracker.acknowledged(tracker.sending(event(0), at=1.0), 7)
    tracker.consumed(made(7), at=1.1)
    tracker.consumed(made(3), at=1.2)
    assert tracker.figures(1.2).lists == 1


def test_a_change_says_what_moved() -> None:
    """Places gained are positive; new and gone items are named."""
    change = difference("u", (), made(0, "abcd").items, made(1, "cabx").items)
    assert change.moved == {"c": 2, "a": -1, "b": -1}
    assert (change.entered, change.left) == (("x",), ("d",))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_percentile_is_a_value_with_that_share_below(values: list[float], share: float) -> None:
    """At least the share of the values is not above it."""
    found = percentile(sorted(values), share)
    assert found in values
    assert sum(v <= found for v in values) >= share * len(values) - 1e-6


# --- view ----------------------------------------------------------------------------------------


def shown_at(width: int, height: int) -> str:
    tracker = DemoTracker()
    facts = Facts({"i2": "[red]Alien[/]", "a": "A" * 200}, 100, 0)
    for number in range(3):
        tracker.acknowledged(tracker.sending(event(number), at=number), number)
        tracker.consumed(made(number, "abcdefghij"[number:] + "xyz"[:number]), at=number + 0.01)
        tracker.shown(number + 0.02)
        tracker.tick(number)
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(render(tracker, facts, 3.0))
    assert "[red]Alien[/]" in line(tracker, facts, 3.0, 3.0)
    return capture.get()


@pytest.mark.parametrize(("width", "height"), [(100, 30), (80, 24), (200, 60), (40, 10)])
def test_a_frame_fills_the_terminal_exactly(width: int, height: int) -> None:
    """Whatever the size and the titles, no line is too wide and no frame too high."""
    lines = shown_at(width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_a_frame_shows_cause_and_effect() -> None:
    """The user's event, the item that is new because of it, and the model version stand in one frame."""
    frame = shown_at(100, 30)
    assert "user u did" in frame
    assert "[red]Alien[/]" in frame
    assert "new" in frame
    assert "version 3" in frame


def test_sparklines_scale_to_their_largest_value() -> None:
    """Nothing at all is a flat line."""
    assert sparkline([0, 1, 2], 10) == "▁▅█"
    assert sparkline([0, 0], 10) == "▁▁"
    assert len(sparkline(range(100), 15)) == 15
