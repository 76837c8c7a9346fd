"""A user's state and the fold: `(state, event) → state`.

The fold is the only thing that changes a state. It is a pure function of the
log: it skips what the state has already seen, by offset (redelivery) and by
event id (a producer's duplicates), so folding any overlapping cut of the same
partition gives the same state.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

import msgspec

from freshet.core.decoding import Undecodable, decode
from freshet.core.events import (
    CONTROL_TYPES,
    ERASE,
    ID_SEPARATOR,
    MAX_ID_LENGTH,
    MAX_TS_MS,
    OPT_IN,
    OPT_OUT,
    VISIT,
    Event,
)

HISTORY = 50
"""Recent events kept per user unless the settings say otherwise; a model version reads the last of them."""
SEEN = 500
"""Distinct items older than the history that are still filtered as seen."""
EVENT_IDS = 32
"""Recent event ids kept per user to recognise a producer's duplicates."""
LOG_CHARS = 80_000
"""Most characters of a user's history (items and types), and of the seen items: 1,000 events with ids of 64."""
MAX_STATE_BYTES = 750_000
"""An encoded state is never larger. librdkafka and the broker take 1,000,000 bytes with key and headers.

Two sequences of `LOG_CHARS` at 4 bytes a character are 640,000 bytes. `EVENT_IDS` ids are 33,000, the times of 1,000
events 8,000, and counts and sums of `MAX_BEHAVIOURS` types 60,000.
"""


class Consent(IntEnum):
    """What the user allows."""

    GIVEN = 0
    OPTED_OUT = 1
    ERASED = 2


class UserState(msgspec.Struct, array_like=True, gc=False):
    """All that is known of one user, as of `offset` of `partition`.

    Sequences are kept joined, `␟a␟b␟` with `ID_SEPARATOR` for ␟, as they are
    stored: a fold then touches a few strings where it would make and join
    some 150. `items`, `types` and `times` read them as parallel lists, oldest
    first, in log order, at most as long as the fold keeps; times are event times in ms.
    `seen` are distinct items that fell out of `items`, at most `SEEN`.

    Both are bounded in characters too, so that a state fits into a record of the
    changelog (`MAX_STATE_BYTES`). Where the history is over `LOG_CHARS`, its
    oldest events go, and their items are among the seen ones. Where the seen
    items are over `LOG_CHARS`, the oldest go. Event ids are always kept.

    `feature_ts` is the strictly increasing timestamp in µs under which features
    are written to the online store, which drops older ones. `folded` counts
    the events applied. `withdrawn` says that the user opted out or was erased once. Which
    items they had touched before is forgotten, so nothing of theirs counts as a first
    touch again: who opts out and in a thousand times counts once for an item.
    `withdrawn_ts` is the event time of the last withdrawal in ms, 0 without one. An event
    or an opt-in of that time or of an earlier time is ignored: delivered again after the
    withdrawal, it would bring back what was forgotten.
    """

    partition: int
    offset: int = -1
    event_id_log: str = ID_SEPARATOR
    item_log: str = ID_SEPARATOR
    type_log: str = ID_SEPARATOR
    time_log: bytes = b""
    seen_log: str = ID_SEPARATOR
    counts: dict[str, int] = {}
    spend: dict[str, float] = {}
    last_ts: int = 0
    feature_ts: int = 0
    folded: int = 0
    consent: Consent = Consent.GIVEN
    withdrawn: bool = False
    withdrawn_ts: int = 0

    @property
    def items(self) -> list[str]:
        """The recent items."""
        return _split(self.item_log)

    @property
    def types(self) -> list[str]:
        """The behaviour types of the recent items."""
        return _split(self.type_log)

    @property
    def times(self) -> list[int]:
        """The event times of the recent items, ms."""
        return list(struct.unpack(f"<{self.length}q", self.time_log))

    @property
    def event_ids(self) -> list[str]:
        """The recent event ids."""
        return _split(self.event_id_log)

    @property
    def seen(self) -> list[str]:
        """Older distinct items."""
        return _split(self.seen_log)

    @property
    def length(self) -> int:
        """How many recent items there are."""
        return len(self.time_log) // 8

    @property
    def full(self) -> bool:
        """Whether the next event may find no room in `LOG_CHARS`, whatever number of events is to be kept."""
        room = LOG_CHARS - 2 * MAX_ID_LENGTH
        return len(self.item_log) + len(self.type_log) > room or len(self.seen_log) > room

    @property
    def newest_ts(self) -> int:
        """Event time of the newest of the recent items, ms; 0 where there is none."""
        return int.from_bytes(self.time_log[-8:], "little")


