"""Step 1, the log: JSON lines of events and items, cleaned and split by time.

The log is a file in the format of the `events` topic, one event a line, and is
decoded by the same `decode_event`. What is not learned from is counted by its
reason; the counts are printed and travel in the bundle.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from freshet.core.catalogue import CatalogueItem, decode_item
from freshet.core.decoding import Undecodable
from freshet.core.events import CONTROL_TYPES, ERASE, OPT_OUT, BadEvent, BadReason, Event, decode_event, encode_event
from freshet.core.lines import item_line, user_line
from freshet.errors import FreshetError

from freshet_training.config import TrainingConfig
from freshet_training.examples import histories

CLOCK_SKEW_MS = 3_600_000
"""How far ahead of the reader's clock an event's time may be."""
MINUTE_MS = 60_000
UNREADABLE_SHARE = 0.5
"""With more of the lines than this unreadable the file is no log."""


class DatasetError(FreshetError):
    """The log or the items file cannot be used; the message says which line and why."""


@dataclass(frozen=True)
class CleanedLog:
    """Cleaned events in time order, none of them by a user who has since opted out or been erased.

    `forgotten` are those users. `cleaning` counts by reason the events left out, and those behind a later one of
    their user's, which were put into their place. `digest` is a sha256 of the events kept.
    """

    events: list[Event]
    cleaning: dict[str, int]
    digest: str
    forgotten: frozenset[str]
    unknown: Mapping[str, int] = field(default_factory=dict)
    """Types that the settings do not name, with their events."""


@dataclass(frozen=True)
class Split:
    """A global time split: no event of a later part happened before one of an earlier part."""

    train: list[Event]
    validation: list[Event]
    test: list[Event]


def read_log(path: Path, config: TrainingConfig, now_ms: int) -> CleanedLog:
    """Decode and clean a log. Raises `DatasetError` where nothing can be learned from it."""
    reader = _Reader(path, config.types)
    events = list(reader.events())
    cleaning = reader.left_out
    if reader.lines and sum(cleaning.values()) > UNREADABLE_SHARE * reader.lines:
        raise DatasetError(f"{reader.first}{_hint(reader, config)}")
    kept = list(_without_floods(_in_order(events, now_ms, cleaning), config.flood_per_minute, cleaning))
    forgotten = frozenset(event.user_id for event in kept if event.type in (OPT_OUT, ERASE))
    behaviour = sum(event.type not in CONTROL_TYPES for event in kept)
    applied = {id(event) for run in histories(kept) for event in run}
    kept = [event for event in kept if id(event) in applied]
    cleaning["opted out or erased"] += behaviour - len(kept)
    if not kept:
        raise DatasetError(f"{path} holds no events to learn from")
    users = Counter(event.user_id for event in kept)
    able = sum(events >= 2 for events in users.values())  # noqa: PLR2004 - one to read and one to predict
    if able < config.min_users:
        raise DatasetError(
            f"{path}: {able} users have two events or more, too few to learn from (min_users is {config.min_users})"
        )
    digest = hashlib.sha256()
    for event in kept:
        digest.update(encode_event(event))
    return CleanedLog(
        kept,
        {reason: count for reason, count in cleaning.items() if count},
        digest.hexdigest(),
        forgotten,
        reader.unknown,
    )


class _Reader:
    """Lines of a log that are events; counts the others and keeps the first of them."""

    def __init__(self, path: Path, types: Collection[str]) -> None:
        self._path = path
        self._types = types
        self.left_out: Counter[str] = Counter()
        self.known: set[str] = set()
        self.unknown: Counter[str] = Counter()
        self.first = ""
        self.lines = 0

    def events(self) -> Iterator[Event]:
        for number, line in _lines(self._path):
            self.lines += 1
            named = user_line(line)
            if isinstance(named, Undecodable):
                self._note(number, "unreadable", named.why)
                continue
            event = decode_event(line, named.user_id.encode(), self._types)
            if not isinstance(event, BadEvent):
                self.known.add(event.type)
                yield event
                continue
            if event.reason is BadReason.UNKNOWN_TYPE:
                self.unknown[msgspec.json.decode(line, type=_Type).type] += 1  # it has just been decoded
            reason = event.reason.words
            self._note(number, reason, f"{reason}: {event.detail}")

    def _note(self, number: int, reason: str, detail: str) -> None:
        self.left_out[reason] += 1
        self.first = self.first or f"{self._path}:{number}: {detail}"


class _Type(msgspec.Struct):
    type: str


def _hint(reader: _Reader, config: TrainingConfig) -> str:
    if not reader.unknown:
        return ""
    named = [kind for kind in config.types if kind in reader.known]
    found = ",".join([*named, *(kind for kind, _ in reader.unknown.most_common())])
    return f"; name the log's behaviour types: --types {found}, or [behaviours] in a settings file"


def _in_order(events: Iterable[Event], now_ms: int, cleaning: Counter[str]) -> list[Event]:
    """By time, without a user's duplicates and what cannot have happened yet.

    A user's own word is never left out: the fold knows its duplicates, and one dated ahead stands where the log has
    it, behind what the user did before.
    """
    kept: list[tuple[int, Event]] = []
    ids: set[tuple[str, str]] = set()
    latest: dict[str, int] = {}
    for event in events:
        when, user = event.ts, event.user_id
        own_word = event.type in CONTROL_TYPES
        if when > now_ms + CLOCK_SKEW_MS:
            if not own_word:
                cleaning["impossible time"] += 1
                continue
            when = latest.get(user, 0)
        if (user, event.event_id) in ids and not own_word:
            cleaning["duplicate"] += 1
            continue
        ids.add((user, event.event_id))
        cleaning["out of order"] += event.ts < latest.get(user, 0)
        latest[user] = max(latest.get(user, 0), when)
        kept.append((when, event))
    return [event for _, event in sorted(kept, key=_when)]


def _when(placed: tuple[int, Event]) -> int:
    return placed[0]


def _without_floods(events: Iterable[Event], most: int, cleaning: Counter[str]) -> Iterator[Event]:
    """Leave out what a user does beyond `most` events a minute."""
    counts: dict[str, tuple[int, int]] = {}
    for event in events:
        if event.type not in CONTROL_TYPES:
            minute, count = counts.get(event.user_id, (-1, 0))
            now = event.ts // MINUTE_MS
            count = count + 1 if minute == now else 1
            counts[event.user_id] = now, count
            if count > most:
                cleaning["flood"] += 1
                continue
        yield event


def read_items(path: Path) -> dict[str, CatalogueItem]:
    """Decode an items file; a later line replaces an earlier one of the same id, as on the compacted topic."""
    items: dict[str, CatalogueItem] = {}
    for number, line in _lines(path):
        named = item_line(line)
        item = named.why if isinstance(named, Undecodable) else decode_item(line, named.item_id.encode())
        if isinstance(item, str):
            raise DatasetError(f"{path}:{number}: {item}")
        items[item.item_id] = item
    return items


def split_by_time(events: list[Event], validation_share: float = 0.1, test_share: float = 0.1) -> Split:
    """The last `test_share` of the log test, what comes before validation, the rest train."""
    test = len(events) - int(len(events) * test_share)
    validation = test - int(len(events) * validation_share)
    return Split(events[:validation], events[validation:test], events[test:])


def vocabulary(events: Iterable[Event], known: Iterable[str] = ()) -> list[str]:
    """The items of a version, in index order: the `known` ones, then those with an event by first appearance."""
    own = (event.item_id for event in events if event.item_id and event.type not in CONTROL_TYPES)
    return list(dict.fromkeys([*known, *own]))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from None
