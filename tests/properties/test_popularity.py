"""The popularity prior: distinct users, summable, restorable."""

from collections.abc import Iterable
from random import Random

import pytest
from freshet.core.events import CONTROL_TYPES, OPT_IN, OPT_OUT, BadEvent, Event, decode_event, encode_event
from freshet.core.popularity import LEAST_COUNT, Partial, PartialPopularity, PopularityTable
from freshet.core.state import Outcome, UserState, empty_state, fold
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.strategies import START_MS, Entry, logs

HALF_LIFE = 86_400.0
additions = st.lists(
    st.tuples(st.integers(0, 20).map("item-{}".format), st.integers(0, 10**9).map(START_MS.__add__)), max_size=60
)
partials = st.builds(
    Partial,
    partition=st.integers(0, 50),
    offset=st.integers(0, 10**9),
    ts=st.integers(START_MS, START_MS + 10**9),
    half_life=st.just(HALF_LIFE),
    counts=st.dictionaries(st.integers(0, 9).map("item-{}".format), st.floats(0, 1e6)),
)


def total(parts: Iterable[Partial]) -> dict[str, float]:
    """The counts of a table that has read these records."""
    table = PopularityTable()
    for partial in parts:
        assert not isinstance(table.apply(partial), str)
    items, counts = table.popularity()
    return {item: count for item, count in zip(items, counts.tolist(), strict=True) if count}


def assert_alike(first: dict[str, float], second: dict[str, float], partitions: int = 1) -> None:
    """The same counts, give or take a rounding in each partition, which may decide whether there is a count at all."""
    for item in first | second:
        assert first.get(item, 0.0) == pytest.approx(second.get(item, 0.0), abs=partitions * (LEAST_COUNT + 2e-5))


def snapshot(popularity: PartialPopularity) -> Partial:
    """All that has changed, in one record."""
    [partial] = popularity.changes() or [Partial(popularity.partition, -1, 0, HALF_LIFE, {})]
    return partial


def counted(pairs: list[tuple[str, int]], popularity: PartialPopularity, start: int = 0) -> PartialPopularity:
    """The popularity after these (item, event time) pairs."""
    for offset, (item, ts) in enumerate(pairs, start):
        popularity.add(item, ts, offset)
    return popularity


@given(logs)
def test_an_item_counts_its_distinct_users(log: list[Entry]) -> None:
    """An item counts each of its users once."""
    popularity = PartialPopularity(0, HALF_LIFE)
    states: dict[str, UserState] = {}
    fans: dict[str, set[str]] = {}
    for entry in log:
        event = entry.event
        if event.type in CONTROL_TYPES:
            continue
        state = states.setdefault(event.user_id, empty_state(0))
        outcome = fold(state, event, 0, entry.offset)
        if outcome is Outcome.FIRST_TOUCH:
            popularity.add(event.item_id, START_MS, entry.offset)
        if outcome is not Outcome.DUPLICATE:
            fans.setdefault(event.item_id, set()).add(event.user_id)
    assert snapshot(popularity).counts == {item: len(users) for item, users in fans.items()}


@given(additions)
def test_counts_halve_with_every_half_life(pairs: list[tuple[str, int]]) -> None:
    """Each user's weight is 2 to the minus age in half-lives, age counted from the newest event."""
    partial = snapshot(counted(pairs, PartialPopularity(0, HALF_LIFE)))
    newest = max((ts for _, ts in pairs), default=0)
    expected: dict[str, float] = {}
    for item, ts in pairs:
        expected[item] = expected.get(item, 0.0) + 2.0 ** ((ts - newest) / (HALF_LIFE * 1000))
    assert partial.ts == newest
    assert partial.counts == pytest.approx(expected, abs=1e-5)


@given(st.lists(additions, min_size=1, max_size=12), st.integers(1, 12), st.randoms())
def test_restoring_equals_continuing(runs: list[list[tuple[str, int]]], left_after: int, random: Random) -> None:
    """The same for who read all records or what compaction leaves of them, and for a successor's partition.

    A published count is rounded to 6 decimals, so the successor's sums are off by so much.
    """
    with pytest.MonkeyPatch.context() as ring:
        ring.setattr("freshet.core.popularity.RING", 3)
        popularity, offset = PartialPopularity(0, HALF_LIFE), 0
        records: list[Partial] = []
        for number, pairs in enumerate(runs):
            if number == left_after:
                table = PopularityTable()
                for partial in records:
                    table.apply(partial)
                popularity = PartialPopularity(0, HALF_LIFE, table.published(0))
            counted(pairs, popularity, offset)
            offset += len(pairs)
            records += popularity.changes()
    newest = {partial.key: number for number, partial in enumerate(records)}
    compacted = [
        partial for number, partial in enumerate(records) if number == newest[partial.key] or random.random() < 0.5
    ]
    assert total(compacted) == total(records)
    alone = total(counted([pair for pairs in runs for pair in pairs], PartialPopularity(0, HALF_LIFE)).changes())
    assert_alike(total(records), alone, 2)  # a successor begins without what has faded


