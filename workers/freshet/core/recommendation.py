"""The recommendation list: what is published for a user, with its evidence."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from freshet.core.decoding import Int64, Undecodable, decode
from freshet.core.events import MAX_TS_MS

Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_TS_MS)]
"""A moment that can be shown, ms since the epoch."""


class Reason(msgspec.Struct, frozen=True, gc=False):
    """One of the user's own events that moved an item; `weight` is its share of what they all pull, 0 to 1.

    An event pulls by how near its item is, the less the longer ago (`core.ranking`).
    """

    item_id: str
    type: str
    ts: Time
    weight: float


class Item(msgspec.Struct, frozen=True, gc=False):
    """One ranked item.

    `source` is `model` (the version's own candidates), `cold` (newer than the
    version, placed by its text), `explore` (put there at random) or `popular`. `propensity` is the chance that
    this slot held this item under the policy that made the list.
    """

    item_id: str
    score: float
    source: str
    propensity: float = 1.0
    reasons: tuple[Reason, ...] = ()


class AsOf(msgspec.Struct, frozen=True, gc=False):
    """The newest event that the list knows of; `ts` is its event time in ms."""

    partition: Int64
    offset: Int64
    ts: Time


class SideInputs(msgspec.Struct, frozen=True, gc=False):
    """The newest offsets of the side-input topics that the list was made with, -1 for none.

    `items_embedded` is the items-topic offset up to which cold items have their place:
    an item is available or not at once, but placed only when its text is encoded.
    """

    items: Int64
    popularity: Int64
    models: Int64
    items_embedded: Int64 = -1


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Wall-clock times of that event's way, ms since the epoch."""

    event: Int64
    broker: Int64
    state: Int64
    inference: Int64
    publish: Int64


class Recommendation(msgspec.Struct, frozen=True, gc=False):
    """One record of the recommendations topic.

    `degraded` means that the encoder could not be asked and nearness in the version's item
    table stood in (`core/stand_in.py`); `personalised` is False where there is no profile
    of the user, and the list is the popular items.
    """

    recommendation_id: str
    user_id: str
    items: list[Item]
    model_version: Int64
    as_of: AsOf
    side_inputs: SideInputs
    timings: Timings
    degraded: bool
    personalised: bool
    variant: str = "live"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Recommendation)


def recommendation_id(user_id: str, as_of: AsOf, model_version: int, degraded: bool) -> str:
    """A deterministic id: the same user, event and model always give the same one."""
    facts = f"{user_id}\x1f{as_of.partition}\x1f{as_of.offset}\x1f{model_version}\x1f{degraded:d}"
    return hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()


def encode_recommendation(recommendation: Recommendation) -> bytes:
    """The JSON bytes of a list."""
    return _encoder.encode(recommendation)


def decode_recommendation(value: bytes) -> Recommendation | str:
    """Decode a record of the recommendations topic, or say in a sentence why it is none."""
    made = decode(_decoder, value)
    return f"no list: {made.why}" if isinstance(made, Undecodable) else made
