"""Freshet: a stream of user events in, a stream of fresh recommendations out.

This is the public face: the records of the topics with their codecs, the settings, and clients that produce events
(`Events`) and read lists (`Lists`). JSON Schemas of all topics are in `freshet.schemas`.
"""

from freshet.core.catalogue import CatalogueItem, decode_item, encode_item
from freshet.core.events import BadEvent, BadReason, Event, decode_event, encode_event
from freshet.core.recommendation import (
    AsOf,
    Item,
    Reason,
    Recommendation,
    SideInputs,
    Timings,
    decode_recommendation,
    encode_recommendation,
)
from freshet.settings import Settings, SettingsError, Variant, load_settings

__all__ = [
    "AsOf",
    "BadEvent",
    "BadReason",
    "CatalogueItem",
    "Event",
    "Item",
    "Reason",
    "Recommendation",
    "Settings",
    "SettingsError",
    "SideInputs",
    "Timings",
    "Variant",
    "decode_event",
    "decode_item",
    "decode_recommendation",
    "encode_event",
    "encode_item",
    "encode_recommendation",
    "load_settings",
]
