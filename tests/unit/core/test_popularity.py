"""Popularity, case by case."""

import pytest
from freshet.core.popularity import (
    LEAST_COUNT,
    MOST_ITEMS,
    RECORD_BYTES,
    RING,
    Partial,
    PartialPopularity,
    PopularityTable,
    decode_partial,
    encode_partial,
)

NOW = 1_700_000_000_000
DAY = 86_400_000


def test_an_interaction_halves_in_a_half_life() -> None:
    """After two half-lives an interaction counts a quarter."""
    popularity = PartialPopularity(0, DAY / 1000)
    popularity.add("old", NOW, 1)
    popularity.add("new", NOW + 2 * DAY, 2)
    [partial] = popularity.changes()
    assert partial.counts == {"new": 1.0, "old": 0.25}


def test_far_apart_times_neither_overflow_nor_vanish() -> None:
    """Counts stay finite over decades, and the newest interaction has full weight."""
    popularity = PartialPopularity(0, 60.0)
    popularity.add("a", NOW, 1)
    popularity.add("b", NOW + 10_000 * DAY, 2)
    popularity.add("c", NOW, 3)
    [snapshot] = popularity.changes()
    assert snapshot.counts["b"] == pytest.approx(1.0)
    assert snapshot.counts["a"] == snapshot.counts["c"] == 0.0
    assert (snapshot.ts, snapshot.offset) == (NOW + 10_000 * DAY, 3)


def known(*records: Partial) -> dict[str, float]:
    """What a table that has read these records knows."""
    table = PopularityTable()
    for record in records:
        assert not isinstance(table.apply(record), str)
    items, counts = table.popularity()
    return {item: count for item, count in zip(items, counts.tolist(), strict=True) if count}


def test_only_what_changed_is_published() -> None:
    """A second record has the item that somebody touched since; both together are all counts."""
    popularity = PartialPopularity(3, 1e9)
    for number in range(5000):
        popularity.add(f"i{number}", NOW, number)
    [first] = popularity.changes()
    popularity.add("i7", NOW, 5000)
    [second] = popularity.changes()
    assert (len(first.counts), second.counts, second.offset) == (5000, {"i7": 2.0}, 5000)
    assert (first.key, second.key) == (b"3/0", b"3/1")
    assert popularity.changes() == []
    assert len(known(first, second)) == 5000


def test_the_tail_is_never_lost() -> None:
    """5,000 items of one user each stay counted however often the topmost change and the ring goes round."""
    popularity = PartialPopularity(0, 1e9)
    for number in range(5000):
        popularity.add(f"i{number}", NOW, number)
    records = {record.key: record for record in popularity.changes()}
    for number in range(3 * RING):
        popularity.add("hit", NOW, 5000 + number)
        for record in popularity.changes():
            records.pop(record.key, None)
            records[record.key] = record
    counts = known(*records.values())
    assert len(records) <= RING
    assert counts["hit"] == pytest.approx(3 * RING)
    assert len(counts) == 5001


def test_what_has_faded_is_forgotten() -> None:
    """Ten half-lives later a single user is no count any more, and no record carries the item on."""
    popularity = PartialPopularity(0, DAY / 1000)
    popularity.add("old", NOW, 0)
    first = popularity.changes()
    for number in range(1, RING + 1):
        popularity.add("new", NOW + 11 * DAY, number)
        last = popularity.changes()
    assert LEAST_COUNT > 2.0**-11
    assert [*last[0].counts] == ["new"]
    assert known(*first, *last) == {"new": pytest.approx(RING)}


def test_a_partition_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than so many items the smallest go, for the counter and for everybody who reads."""
    monkeypatch.setattr("freshet.core.popularity.MOST_ITEMS", 100)
    popularity = PartialPopularity(0, 1e9)
    for number in range(101):
        popularity.add(f"i{number:03}", NOW, number)
    popularity.add("i050", NOW, 101)
    [record] = popularity.changes()
    counts = known(record)
    assert len(counts) == 90
    assert counts["i050"] == pytest.approx(2.0)
    assert MOST_ITEMS > 10_000


def test_records_are_never_too_large() -> None:
    """Ids of 256 characters that JSON escapes go into several records; only the last claims the newest offset."""
    popularity = PartialPopularity(0, 1e9)
    for number in range(2000):
        popularity.add(chr(1) * 250 + f"{number:06}", NOW, number)
    records = popularity.changes()
    assert [record.offset for record in records[:-1]] == [-1] * (len(records) - 1)
    assert records[-1].offset == 1999
    assert max(len(encode_partial(record)) for record in records) <= RECORD_BYTES
    assert len(known(*records)) == 2000


def test_what_is_counted_is_not_counted_again() -> None:
    """After a crash between the publication and the state's write the event is a first touch again."""
    table = PopularityTable()
    popularity = PartialPopularity(0, 1e9)
    popularity.add("a", NOW, 5)
    for record in popularity.changes():
        table.apply(record)
    again = PartialPopularity(0, 1e9, table.published(0))
    again.add("a", NOW, 5)
    assert again.changes() == []
    again.add("a", NOW, 6)
    assert again.changes()[0].counts == {"a": 2.0}


