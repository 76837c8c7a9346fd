"""The fold, case by case."""

import msgspec
import pytest
from freshet.core.events import ERASE, ID_SEPARATOR, OPT_IN, OPT_OUT, VISIT, Event
from freshet.core.state import (
    EVENT_IDS,
    HISTORY,
    SEEN,
    Consent,
    Outcome,
    UserState,
    decode_state,
    empty_state,
    encode_state,
    fold,
    sound_state,
)

NOW = 1_700_000_000_000


def event(number: int, kind: str = "view", item: str | None = None, **fields: object) -> Event:
    """The event number `number` of a user."""
    item_id = None if kind.startswith("user.") else item or f"i{number}"
    given = {"event_id": f"e{number}", "ts": NOW + number, **fields}
    return Event(user_id="u", type=kind, item_id=item_id, **given)


def folded(*events: Event) -> UserState:
    """The state after these events at the offsets from 0 on."""
    state = empty_state(0)
    for offset, event in enumerate(events):
        fold(state, event, 0, offset)
    return state


def test_an_event_is_remembered_whole() -> None:
    """Folding takes the event's item, type, time, count, spend and position."""
    state = folded(event(1), event(2, "purchase", amount=9.5))
    assert state.items == ["i1", "i2"]
    assert state.types == ["view", "purchase"]
    assert list(state.times) == [NOW + 1, NOW + 2]
    assert state.counts == {"view": 1, "purchase": 1}
    assert state.spend == {"purchase": 9.5}
    assert (state.offset, state.folded, state.last_ts) == (1, 2, NOW + 2)


def test_outcomes_are_told() -> None:
    """Folding tells a first touch, a repeated touch, a redelivery and a producer's duplicate apart."""
    state = empty_state(0)
    assert fold(state, event(1, item="a"), 0, 5) is Outcome.FIRST_TOUCH
    assert fold(state, event(2, item="a"), 0, 6) is Outcome.APPLIED
    assert fold(state, event(2, item="a"), 0, 6) is Outcome.REDELIVERED
    assert fold(state, event(3), 0, 2) is Outcome.REDELIVERED
    assert fold(state, event(1, item="a"), 0, 7) is Outcome.DUPLICATE
    assert (state.offset, state.folded) == (7, 2)


def test_an_event_id_is_compared_whole() -> None:
    """An id that is part of a known id counts as another id."""
    state = folded(event(1, event_id="abc"))
    for number, event_id in enumerate(("ab", "bc", "b", "abcd"), 1):
        assert fold(state, event(number + 1, event_id=event_id), 0, number) is Outcome.FIRST_TOUCH


def test_an_item_is_compared_whole() -> None:
    """An item whose id is part of a seen id counts as new."""
    state = folded(event(1, item="item-11"))
    assert fold(state, event(2, item="item-1"), 0, 1) is Outcome.FIRST_TOUCH


def test_the_ring_of_event_ids_is_bounded() -> None:
    """An event id is recognised while it is among the last ids and forgotten after."""
    state = folded(*(event(number) for number in range(EVENT_IDS)))
    assert fold(state, event(0), 0, 100) is Outcome.DUPLICATE
    fold(state, event(EVENT_IDS), 0, 101)
    assert fold(state, event(0), 0, 102) is not Outcome.DUPLICATE


def test_items_leave_the_history_into_seen() -> None:
    """An item that leaves the history is kept as seen, once, and the oldest is dropped first."""
    total = HISTORY + SEEN + 7
    state = folded(*(event(number) for number in range(total)))
    assert state.items == [f"i{number}" for number in range(total - HISTORY, total)]
    assert state.seen == [f"i{number}" for number in range(7, total - HISTORY)]


