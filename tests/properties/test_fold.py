"""The fold is a function of the log, however often and in whatever pieces it is read."""

from collections.abc import Sequence
from random import Random

from freshet.core.events import CONTROL_TYPES, MAX_BEHAVIOURS, MAX_ID_LENGTH, MAX_TS_MS, Event
from freshet.core.fold_run import OpenState, fold_run
from freshet.core.state import (
    EVENT_IDS,
    HISTORY,
    LOG_CHARS,
    MAX_STATE_BYTES,
    SEEN,
    Consent,
    Outcome,
    UserState,
    decode_state,
    empty_state,
    encode_state,
    fold,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties.strategies import PARTITION, START_MS, Entry, logs, split, states

Table = dict[str, bytes]


def apply(table: Table, entries: Sequence[Entry]) -> list[Outcome]:
    """Fold entries into a table of encoded states, as a worker does with a run."""
    outcomes = []
    for entry in entries:
        user = entry.event.user_id
        state = decode_state(table[user]) if user in table else empty_state(PARTITION)
        outcomes.append(fold(state, entry.event, PARTITION, entry.offset))
        table[user] = encode_state(state)
    return outcomes


def whole(log: Sequence[Entry]) -> Table:
    """The table after the log was read once."""
    table: Table = {}
    apply(table, log)
    return table


@given(logs, st.randoms(use_true_random=False))
def test_redelivery_at_any_cut_changes_nothing(log: list[Entry], random: Random) -> None:
    """Reading again from any earlier position, any number of times, ends in the same states."""
    table: Table = {}
    committed = reached = 0
    while reached < len(log):
        end = min(len(log), committed + random.randint(1, 60))
        apply(table, log[committed:end])
        reached = max(reached, end)
        if random.random() < 0.7:  # else the worker crashed before it could commit
            committed = random.randint(committed, end)
    apply(table, log[committed:])
    assert table == whole(log)


@given(logs, st.integers(0, 299))
def test_a_second_reading_is_told_apart(log: list[Entry], start: int) -> None:
    """Every event that is read again is reported as redelivered."""
    table = whole(log)
    assert set(apply(table, log[min(start, len(log) - 1) :])) == {Outcome.REDELIVERED}


@given(logs, st.randoms(use_true_random=False))
def test_an_event_produced_twice_counts_once(log: list[Entry], random: Random) -> None:
    """A producer's duplicate moves the position alone while its id is in the ring."""
    once, twice = empty_state(PARTITION), empty_state(PARTITION)
    folded: list[Event] = []
    offset = 0
    for entry in log:
        if entry.event.type in CONTROL_TYPES or entry.event.event_id in {event.event_id for event in folded}:
            continue
        for event in (entry.event, *random.choices([*folded[-EVENT_IDS + 1 :], entry.event], k=random.randint(0, 2))):
            outcome = fold(twice, event, PARTITION, offset)
            assert (outcome is Outcome.DUPLICATE) == (event in folded)
            if event not in folded:
                folded.append(event)
                fold(once, event, PARTITION, offset)
            offset += 1
    once.offset = twice.offset
    assert encode_state(twice) == encode_state(once)


@given(logs)
def test_a_state_keeps_its_bounds(log: list[Entry]) -> None:
    """A state keeps its limits and the equal length of its lists over any history."""
    for raw in whole(log).values():
        state = decode_state(raw)
        assert len(state.items) == len(state.types) == len(state.times) <= HISTORY
        assert len(split(state.event_id_log)) <= EVENT_IDS
        assert len(state.seen) <= SEEN
        assert len(set(state.seen)) == len(state.seen)


@given(logs)
def test_feature_time_rises_with_every_change(log: list[Entry]) -> None:
    """Every changed state has a greater feature timestamp, whatever the events' times."""
    states: dict[str, UserState] = {}
    for entry in log:
        state = states.setdefault(entry.event.user_id, empty_state(PARTITION))
        before = state.feature_ts
        outcome = fold(state, entry.event, PARTITION, entry.offset)
        if outcome in (Outcome.APPLIED, Outcome.FIRST_TOUCH):
            assert state.feature_ts > before
            assert state.feature_ts >= entry.event.ts * 1000
        else:
            assert state.feature_ts == before


@given(logs)
def test_a_user_without_consent_has_no_profile(log: list[Entry]) -> None:
    """A state holds nothing of the behaviour between an opt-out or erasure and an opt-in."""
    for raw in whole(log).values():
        state = decode_state(raw)
        if state.consent is not Consent.GIVEN:
            held = (state.items, state.types, state.times, state.seen, state.counts, state.spend)
            assert not any(held)
            assert state.folded == state.last_ts == 0
            assert len(split(state.event_id_log)) <= 1  # an opt-out's own


@given(states())
def test_states_survive_the_codec(state: UserState) -> None:
    """Decoding an encoded state gives the same state."""
    assert decode_state(encode_state(state)) == state


@given(states())
def test_equal_states_have_equal_bytes(state: UserState) -> None:
    """Equal states have equal bytes."""
    assert encode_state(decode_state(encode_state(state))) == encode_state(state)


@given(logs, st.integers(1, HISTORY + 5), st.randoms(use_true_random=False))
def test_an_open_state_folds_the_same(log: list[Entry], history: int, random: Random) -> None:
    """An open state ends byte for byte as a closed state, with redeliveries included."""
    closed, state = empty_state(PARTITION), empty_state(PARTITION + random.randint(0, 1))
    closed.partition = state.partition
    while log:
        size = random.randint(1, 60)
        opened = OpenState(state)
        for entry in log[:size]:
            outcome = opened.fold(entry.event, PARTITION, entry.offset, history)
            assert outcome is fold(closed, entry.event, PARTITION, entry.offset, history)
        assert encode_state(opened.close()) == encode_state(closed)
        log = log[random.randint(1, size) :]


@given(st.integers(0, 9), st.integers(1, 5))
def test_an_open_state_forgets_the_same_items(seed: int, history: int) -> None:
    """An open state forgets the same seen items as a closed state."""
    random = Random(seed)
    items = [f"item-{random.choice((number, random.randrange(number + 1)))}" for number in range(2 * SEEN)]
    closed, opened = empty_state(PARTITION), OpenState(empty_state(PARTITION))
    for number, item in enumerate(items):
        event = Event(f"e{number}", "ann", "view", START_MS, item)
        assert opened.fold(event, PARTITION, number, history) is fold(closed, event, PARTITION, number, history)
    assert len(closed.seen) == SEEN
    assert encode_state(opened.close()) == encode_state(closed)


def wide_log(seed: int) -> list[Entry]:
    """A log of a user whose ids and types have any width, up to the widest that an event may have."""
    random = Random(seed)
    letter, longest = random.choice("a\u754c\U0001f600"), random.choice((20, 100, MAX_ID_LENGTH))

    def name(number: int, longest: int) -> str:
        return f"{number}{letter * longest}"[: random.randint(5, longest)]

    return [
        Entry(
            number,
            Event(
                name(number, MAX_ID_LENGTH),
                "ann",
                name(10_000 + random.randrange(MAX_BEHAVIOURS), 64)[:5] + letter * 59,
                MAX_TS_MS,
                name(random.randrange(3000), longest),
                1e12,
            ),
        )
        for number in range(2500)
    ]


@settings(max_examples=8)
@given(st.integers(0, 99), st.sampled_from((1, HISTORY, 1000)))
def test_a_state_fits_into_a_record_of_the_changelog(seed: int, history: int) -> None:
    """A state folded in any batches, open or closed, has the same bytes within the bound."""
    log, random = wide_log(seed), Random(seed)
    closed, opened = empty_state(PARTITION), empty_state(PARTITION)
    reached = 0
    while reached < len(log):
        entries = log[reached : reached + random.randint(1, 600)]
        reached += len(entries)
        batch = [(PARTITION, entry, entry.event) for entry in entries]
        fold_run({"ann": opened}, {"ann": len(entries)}, batch, history)
        for entry in entries:
            fold(closed, entry.event, PARTITION, entry.offset, history)
        assert encode_state(opened) == encode_state(closed)
        assert len(encode_state(closed)) <= MAX_STATE_BYTES


def test_the_widest_state_is_close_to_its_bound() -> None:
    """A state with the widest ids keeps its newest event and all event ids, and is full."""
    state = empty_state(PARTITION)
    for number in range(1000):
        wide = f"{number}".ljust(MAX_ID_LENGTH, "\U0001f600")
        fold(state, Event(wide, "ann", "\U0001f600" * 64, MAX_TS_MS, wide), PARTITION, number, 1000)
        assert state.items[-1] == wide
    assert MAX_STATE_BYTES * 0.8 < len(encode_state(state)) <= MAX_STATE_BYTES
    assert len(state.event_ids) == EVENT_IDS
    assert state.full
    assert state.length == len(state.types) == len(state.times) < 1000


def test_ordinary_ids_are_not_cut() -> None:
    """A state keeps 1,000 events with ids of 64 characters and every seen item."""
    state = empty_state(PARTITION)
    for number in range(1000 + SEEN):
        fold(state, Event(f"{number:064}", "ann", "purchase", MAX_TS_MS, f"{number:064}"), PARTITION, number, 1000)
    assert (state.length, len(state.seen)) == (1000, SEEN)
    assert len(state.item_log) < LOG_CHARS
    assert not state.full