def test_another_half_life_begins_anew_with_what_is_counted() -> None:
    """All counts are published again under it, and none of another half-life is mixed in."""
    table = PopularityTable()
    first = Partial(0, 9, NOW, 60.0, {"a": 4.0, "b": 2.0}, ring_slot=0)
    table.apply(first)
    changed = PartialPopularity(0, 120.0, table.published(0))
    changed.add("c", NOW, 10)
    [whole] = changed.changes()
    assert (whole.key, whole.half_life) == (b"0", 120.0)
    assert known(first, whole) == pytest.approx({"a": 4.0, "b": 2.0, "c": 1.0})
    assert "half-life" in str(table.apply(Partial(0, 11, NOW, 120.0, {"a": 9.0}, ring_slot=1)))


def test_a_partition_counted_anew_without_events_has_no_counts() -> None:
    """A topic that was made again begins at offset 0: what was counted of the former one is taken back."""
    [whole] = PartialPopularity(0, 60.0, anew=True).changes()
    assert known(Partial(0, 900, NOW, 60.0, {"a": 4.0}, ring_slot=7), whole) == {}
    assert whole.offset == -1


def test_an_older_record_changes_nothing() -> None:
    """A worker that lost its partition and does not know it yet cannot put counts back."""
    table = PopularityTable()
    table.apply(Partial(0, 9, NOW, 60.0, {"a": 4.0}, ring_slot=0))
    assert "newer counts" in str(table.apply(Partial(0, 8, NOW, 60.0, {"a": 3.0}, ring_slot=1)))
    assert table.popularity().counts.tolist() == [4.0]


def test_faded_items_take_no_room() -> None:
    """A table forgets the items that have no count, and goes on the same."""
    table, other = PopularityTable(), PopularityTable()
    for each in (table, other):
        each.apply(Partial(0, 1, NOW, DAY / 1000, {f"i{number}": 1.0 for number in range(100)}, ring_slot=0))
        each.apply(Partial(1, 1, NOW + 20 * DAY, DAY / 1000, {"new": 1.0}, ring_slot=0))
    table.forget_faded()
    assert table.items == ["new"]
    for each in (table, other):
        each.apply(Partial(0, 2, NOW + 20 * DAY, DAY / 1000, {"i3": 1.0, "new": 3.0}, ring_slot=1))
    items, counts = table.popularity()
    assert dict(zip(items, counts, strict=True)) == {"new": 4.0, "i3": 1.0}
    assert known_of(other) == known_of(table)


def known_of(table: PopularityTable) -> dict[str, float]:
    """The table's counts."""
    return {item: count for item, count in zip(*table.popularity(), strict=True) if count}


def test_partials_are_summed_at_the_newest_time() -> None:
    """A partition that has been quiet for a half-life counts half in the sum."""
    old = Partial(partition=0, offset=9, ts=NOW, half_life=DAY / 1000, counts={"a": 4.0})
    new = Partial(partition=1, offset=3, ts=NOW + DAY, half_life=DAY / 1000, counts={"a": 1.0, "b": 2.0})
    assert known(old, new) == {"a": 3.0, "b": 2.0}
    assert known() == {}


def test_records_survive_the_codec() -> None:
    """Decoding an encoded partial gives the same partial, and other bytes give a reason."""
    partial = Partial(partition=0, offset=9, ts=NOW, half_life=3.5, counts={"ä": 4.25})
    assert decode_partial(encode_partial(partial)) == partial
    for raw in (b"", b"{}", b'{"partition":"x"}'):
        assert isinstance(decode_partial(raw), str)