def test_as_many_events_are_kept_as_is_asked() -> None:
    """A longer history keeps more events, and a shortened history drops events at the next event."""
    state = empty_state(0)
    for number in range(HISTORY + 10):
        fold(state, event(number), 0, number, HISTORY + 10)
    assert (state.length, len(state.items), state.seen) == (HISTORY + 10, HISTORY + 10, [])
    fold(state, event(HISTORY + 10), 0, HISTORY + 10, 5)
    assert state.items == [f"i{number}" for number in range(HISTORY + 6, HISTORY + 11)]
    assert state.times == [NOW + number for number in range(HISTORY + 6, HISTORY + 11)]
    assert state.seen == [f"i{number}" for number in range(HISTORY + 6)]


def test_an_item_in_the_history_does_not_leave_for_seen() -> None:
    """An old event leaves no trace in `seen` while a later event on its item is in the history."""
    state = folded(*(event(number, item="same") for number in range(HISTORY + 3)))
    assert state.items == ["same"] * HISTORY
    assert state.seen == []


def test_an_item_seen_again_becomes_the_newest_seen() -> None:
    """An item that comes back and leaves again becomes the newest of the seen items."""
    numbers = [0, *range(1, HISTORY + 1), 0, *range(HISTORY + 1, 2 * HISTORY + 1)]
    state = folded(*(event(at, item=f"i{number}") for at, number in enumerate(numbers)))
    assert state.seen[-1] == "i0"
    assert state.seen.count("i0") == 1


def test_late_events_keep_the_newest_time() -> None:
    """A late event is folded in log order, and the last event time stays."""
    state = folded(event(1), event(2, ts=NOW - 5000))
    assert list(state.times) == [NOW + 1, NOW - 5000]
    assert state.last_ts == NOW + 1
    assert state.feature_ts == (NOW + 1) * 1000 + 1


@pytest.mark.parametrize("kind", [OPT_OUT, ERASE])
def test_a_profile_is_forgotten(kind: str) -> None:
    """Opting out and erasing keep position and feature time, and nothing of the behaviour."""
    state = folded(event(1, "purchase", amount=3.0), event(2, kind), event(3))
    assert state.consent is (Consent.OPTED_OUT if kind == OPT_OUT else Consent.ERASED)
    assert not any((state.items, state.types, state.times, state.seen, state.counts, state.spend))
    assert (state.folded, state.last_ts, state.offset) == (0, 0, 2)
    assert state.feature_ts == (NOW + 2) * 1000
    raw = encode_state(state)
    assert b"i1" not in raw
    assert b"e1" not in raw


@pytest.mark.parametrize("kind", [OPT_OUT, ERASE])
def test_events_without_consent_are_ignored_until_opt_in(kind: str) -> None:
    """Events are ignored until an opt-in, and the touches before it are forgotten."""
    state = folded(event(1, kind))
    assert fold(state, event(2), 0, 1) is Outcome.IGNORED
    assert fold(state, event(3, OPT_IN), 0, 2) is Outcome.APPLIED
    assert fold(state, event(4), 0, 3) is Outcome.APPLIED
    assert state.items == ["i4"]


def test_a_visit_leaves_the_profile_as_it_is() -> None:
    """A visit moves the position and the feature time, and its id is known; nothing else of the state changes."""
    state = folded(event(1, "purchase", amount=3.0))
    before = decode_state(encode_state(state))
    visit = Event("v1", "u", VISIT, NOW + 5000, item_id="elsewhere")
    assert fold(state, visit, 0, 9) is Outcome.APPLIED
    assert fold(state, visit, 0, 9) is Outcome.REDELIVERED
    assert fold(state, visit, 0, 10) is Outcome.DUPLICATE
    before.offset, before.feature_ts = 10, (NOW + 5000) * 1000
    before.event_id_log += f"v1{ID_SEPARATOR}"
    assert state == before


