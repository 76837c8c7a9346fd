"""User events: what one is, and how bytes become one.

An event is JSON in UTF-8. Bad bytes are a value (`BadEvent`), never an
exception: the stream goes on and the record becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import msgspec

from freshet.core.decoding import Undecodable, decode

MAX_EVENT_BYTES = 65_536
MAX_ID_LENGTH = 256
MAX_BEHAVIOURS = 100
"""Most behaviour types: a user's state counts each."""
ID_SEPARATOR = "\x1f"
"""ASCII's unit separator; no id holds it, so ids can be stored joined."""
MIN_TS_MS = 100_000_000_000  # 1973-03-03: anything smaller was written in seconds
MAX_TS_MS = 4_102_444_800_000  # 2100-01-01

OPT_OUT = "user.opt_out"
OPT_IN = "user.opt_in"
ERASE = "user.erase"
VISIT = "user.visit"
"""A user is here and wants a list: no behaviour, and no item is needed."""
CONTROL_TYPES = frozenset({OPT_OUT, OPT_IN, ERASE, VISIT})

DEFAULT_BEHAVIOURS: Mapping[str, float] = {"view": 1.0, "click": 2.0, "purchase": 4.0}
"""Behaviour types and their weights; a setting, open to any name."""

Weight = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
"""Of a behaviour type, or of what is added to a score; the upper bound keeps infinity out."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
Digits = Annotated[str, msgspec.Meta(pattern="^[0-9]+$")]


class Event(msgspec.Struct, frozen=True, gc=False):
    """Something that a user did, or asked for: a record of the events topic, keyed by user id.

    Unknown fields are dropped.

    Attributes:
        event_id: Names the event. A second event of the same id is not folded again.
        user_id: The user; the record's key in UTF-8.
        type: A behaviour type of the settings (`view`, `click` and `purchase` by default), or `user.visit`,
            `user.opt_out`, `user.opt_in` or `user.erase`.
        ts: When it happened, ms since the Unix epoch.
        item_id: The item; every behaviour needs it.
        amount: What was spent, in the shop's own currency.
        session_id: The visit. The log keeps it; no list depends on it.
        context: Anything else, such as the `recommendation_id` of the list that was shown. The log keeps it.
    """

    event_id: Id
    user_id: Id
    type: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    ts: Annotated[int, msgspec.Meta(ge=MIN_TS_MS, le=MAX_TS_MS)]
    item_id: Id | None = None
    amount: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None
    session_id: Id | None = None
    context: dict[str, Any] | None = None


class Unreadable(bytes):
    """The value of a record that stands for what cannot be read of a batch: the bytes say why.

    `end` is the offset after the last record of the batch.
    """

    end: int

    def __new__(cls, why: str, end: int) -> Self:
        """Make the value."""
        value = super().__new__(cls, why.encode(errors="backslashreplace"))
        value.end = end
        return value


class BadReason(StrEnum):
    """Why a record became a dead letter; the `reason` header of `events.dlq`."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    INVALID = "invalid"
    UNKNOWN_TYPE = "unknown_type"
    MISSING_ITEM = "missing_item"
    KEY_MISMATCH = "key_mismatch"
    UNREADABLE = "unreadable"
    AHEAD_OF_TIME = "ahead_of_time"

    @property
    def words(self) -> str:
        """As a person reads it."""
        return self.value.replace("_", " ")


class DeadLetterHeaders(msgspec.Struct, frozen=True):
    """Headers of a dead letter, a record of the dead-letter topic; its key, value and other headers are the record's.

    Attributes:
        reason: Why the record is no event.
        detail: The same in a sentence, at most 500 bytes.
        origin_topic: The topic that the record was read from.
        origin_partition: The partition, in decimal digits.
        origin_offset: The offset, in decimal digits.
        sha256: SHA-256 of the value, in hexadecimal digits.
        truncated: "true" where key, value or headers of the record are cut or left out.
        origin_size: The size in bytes that a cut value had, in decimal digits.
        origin_end: The offset after the last record of an unreadable batch, in decimal digits.
    """

    reason: BadReason
    detail: str
    origin_topic: str
    origin_partition: Digits
    origin_offset: Digits
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    truncated: Literal["true"] | None = None
    origin_size: Digits | None = None
    origin_end: Digits | None = None


DEAD_LETTER_HEADERS = DeadLetterHeaders.__struct_fields__
"""Names of the headers, in their order."""


class BadEvent(msgspec.Struct, frozen=True):
    """A record that is no event, and why."""

    reason: BadReason
    detail: str


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZonedTime = Annotated[datetime, msgspec.Meta(tz=True)]
"""CloudEvents times are RFC 3339: one without a zone would mean another moment on another machine."""

_decoder = msgspec.json.Decoder(Event)
_body_decoder = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()


def wrong_behaviours(behaviours: Collection[str]) -> str:
    """What is wrong with the behaviour types of some settings, in a sentence; empty where nothing is."""
    if not behaviours or CONTROL_TYPES & set(behaviours):
        return f"behaviours: name at least one type, and none of {', '.join(sorted(CONTROL_TYPES))}"
    if len(behaviours) > MAX_BEHAVIOURS:
        return f"behaviours: {len(behaviours)} types, at most {MAX_BEHAVIOURS}"
    return ""


