"""Events, case by case."""

import msgspec
import pytest
from freshet.core.events import CONTROL_TYPES, MAX_EVENT_BYTES, BadEvent, BadReason, Event, decode_event, encode_event

GOOD = {"event_id": "e1", "user_id": "u", "item_id": "i", "type": "click", "ts": 1_700_000_000_000}
SPEC = ("ce_specversion", b"1.0")

NOW = 1_700_000_000_000


def body(**changes: object) -> bytes:
    """A good event's JSON with changes; None drops a field."""
    return msgspec.json.encode({name: value for name, value in {**GOOD, **changes}.items() if value is not None})


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (None, b"u", BadReason.EMPTY),
        (b"", b"u", BadReason.EMPTY),
        (body(context={"x": "y" * MAX_EVENT_BYTES}), b"u", BadReason.TOO_LARGE),
        (b"{", b"u", BadReason.NOT_JSON),
        (b"\xff\xfe", b"u", BadReason.NOT_JSON),
        (b'{"event_id": NaN}', b"u", BadReason.NOT_JSON),
        (body(event_id=None), b"u", BadReason.INVALID),
        (body(event_id=""), b"u", BadReason.INVALID),
        (body(event_id="a\x1fb"), b"u", BadReason.INVALID),
        (body(item_id="a\x1fb"), b"u", BadReason.INVALID),
        (body(user_id="u" * 257), b"u" * 257, BadReason.INVALID),
        (body(ts=1_700_000_000), b"u", BadReason.INVALID),
        (body(ts="2024-01-01"), b"u", BadReason.INVALID),
        (body(amount=-1), b"u", BadReason.INVALID),
        (b"[1, 2]", b"u", BadReason.INVALID),
        (body(type="like"), b"u", BadReason.UNKNOWN_TYPE),
        (body(type="user.unknown"), b"u", BadReason.UNKNOWN_TYPE),
        (body(item_id=None), b"u", BadReason.MISSING_ITEM),
        (body(), None, BadReason.KEY_MISMATCH),
        (body(), b"v", BadReason.KEY_MISMATCH),
    ],
)
def test_bad_input_has_its_reason(value: bytes | None, key: bytes | None, reason: BadReason) -> None:
    """Each kind of bad record decodes to its own reason."""
    decoded = decode_event(value, key)
    assert isinstance(decoded, BadEvent)
    assert decoded.reason is reason


def test_unknown_fields_are_dropped() -> None:
    """Decoding drops fields that an event does not have."""
    assert decode_event(body(colour="red"), b"u") == decode_event(body(), b"u")


def test_control_events_need_no_item() -> None:
    """An opt-out needs a user and no item."""
    decoded = decode_event(body(type="user.opt_out", item_id=None), b"u")
    assert isinstance(decoded, Event)


def test_behaviours_are_open() -> None:
    """An event's type is good exactly when the settings weigh it."""
    assert isinstance(decode_event(body(type="listen"), b"u", {"listen": 1.0}), Event)
    assert isinstance(decode_event(body(), b"u", {"listen": 1.0}), BadEvent)


def test_cloudevent_headers_fill_what_the_body_leaves_out() -> None:
    """CloudEvent headers fill id, type, item and time where the body leaves them out."""
    time = b"2024-01-01T00:00:00.001Z"
    headers = [SPEC, ("ce_id", b"c1"), ("ce_type", b"view"), ("ce_subject", b"u"), ("ce_time", time)]
    decoded = decode_event(b'{"item_id":"i"}', b"u", headers=headers)
    assert decoded == Event(event_id="c1", user_id="u", type="view", ts=1_704_067_200_001, item_id="i")


def test_the_body_wins_over_cloudevent_headers() -> None:
    """A field in the JSON body wins over a CloudEvent header."""
    headers = [SPEC, ("ce_id", b"other"), ("ce_type", b"view"), ("ce_time", b"1999-01-01T00:00:00Z")]
    assert decode_event(body(), b"u", headers=headers) == decode_event(body(), b"u")


def test_headers_mean_nothing_without_the_specversion() -> None:
    """Headers named like CloudEvents' are ignored without `ce_specversion`."""
    decoded = decode_event(body(event_id=None), b"u", headers=[("ce_id", b"c1")])
    assert isinstance(decoded, BadEvent)


def test_a_cloudevent_time_needs_a_zone() -> None:
    """A CloudEvent time without a zone is refused."""
    decoded = decode_event(body(ts=None), b"u", headers=[SPEC, ("ce_time", b"2024-01-01T00:00:00")])
    assert isinstance(decoded, BadEvent)
    assert decoded.reason is BadReason.INVALID


def test_a_header_without_value_is_no_attribute() -> None:
    """A header whose value is null is no attribute."""
    assert decode_event(body(), b"u", headers=[SPEC, ("ce_time", None)]) == decode_event(body(), b"u")


def test_absent_fields_are_not_written() -> None:
    """The encoded JSON leaves absent fields out."""
    assert msgspec.json.decode(encode_event(msgspec.convert(GOOD, Event))) == GOOD


@pytest.mark.parametrize(("late", "taken"), [(0, True), (1, False), (10**12, False)])
def test_an_event_of_a_time_to_come_has_its_reason(late: int, taken: bool) -> None:
    """An event dated beyond its record's time and the margin is refused, by the millisecond."""
    raw = encode_event(Event("e", "u", "view", NOW + late, "i"))
    event = decode_event(raw, b"u", latest_ts=NOW)
    assert isinstance(event, Event) == taken
    assert taken or event.reason is BadReason.AHEAD_OF_TIME


@pytest.mark.parametrize("kind", sorted(CONTROL_TYPES))
def test_what_a_user_asks_for_is_never_refused_for_its_time(kind: str) -> None:
    """A withdrawal dated ahead is taken, at the latest time that its record allows."""
    raw = encode_event(Event("e", "u", kind, NOW + 10**12))
    assert decode_event(raw, b"u", latest_ts=NOW) == Event("e", "u", kind, NOW)
