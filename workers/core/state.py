"""A user's state and the fold: `(state, event) → state`.

The fold is the only thing that changes a state. It is a pure function of the
log: it skips what the state has already seen, by offset (redelivery) and by
event id (a producer's duplicates), so folding any overlapping cut of the same
partition gives the same state.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from workers.core.events import CONTROL_TYPES, ERASE, ID_SEPARATOR, OPT_IN, OPT_OUT, Event

HISTORY = 50
"""Recent events kept per user, and the encoder's input length."""
SEEN = 500
"""Distinct items older than the history that are still filtered as seen."""
EVENT_IDS = 32
"""Recent event ids kept per user to recognise a producer's duplicates."""


class Consent(IntEnum):
    """What the user allows."""

    GIVEN = 0
    OPTED_OUT = 1
    ERASED = 2


@dataclass(slots=True)
class UserState:
    """All that is known of one user, as of `offset` of `partition`.

    `items`, `types` and `times` are parallel, oldest first, in log order, at most
    `HISTORY` long; `times` are event times in ms. `seen` are distinct items
    that fell out of `items`, at most `SEEN`. `feature_ts` is the strictly
    increasing timestamp in µs under which features are written to the online
    store, which drops equal or older ones. `folded` counts the events applied.
    """

    partition: int
    offset: int
    event_ids: list[str]
    items: list[str]
    types: list[str]
    times: array[int]
    seen: list[str]
    counts: dict[str, int]
    spend: dict[str, float]
    last_ts: int
    feature_ts: int
    folded: int
    consent: Consent = Consent.GIVEN


class Outcome(IntEnum):
    """What a fold did with an event."""

    APPLIED = 0
    FIRST_TOUCH = 1
    """Applied, and the user's first event on this item as far as the state remembers."""
    REDELIVERED = 2
    DUPLICATE = 3
    IGNORED = 4
    """Valid, but the user has opted out or was erased: only the position moves."""


def empty_state(partition: int) -> UserState:
    """The state of a user nothing is known of."""
    return UserState(partition, -1, [], [], [], array("q"), [], {}, {}, 0, 0, 0)


def fold(state: UserState, event: Event, partition: int, offset: int) -> Outcome:
    """Fold `event`, read at `offset` of `partition`, into `state` in place.

    The caller owns `state` (it has just been decoded from the table), so no
    copy is made. Returns what was done. A state last written under another
    partition (the topic was re-partitioned) has no comparable offset; the event
    ids still protect it.
    """
    if partition == state.partition:
        if offset <= state.offset:
            return Outcome.REDELIVERED
    else:
        state.partition = partition
    state.offset = offset
    event_id = event.event_id
    if event_id in state.event_ids:
        return Outcome.DUPLICATE
    if event.type in CONTROL_TYPES:
        _fold_control(state, event)
        return Outcome.APPLIED
    if state.consent:
        return Outcome.IGNORED
    _remember_id(state, event_id)
    state.folded += 1
    if event.ts > state.last_ts:
        state.last_ts = event.ts
    state.feature_ts = max(event.ts * 1000, state.feature_ts + 1)
    kind = event.type
    state.counts[kind] = state.counts.get(kind, 0) + 1
    if event.amount is not None:
        state.spend[kind] = state.spend.get(kind, 0.0) + event.amount
    item = event.item_id or ""
    items = state.items
    first = item not in items and item not in state.seen
    items.append(item)
    state.types.append(kind)
    state.times.append(event.ts)
    if len(items) > HISTORY:
        dropped = items.pop(0)
        del state.types[0], state.times[0]
        if dropped not in items:
            seen = state.seen
            if dropped in seen:
                seen.remove(dropped)
            seen.append(dropped)
            if len(seen) > SEEN:
                del seen[0]
    return Outcome.FIRST_TOUCH if first else Outcome.APPLIED


def _remember_id(state: UserState, event_id: str) -> None:
    ids = state.event_ids
    ids.append(event_id)
    if len(ids) > EVENT_IDS:
        del ids[0]


def _fold_control(state: UserState, event: Event) -> None:
    """Opting out and erasing forget the profile; only opting in lifts either.

    The position and a strictly increasing `feature_ts` stay: without them an
    older event could bring the profile back.
    """
    state.feature_ts = max(event.ts * 1000, state.feature_ts + 1)
    if event.type == OPT_IN:
        state.consent = Consent.GIVEN
        _remember_id(state, event.event_id)
        return
    state.consent = Consent.ERASED if event.type == ERASE else max(state.consent, Consent.OPTED_OUT)
    for held in (state.event_ids, state.items, state.types, state.times, state.seen):
        del held[:]
    state.counts.clear()
    state.spend.clear()
    state.last_ts = 0
    state.folded = 0
    if event.type == OPT_OUT:
        _remember_id(state, event.event_id)


class _Stored(msgspec.Struct, array_like=True, gc=False):
    """A state as stored: string lists are joined, which decodes 6 × faster than 130 short strings."""

    partition: int
    offset: int
    event_ids: str
    items: str
    types: str
    times: bytes
    seen: str
    counts: dict[str, int]
    spend: dict[str, float]
    last_ts: int
    feature_ts: int
    folded: int
    consent: Consent


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


def encode_state(state: UserState) -> bytes:
    """The state as stored in the table and its changelog (MessagePack array)."""
    return _encoder.encode(
        _Stored(
            state.partition,
            state.offset,
            ID_SEPARATOR.join(state.event_ids),
            ID_SEPARATOR.join(state.items),
            ID_SEPARATOR.join(state.types),
            state.times.tobytes(),
            ID_SEPARATOR.join(state.seen),
            state.counts,
            state.spend,
            state.last_ts,
            state.feature_ts,
            state.folded,
            state.consent,
        )
    )


def decode_state(raw: bytes) -> UserState:
    """Inverse of `encode_state`. Raises `msgspec.DecodeError` on foreign bytes."""
    stored = _decoder.decode(raw)
    return UserState(
        stored.partition,
        stored.offset,
        _split(stored.event_ids),
        _split(stored.items),
        _split(stored.types),
        array("q", stored.times),
        _split(stored.seen),
        stored.counts,
        stored.spend,
        stored.last_ts,
        stored.feature_ts,
        stored.folded,
        stored.consent,
    )


def _split(joined: str) -> list[str]:
    return joined.split(ID_SEPARATOR) if joined else []
