"""The demo's converter of MovieLens-100K."""

from pathlib import Path

import pytest
from freshet.core.catalogue import decode_item, encode_item
from freshet.core.events import decode_event, encode_event
from hypothesis import given
from hypothesis import strategies as st

from deploy.demo import movielens

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
    """Each rating becomes an event that the worker decodes, in time order, and none is lost or invented."""
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
    """Events of equal time are ordered by user and item."""
    folder = tmp_path_factory.mktemp("ml")
    forwards = movielens.read_events(write(folder, ratings))
    assert movielens.read_events(write(folder, ratings[::-1])) == forwards


@given(ratings=RATINGS, span=st.integers(1, 100))
def test_sessions_at_once_keep_every_event_and_each_users_order(
    ratings: list[tuple[int, int, int, int]], span: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Drawing sessions out keeps every event and the order of each user's events."""
    events = movielens.read_events(write(tmp_path_factory.mktemp("ml"), ratings))
    mixed = movielens.at_once(events, span)
    assert sorted(e.event_id for e in mixed) == sorted(e.event_id for e in events)
    for user in {e.user_id for e in events}:
        assert [e for e in mixed if e.user_id == user] == [e for e in events if e.user_id == user]


def test_films_become_valid_items(tmp_path: Path) -> None:
    """Genres become the category, the year the description, and titles are shown as people say them."""
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