@given(st.lists(additions, min_size=1, max_size=12))
def test_what_was_read_last_can_be_taken_back(runs: list[list[tuple[str, int]]]) -> None:
    """Record by record, to the last bit: verification goes back and forth along the topic."""
    popularity, table, offset = PartialPopularity(0, HALF_LIFE), PopularityTable(), 0
    before, taken_back_by = [], []
    for pairs in runs:
        counted(pairs, popularity, offset)
        offset += len(pairs)
        for partial in popularity.changes():
            before.append(dict(zip(*table.popularity(), strict=True)))
            taken_back_by.append(table.apply(partial))
    while taken_back_by:
        taken_back_by.pop()()
        known = dict(zip(*table.popularity(), strict=True))
        assert {item: count for item, count in known.items() if count} == {
            item: count for item, count in before.pop().items() if count
        }


@given(st.lists(partials, max_size=6, unique_by=lambda partial: partial.partition), st.randoms())
def test_the_sum_does_not_depend_on_the_order(parts: list[Partial], random: Random) -> None:
    """The sum of the partitions' counts has the same bits in any order."""
    shuffled = random.sample(parts, len(parts))
    assert total(shuffled) == total(parts)


@given(st.lists(additions, min_size=1, max_size=4))
def test_partitions_add_up_to_one(parts: list[list[tuple[str, int]]]) -> None:
    """The sum over partitions is what one partition with all the events would hold."""
    summed = total(snapshot(counted(pairs, PartialPopularity(number, HALF_LIFE))) for number, pairs in enumerate(parts))
    alone = snapshot(counted([pair for pairs in parts for pair in pairs], PartialPopularity(0, HALF_LIFE)))
    assert_alike(summed, total([alone]), len(parts))


def prior_of(events: list[Event]) -> dict[str, float]:
    """The prior after these events as two partitions count them, all records having the time `START_MS`."""
    states: dict[str, UserState] = {}
    partials = {partition: PartialPopularity(partition, HALF_LIFE) for partition in (0, 1)}
    for offset, event in enumerate(events):
        key = event.user_id.encode()
        decoded = decode_event(encode_event(event), key, latest_ts=START_MS + AHEAD_MS)
        if isinstance(decoded, BadEvent):
            continue
        partition = key[-1] % 2
        state = states.setdefault(event.user_id, empty_state(partition))
        if fold(state, decoded, partition, offset) is Outcome.FIRST_TOUCH:
            partials[partition].add(decoded.item_id, decoded.ts, offset)
    return total(snapshot(partial) for partial in partials.values())


AHEAD_MS = 86_400_000
any_time = st.integers(START_MS - 30 * AHEAD_MS, START_MS + 10**12)
kinds = st.sampled_from(("view", "view", "view", OPT_OUT, OPT_IN))


def events_of(users: str, items: int, most: int) -> st.SearchStrategy[list[Event]]:
    """Events of users with names like this, at any time."""
    event_fields = st.tuples(st.integers(0, 5), kinds, any_time, st.integers(0, items - 1))
    return st.lists(event_fields, max_size=most).map(
        lambda drawn: [
            Event(f"{users}{number}", f"{users}{user}", kind, ts, f"item-{item}" if kind == "view" else None)
            for number, (user, kind, ts, item) in enumerate(drawn)
        ]
    )


@given(events_of("honest", 6, 40), events_of("liar", 2, 30))
def test_events_move_no_other_item_by_more_than_as_many_users_could(honest: list[Event], lies: list[Event]) -> None:
    """Events of any times keep the others' ranks and give no item more than a user's worth each."""
    before, after = prior_of(honest), prior_of([*honest, *lies])
    others = [item for item in before if item not in {"item-0", "item-1"}]
    now = max(before.values(), default=0.0)
    for item_number in others:
        for other in others:
            if before[item_number] > 1.01 * before[other] + 1e-3:
                assert after.get(item_number, 0.0) >= after.get(other, 0.0) - 1e-5
    users_worth = len(lies) * 2.0 ** (AHEAD_MS / 1000 / HALF_LIFE)
    for item in ("item-0", "item-1"):
        assert after.get(item, 0.0) <= before.get(item, 0.0) + users_worth + 1e-3
    assert all(after.get(item, 0.0) <= now + 1e-3 for item in others)