def decode_event(
    value: bytes | None,
    key: bytes | None,
    behaviours: Collection[str] = DEFAULT_BEHAVIOURS,
    headers: Collection[tuple[str, bytes | None]] = (),
    latest_ts: int = MAX_TS_MS,
) -> Event | BadEvent:
    """Decode one record of the events topic.

    `key` must be the user id in UTF-8, for a user's events share a partition
    only if they share a key. CloudEvents binary-mode headers (`ce_id`,
    `ce_type`, `ce_time`; CloudEvents Kafka protocol binding 1.0.2) fill fields
    that the JSON body leaves out.

    An event's `ts` may be `latest_ts` (ms) at most: the record's own time and a
    margin. Behind it popularity, which decays by event time, would count one
    event for more than all others. The record's time is the broker's on a topic
    with `LogAppendTime`, as `freshet up` makes it. With `CreateTime` the producer
    sets it, and the broker bounds it (`message.timestamp.after.max.ms`, an hour).
    The wall clock would do for a worker alone: a replay must decide as the worker
    did. What a user asks for (`CONTROL_TYPES`) is never refused for its time: its
    `ts` is set back to `latest_ts`.
    """
    if not value:
        return BadEvent(BadReason.EMPTY, "the record has no value")
    if isinstance(value, Unreadable):
        return BadEvent(BadReason.UNREADABLE, value.decode())
    if len(value) > MAX_EVENT_BYTES:
        return BadEvent(BadReason.TOO_LARGE, f"{len(value)} bytes, at most {MAX_EVENT_BYTES}")
    if headers and _is_cloudevent(headers):  # noqa: SIM108 - in one expression mypy takes another type for `decode`
        event = _from_cloudevent(value, headers)
    else:
        event = decode(_decoder, value)
    if isinstance(event, Undecodable):
        return BadEvent(BadReason.INVALID if event.well_formed else BadReason.NOT_JSON, event.why)
    refused = _refused(event, key, behaviours)
    if refused is not None:
        return refused
    return event if event.ts <= latest_ts else _ahead_of_time(event, latest_ts)


def _ahead_of_time(event: Event, latest_ts: int) -> Event | BadEvent:
    if event.type in CONTROL_TYPES:
        return msgspec.structs.replace(event, ts=max(MIN_TS_MS, latest_ts))
    ahead = (event.ts - latest_ts) / 1000
    return BadEvent(BadReason.AHEAD_OF_TIME, f"ts is {ahead:,.0f} s later than the record's time allows (event_ahead)")


def _refused(event: Event, key: bytes | None, behaviours: Collection[str]) -> BadEvent | None:
    """What a well-formed event still gets wrong."""
    if event.type not in behaviours and event.type not in CONTROL_TYPES:
        return BadEvent(BadReason.UNKNOWN_TYPE, f"{event.type!r} is none of {sorted({*behaviours, *CONTROL_TYPES})}")
    if event.item_id is None and event.type in behaviours:
        return BadEvent(BadReason.MISSING_ITEM, f"a {event.type!r} event needs an item_id")
    if ID_SEPARATOR in event.event_id or (event.item_id is not None and ID_SEPARATOR in event.item_id):
        return BadEvent(BadReason.INVALID, "an id holds the control character U+001F")
    if key is None or event.user_id.encode(errors="surrogatepass") != key:
        return BadEvent(BadReason.KEY_MISMATCH, "the record's key is not its user_id")
    return None


def encode_event(event: Event) -> bytes:
    """The JSON bytes of an event; absent optional fields are left out."""
    fields = {name: value for name in event.__struct_fields__ if (value := getattr(event, name)) is not None}
    return _encoder.encode(fields)


def _is_cloudevent(headers: Collection[tuple[str, bytes | None]]) -> bool:
    return any(name == "ce_specversion" for name, _ in headers)


def _from_cloudevent(value: bytes, headers: Collection[tuple[str, bytes | None]]) -> Event | Undecodable:
    body = decode(_body_decoder, value)
    if isinstance(body, Undecodable):
        return body
    try:
        return _filled(body, {name: raw.decode() for name, raw in headers if name.startswith("ce_") and raw})
    except UnicodeDecodeError as error:
        return Undecodable(f"a ce_ header is not UTF-8: {error}")
    except msgspec.ValidationError as error:
        return Undecodable(str(error), well_formed=True)


def _filled(body: dict[str, Any], attributes: Mapping[str, str]) -> Event:
    """The event of a body whose missing fields a CloudEvent's attributes fill. Raises `msgspec.ValidationError`."""
    if "ce_id" in attributes:
        body.setdefault("event_id", attributes["ce_id"])
    if "ce_type" in attributes:
        body.setdefault("type", attributes["ce_type"])
    if "ce_subject" in attributes:
        body.setdefault("user_id", attributes["ce_subject"])
    if "ce_time" in attributes and "ts" not in body:
        moment = msgspec.convert(attributes["ce_time"], type=_ZonedTime)
        body["ts"] = (moment - _EPOCH) // timedelta(milliseconds=1)
    return msgspec.convert(body, type=Event)
