"""Bytes become an event or a reason why not, and nothing else."""

import msgspec
from freshet.core.events import (
    CONTROL_TYPES,
    DEFAULT_BEHAVIOURS,
    BadEvent,
    BadReason,
    Event,
    decode_event,
    encode_event,
)
from hypothesis import example, given
from hypothesis import strategies as st

from tests.properties.strategies import events

GOOD = {"event_id": "e1", "user_id": "u", "item_id": "i", "type": "view", "ts": 1_700_000_000_000}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
nearly_events = st.builds(
    lambda changed, dropped: msgspec.json.encode(
        {name: value for name, value in {**GOOD, **changed}.items() if name not in dropped}
    ),
    st.dictionaries(st.sampled_from([*GOOD, "amount", "session_id", "context"]), json_values, max_size=3),
    st.sets(st.sampled_from(list(GOOD)), max_size=1),
)
header_names = st.sampled_from(("ce_specversion", "ce_id", "ce_type", "ce_subject", "ce_time", "other"))
times = st.datetimes().map(lambda moment: moment.isoformat().encode())
header_values = st.none() | st.binary(max_size=40) | times | times.map(lambda raw: raw + b"Z")
headers = st.lists(st.tuples(header_names, header_values), max_size=5)
BARE = msgspec.json.encode({name: value for name, value in GOOD.items() if name != "ts"})
CLOUD = ("ce_specversion", b"1.0")


@given(
    st.none() | st.binary(max_size=200) | json_values.map(msgspec.json.encode) | nearly_events | st.just(BARE),
    st.none() | st.binary(max_size=10) | st.just(b"u"),
    headers,
)
@example(BARE, b"u", [CLOUD, ("ce_time", None)])
@example(BARE, b"u", [CLOUD, ("ce_time", b"0001-01-01T00:00:00")])
@example(BARE, b"u", [CLOUD, ("ce_time", b"9999-12-31T23:59:59-12:00")])
@example(b'{"context":' + b'{"a":' * 10_000 + b"}" * 10_001, b"u", [])
@example(b'{"context":' + b'{"a":' * 10_000 + b"}" * 10_001, b"u", [CLOUD])
@example(b'{"event_id":"\\ud800"}', b"u", [])
def test_decoding_never_raises(value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
    """Any value, key and headers decode to an event or to a `BadEvent` with a sentence."""
    decoded = decode_event(value, key, DEFAULT_BEHAVIOURS, headers)
    if isinstance(decoded, BadEvent):
        assert decoded.reason in BadReason
        assert decoded.detail
    else:
        assert decoded.user_id.encode() == key
        assert decoded.type in CONTROL_TYPES or (decoded.type in DEFAULT_BEHAVIOURS and decoded.item_id)


@given(events)
def test_events_survive_the_codec(event: Event) -> None:
    """Decoding an encoded event under the user's key gives the same event."""
    assert decode_event(encode_event(event), event.user_id.encode()) == event


@given(events, st.binary(max_size=20))
def test_only_the_users_own_key_is_taken(event: Event, key: bytes) -> None:
    """An event under another user's key is refused."""
    decoded = decode_event(encode_event(event), key)
    assert (decoded == event) == (key == event.user_id.encode())