@pytest.mark.parametrize("kind", [OPT_OUT, ERASE])
def test_what_is_older_than_a_withdrawal_changes_nothing_after_it(kind: str) -> None:
    """An opt-in and an event from before an opt-out or an erasure, delivered again after it, bring nothing back."""
    state = folded(event(1, OPT_IN), event(2), event(3, kind))
    consent = state.consent
    assert [fold(state, old, 0, 3 + number) for number, old in enumerate((event(1, OPT_IN), event(2)))] == [
        Outcome.IGNORED,
        Outcome.IGNORED,
    ]
    assert (state.consent, state.items) == (consent, [])
    assert fold(state, event(4, OPT_IN), 0, 5) is Outcome.APPLIED
    assert fold(state, event(2), 0, 6) is Outcome.IGNORED
    assert fold(state, event(5), 0, 7) is Outcome.APPLIED
    assert state.items == ["i5"]


@pytest.mark.parametrize("kind", [OPT_OUT, ERASE])
def test_a_visit_gives_no_consent(kind: str) -> None:
    """Who has opted out or was erased stays so by a visit."""
    state = folded(event(1, kind))
    consent = state.consent
    assert fold(state, event(2, VISIT), 0, 1) is Outcome.IGNORED
    assert (state.consent, state.offset, state.items) == (consent, 1, [])


def test_opting_out_does_not_lift_an_erasure() -> None:
    """An erased profile stays erased until an opt-in."""
    assert folded(event(1, ERASE), event(2, OPT_OUT)).consent is Consent.ERASED


def test_an_opt_out_sent_twice_does_not_undo_an_opt_in() -> None:
    """A producer's duplicate of an opt-out is recognised after the opt-in."""
    state = folded(event(1, OPT_OUT), event(2, OPT_IN), event(3))
    assert fold(state, event(1, OPT_OUT), 0, 3) is Outcome.DUPLICATE
    assert state.items == ["i3"]


def test_a_repartitioned_topic_starts_from_any_offset() -> None:
    """Offsets of another partition are not compared, and event ids still find duplicates."""
    state = empty_state(0)
    fold(state, event(1), 0, 900)
    assert fold(state, event(2), 7, 3) is Outcome.FIRST_TOUCH
    assert fold(state, event(1), 7, 4) is Outcome.DUPLICATE
    assert (state.partition, state.offset) == (7, 4)


def test_states_do_not_share_what_they_hold() -> None:
    """Folding into an empty state leaves another empty state empty."""
    folded(event(1, amount=2.0))
    assert encode_state(empty_state(0)) == encode_state(UserState(0))
    assert empty_state(0).counts == {}


def test_foreign_bytes_are_refused() -> None:
    """Decoding bytes that are no state raises an error."""
    for raw in (b"", b"junk", b"\x93\x01\x02\x03", b'{"partition":1}'):
        with pytest.raises(msgspec.DecodeError):
            decode_state(raw)


def test_whatever_stands_on_the_changelog_is_a_sound_state_or_none() -> None:
    """States of the fold are sound; those whose fields do not fit each other, or nowhere, are not."""
    state = folded(*(event(number, "purchase", amount=2.5) for number in range(60)))
    assert sound_state(encode_state(state)) == state
    assert sound_state(encode_state(folded(event(1), event(2, ERASE)))) == folded(event(1), event(2, ERASE))
    assert sound_state(encode_state(empty_state(0))) == empty_state(0)
    changes: list[dict[str, object]] = [
        {"time_log": b"1234567"},
        {"item_log": state.item_log[:-1]},
        {"type_log": "\x1fview\x1f"},
        {"event_id_log": ""},
        {"seen_log": "x"},
        {"counts": {"view": 2**63}},
        {"spend": {"view": float("nan")}},
        {"last_ts": -1},
        {"feature_ts": 2**62},
        {"offset": -2},
        {"consent": 7},
    ]
    for change in changes:
        assert isinstance(sound_state(encode_state(msgspec.structs.replace(state, **change))), str), change
    for damaged in (b"", b"{", b"\xc1", b"[" * 5000, encode_state(state)[:-3], b"\x91" * 5000):
        assert isinstance(sound_state(damaged), str)
