"""The popularity prior: distinct users, summable, restorable."""

from random import Random

import pytest
from freshet.core.events import CONTROL_TYPES
from freshet.core.popularity import Partial, PartialPopularity, decode_partial, encode_partial, total
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


def counted(pairs: list[tuple[str, int]], popularity: PartialPopularity, start: int = 0) -> PartialPopularity:
    """The popularity after these (item, event time) pairs."""
    for offset, (item, ts) in enumerate(pairs, start):
        popularity.add(item, ts, offset)
    return popularity


@given(logs)
def test_an_item_counts_its_distinct_users(log: list[Entry]) -> None:
    """However often users come back to an item, it counts each of them once."""
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
    assert popularity.snapshot().counts == {item: len(users) for item, users in fans.items()}


@given(additions)
def test_counts_halve_with_every_half_life(pairs: list[tuple[str, int]]) -> None:
    """Each user's weight is 2 to the minus age in half-lives, age counted from the newest event."""
    snapshot = counted(pairs, PartialPopularity(0, HALF_LIFE)).snapshot()
    newest = max((ts for _, ts in pairs), default=0)
    expected: dict[str, float] = {}
    for item, ts in pairs:
        expected[item] = expected.get(item, 0.0) + 2.0 ** ((ts - newest) / (HALF_LIFE * 1000))
    assert snapshot.ts == newest
    assert snapshot.counts == pytest.approx(expected, abs=1e-5)


@given(additions, additions)
def test_restoring_equals_continuing(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> None:
    """A worker that goes on from a published record counts like one that never stopped."""
    running = counted(before, PartialPopularity(0, HALF_LIFE))
    published = decode_partial(encode_partial(running.snapshot()))
    restored = PartialPopularity(0, HALF_LIFE, published)
    one = counted(after, running, len(before)).snapshot()
    other = counted(after, restored, len(before)).snapshot()
    assert (one.ts, one.offset) == (other.ts, other.offset)
    # a published count is rounded to 6 decimals, and grows by at most 64 half-lives of lateness
    assert other.counts == pytest.approx(one.counts, abs=1e-5)


@given(st.lists(partials, max_size=6, unique_by=lambda partial: partial.partition), st.randoms())
def test_the_sum_does_not_depend_on_the_order(parts: list[Partial], random: Random) -> None:
    """The partitions' counts add up to the same prior, bit by bit, in whatever order they came."""
    shuffled = random.sample(parts, len(parts))
    assert total(shuffled) == total(parts)


@given(st.lists(additions, min_size=1, max_size=4))
def test_partitions_add_up_to_one(parts: list[list[tuple[str, int]]]) -> None:
    """The sum over partitions is what one partition with all the events would hold."""
    summed = total(
        counted(pairs, PartialPopularity(number, HALF_LIFE)).snapshot() for number, pairs in enumerate(parts)
    )
    alone = counted([pair for pairs in parts for pair in pairs], PartialPopularity(0, HALF_LIFE)).snapshot()
    assert summed == pytest.approx(alone.counts, abs=1e-4)
