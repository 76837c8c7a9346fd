"""Popularity, case by case."""

import pytest
from freshet.core.popularity import KEPT_ITEMS, Partial, PartialPopularity, decode_partial, encode_partial, total

NOW = 1_700_000_000_000
DAY = 86_400_000


def test_an_interaction_halves_in_a_half_life() -> None:
    """After two half-lives an interaction counts a quarter."""
    popularity = PartialPopularity(0, DAY / 1000)
    popularity.add("old", NOW, 1)
    popularity.add("new", NOW + 2 * DAY, 2)
    assert popularity.snapshot().counts == {"new": 1.0, "old": 0.25}


def test_far_apart_times_neither_overflow_nor_vanish() -> None:
    """Counts stay finite over decades, and the newest interaction has full weight."""
    popularity = PartialPopularity(0, 60.0)
    popularity.add("a", NOW, 1)
    popularity.add("b", NOW + 10_000 * DAY, 2)
    popularity.add("c", NOW, 3)
    snapshot = popularity.snapshot()
    assert snapshot.counts["b"] == pytest.approx(1.0)
    assert snapshot.counts["a"] == snapshot.counts["c"] == 0.0
    assert (snapshot.ts, snapshot.offset) == (NOW + 10_000 * DAY, 3)


def test_a_snapshot_keeps_the_largest() -> None:
    """A snapshot keeps the largest counts, with equal counts ordered by name."""
    popularity = PartialPopularity(0, 1e9)
    for number in range(KEPT_ITEMS + 5):
        popularity.add(f"i{number:05}", NOW, number)
    popularity.add(f"i{KEPT_ITEMS + 4:05}", NOW, KEPT_ITEMS + 5)
    counts = popularity.snapshot().counts
    assert len(counts) == KEPT_ITEMS
    assert counts[f"i{KEPT_ITEMS + 4:05}"] == pytest.approx(2.0)
    assert f"i{KEPT_ITEMS:05}" not in counts


def test_partials_are_summed_at_the_newest_time() -> None:
    """A partition that has been quiet for a half-life counts half in the sum."""
    old = Partial(partition=0, offset=9, ts=NOW, half_life=DAY / 1000, counts={"a": 4.0})
    new = Partial(partition=1, offset=3, ts=NOW + DAY, half_life=DAY / 1000, counts={"a": 1.0, "b": 2.0})
    assert total([old, new]) == {"a": 3.0, "b": 2.0}
    assert total([]) == {}


def test_records_survive_the_codec() -> None:
    """Decoding an encoded partial gives the same partial, and other bytes give a reason."""
    partial = Partial(partition=0, offset=9, ts=NOW, half_life=3.5, counts={"ä": 4.25})
    assert decode_partial(encode_partial(partial)) == partial
    for raw in (b"", b"{}", b'{"partition":"x"}'):
        assert isinstance(decode_partial(raw), str)
