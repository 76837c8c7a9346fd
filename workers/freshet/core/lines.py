"""What a line of JSON lines says of its record: the key, and the time where a line has one."""

from __future__ import annotations

import msgspec

from freshet.core.decoding import Int64, Undecodable, decode


class UserLine(msgspec.Struct, frozen=True):
    """The key of an event's line."""

    user_id: str


class EventLine(UserLine, frozen=True):
    """The key and the time (ms) of an event's line."""

    ts: Int64 = 0


class ItemLine(msgspec.Struct, frozen=True):
    """The key of an item's line."""

    item_id: str


class CatalogueLine(ItemLine, frozen=True):
    """The key of an item's line, and the time (ms) at which the item enters, None where it was always there."""

    ts: Int64 | None = None


def user_line(line: bytes) -> UserLine | Undecodable:
    """The key of an event's line, whatever else the line says."""
    return decode(_user, line)


def event_line(line: bytes) -> EventLine | Undecodable:
    """The key and the time of an event's line."""
    return decode(_event, line)


def item_line(line: bytes) -> ItemLine | Undecodable:
    """The key of an item's line, whatever else the line says."""
    return decode(_item, line)


def catalogue_line(line: bytes) -> CatalogueLine | Undecodable:
    """The key and the time of an item's line."""
    return decode(_catalogue, line)


_user = msgspec.json.Decoder(UserLine)
_event = msgspec.json.Decoder(EventLine)
_item = msgspec.json.Decoder(ItemLine)
_catalogue = msgspec.json.Decoder(CatalogueLine)