class Outcome(IntEnum):
    """What a fold did with an event."""

    APPLIED = 0
    FIRST_TOUCH = 1
    """Applied, and the user's first event on this item as far as the state remembers; never after a withdrawal."""
    REDELIVERED = 2
    DUPLICATE = 3
    IGNORED = 4
    """Valid, but the user has opted out or was erased, or had not yet when it happened: only the position moves."""


APPLIED, FIRST_TOUCH, REDELIVERED, DUPLICATE = (
    Outcome.APPLIED,
    Outcome.FIRST_TOUCH,
    Outcome.REDELIVERED,
    Outcome.DUPLICATE,
)
"""Members by themselves: looking one up costs a tenth of a microsecond, and the fold does so for every event."""


def empty_state(partition: int) -> UserState:
    """The state of a user nothing is known of."""
    return UserState(partition)


def fold(state: UserState, event: Event, partition: int, offset: int, history: int = HISTORY) -> Outcome:
    """Fold `event`, read at `offset` of `partition`, into `state` in place; `history` recent events are kept.

    The caller owns `state` (it has just been decoded from the table), so no
    copy is made. Its encoding stays within `MAX_STATE_BYTES`. Returns what was done. A state last written under another
    partition (the topic was re-partitioned) has no comparable offset; the event
    ids still protect it.
    """
    if not advance(state, partition, offset):
        return REDELIVERED
    marked_id = f"{ID_SEPARATOR}{event.event_id}{ID_SEPARATOR}"
    if marked_id in state.event_id_log:
        return DUPLICATE
    if is_ignored(state, event):
        return Outcome.IGNORED
    if event.type in CONTROL_TYPES:
        _fold_control(state, event, marked_id)
        return Outcome.APPLIED
    state.event_id_log = _append(state.event_id_log, marked_id, EVENT_IDS)
    count(state, event)
    marked_item = f"{ID_SEPARATOR}{event.item_id}{ID_SEPARATOR}"
    first = marked_item not in state.item_log and marked_item not in state.seen_log
    state.item_log += marked_item[1:]
    state.type_log += event.type + ID_SEPARATOR
    state.time_log += event.ts.to_bytes(8, "little")
    while len(state.time_log) > 8 * history or len(state.item_log) + len(state.type_log) > LOG_CHARS:
        _drop_oldest(state)
    return FIRST_TOUCH if first and not state.withdrawn else APPLIED


def is_ignored(state: UserState, event: Event) -> bool:
    """Whether a withdrawal keeps an event from having an effect: the event comes after it, or is older than it."""
    if event.type in (OPT_OUT, ERASE):
        return False
    if event.type == OPT_IN:
        return event.ts <= state.withdrawn_ts
    return bool(state.consent) or event.ts <= state.withdrawn_ts


def advance(state: UserState, partition: int, offset: int) -> bool:
    """Move the position to `offset` of `partition`; False, and nothing done, where the state is past it."""
    if partition == state.partition:
        if offset <= state.offset:
            return False
    else:
        state.partition = partition
    state.offset = offset
    return True


def count(state: UserState, event: Event) -> None:
    """Move the times and the counts by an event that is applied."""
    kind = event.type
    ts_us, following = event.ts * 1000, state.feature_ts + 1
    state.folded += 1
    state.last_ts = max(state.last_ts, event.ts)
    state.feature_ts = max(following, ts_us)
    counts = state.counts
    counts[kind] = counts.get(kind, 0) + 1
    if event.amount is not None:
        state.spend[kind] = state.spend.get(kind, 0.0) + event.amount


