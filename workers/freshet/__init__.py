"""Freshet: a stream of user events in, a stream of fresh recommendations out.

This is the public face: the records of the topics with their codecs, the settings, and clients that produce events
(`Events`) and read lists (`Lists`). JSON Schemas of all topics are in `freshet.schemas`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from freshet.errors import FreshetError
from freshet.settings import Settings, SettingsError, Variant, load_settings

if TYPE_CHECKING:
    from freshet.client import (
        ClientError,
        ConnectionFailedError,
        DeliveryError,
        Events,
        InvalidEventError,
        Lists,
        NoTopicError,
        UnreadableListError,
    )

__all__ = [
    "AsOf",
    "BadEvent",
    "BadReason",
    "CatalogueItem",
    "ClientError",
    "ConnectionFailedError",
    "DeliveryError",
    "Event",
    "Events",
    "FreshetError",
    "InvalidEventError",
    "Item",
    "Lists",
    "NoTopicError",
    "Reason",
    "Recommendation",
    "Settings",
    "SettingsError",
    "SideInputs",
    "Timings",
    "UnreadableListError",
    "Variant",
    "decode_event",
    "decode_item",
    "decode_recommendation",
    "encode_event",
    "encode_item",
    "encode_recommendation",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    """Load the clients when one is asked for: they take half a second, and training has no Kafka client installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("freshet.client"), name)


def __dir__() -> list[str]:
    return __all__
