"""Step 1, the log: JSON lines of events and items, split by time.

The log is a file in the format of the `events` topic, one event a line, and is
decoded by the same `decode_event`. Lines must stand in time order, as a replay
would deliver them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workers.core.catalogue import CatalogueItem, decode_item
from workers.core.events import CONTROL_TYPES, DEFAULT_BEHAVIOURS, BadEvent, Event, decode_event

TRAIN_SHARE = 0.8
VALIDATION_SHARE = 0.1


class DatasetError(Exception):
    """The log or the items file cannot be used; the message says which line and why."""


class _Key(msgspec.Struct):
    user_id: str


class _ItemKey(msgspec.Struct):
    item_id: str


@dataclass(frozen=True)
class Split:
    """A global time split: no event of a later part happened before one of an earlier part."""

    train: list[Event]
    validation: list[Event]
    test: list[Event]


def read_events(path: Path, behaviours: Collection[str] = DEFAULT_BEHAVIOURS) -> list[Event]:
    """Decode a log. Raises `DatasetError` on the first line that is no event or goes back in time."""
    key_of = msgspec.json.Decoder(_Key)
    events: list[Event] = []
    for number, line in enumerate(_lines(path), 1):
        try:
            key = key_of.decode(line).user_id.encode()
        except msgspec.DecodeError as error:
            raise DatasetError(f"{path}:{number}: {error}") from None
        event = decode_event(line, key, behaviours)
        if isinstance(event, BadEvent):
            raise DatasetError(f"{path}:{number}: {event.reason}: {event.detail}")
        if events and event.ts < events[-1].ts:
            raise DatasetError(f"{path}:{number}: ts {event.ts} goes back in time; sort the log by ts")
        events.append(event)
    if not events:
        raise DatasetError(f"{path} holds no events")
    return events


def read_items(path: Path) -> dict[str, CatalogueItem]:
    """Decode an items file; a later line replaces an earlier one of the same id, as on the compacted topic."""
    key_of = msgspec.json.Decoder(_ItemKey)
    items: dict[str, CatalogueItem] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            key = key_of.decode(line).item_id.encode()
        except msgspec.DecodeError as error:
            raise DatasetError(f"{path}:{number}: {error}") from None
        item = decode_item(line, key)
        if isinstance(item, str):
            raise DatasetError(f"{path}:{number}: {item}")
        items[item.item_id] = item
    return items


def split_by_time(events: list[Event]) -> Split:
    """First 80 % of the log train, next 10 % validation, last 10 % test."""
    train = int(len(events) * TRAIN_SHARE)
    validation = int(len(events) * (TRAIN_SHARE + VALIDATION_SHARE))
    return Split(events[:train], events[train:validation], events[validation:])


def vocabulary(events: Iterable[Event]) -> list[str]:
    """The items of a version, in index order: those with at least one event, by first appearance."""
    return list(dict.fromkeys(event.item_id for event in events if event.item_id and event.type not in CONTROL_TYPES))


def _lines(path: Path) -> list[bytes]:
    try:
        return [line for line in path.read_bytes().splitlines() if line.strip()]
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist") from None