def _drop_oldest(state: UserState) -> None:
    """Let the oldest of the recent events go; its item stays among the seen ones."""
    end = state.item_log.index(ID_SEPARATOR, 1)
    marked_item = state.item_log[: end + 1]
    state.item_log = state.item_log[end:]
    state.type_log = _without_first(state.type_log)
    state.time_log = state.time_log[8:]
    if marked_item not in state.item_log:
        seen = state.seen_log
        if marked_item in seen:
            seen = seen.replace(marked_item, ID_SEPARATOR, 1)
        seen = _append(seen, marked_item, SEEN)
        while len(seen) > LOG_CHARS:
            seen = _without_first(seen)
        state.seen_log = seen


def _append(log: str, marked: str, limit: int) -> str:
    """Append `␟x␟` to a joined sequence of at most `limit` entries."""
    log += marked[1:]
    return _without_first(log) if len(log) > 2 * limit and log.count(ID_SEPARATOR) > limit + 1 else log


def _without_first(log: str) -> str:
    return log[log.index(ID_SEPARATOR, 1) :]


def joined(entries: Iterable[str]) -> str:
    """A sequence as states keep it: `␟a␟b␟`."""
    return ID_SEPARATOR + "".join(entry + ID_SEPARATOR for entry in entries)


def _split(log: str) -> list[str]:
    return log[1:-1].split(ID_SEPARATOR) if len(log) > 1 else []


def _fold_control(state: UserState, event: Event, marked_id: str) -> None:
    """Opting out and erasing forget the profile; only opting in lifts either. A visit leaves the profile as it is.

    The position and a strictly increasing `feature_ts` stay: without them an
    older event could bring the profile back.
    """
    state.feature_ts = max(event.ts * 1000, state.feature_ts + 1)
    if event.type in (OPT_IN, VISIT):
        state.consent = Consent.GIVEN
        state.event_id_log = _append(state.event_id_log, marked_id, EVENT_IDS)
        return
    state.consent = Consent.ERASED if event.type == ERASE else max(state.consent, Consent.OPTED_OUT)
    state.withdrawn = True
    state.withdrawn_ts = max(state.withdrawn_ts, event.ts)
    state.event_id_log = marked_id if event.type == OPT_OUT else ID_SEPARATOR
    state.item_log = state.type_log = state.seen_log = ID_SEPARATOR
    state.time_log = b""
    state.counts = {}
    state.spend = {}
    state.last_ts = 0
    state.folded = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UserState)


def encode_state(state: UserState) -> bytes:
    """The state as stored in the table and its changelog (MessagePack array)."""
    return _encoder.encode(state)


def decode_state(raw: bytes) -> UserState:
    """Inverse of `encode_state`. Raises `msgspec.DecodeError` on foreign bytes."""
    return _decoder.decode(raw)


def sound_state(raw: bytes) -> UserState | str:
    """Decode bytes that somebody else may have put on the changelog, or say in a sentence why they are no state.

    A state that is let in can be folded, featurised and written: its logs fit each other, its numbers fit everywhere.
    """
    state = decode(_decoder, raw)
    if isinstance(state, Undecodable):
        return f"no state: {state.why}"
    logs = [log.count(ID_SEPARATOR) - 1 for log in (state.item_log, state.type_log)]
    if len(state.time_log) % 8 or logs != [state.length] * 2:
        return f"no state: {logs[0]} items, {logs[1]} types and {len(state.time_log)} bytes of times"
    if not all(_is_joined(log) for log in (state.item_log, state.type_log, state.event_id_log, state.seen_log)):
        return "no state: a sequence without its separators"
    numbers = [state.partition, state.offset, state.folded, *state.counts.values(), *state.spend.values()]
    latest = [state.last_ts, state.withdrawn_ts, state.feature_ts // 1000, *(state.times if state.length else ())]
    if not all(-1 <= number < 2**63 for number in numbers) or not all(0 <= ts <= 2 * MAX_TS_MS for ts in latest):
        return "no state: a number out of range"
    return state


def _is_joined(log: str) -> bool:
    return log[:1] == log[-1:] == ID_SEPARATOR
