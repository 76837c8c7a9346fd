"""The recommendation list: what is published for a user, with its evidence."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec

from freshet.core.decoding import Int64, Undecodable, decode
from freshet.core.events import MAX_TS_MS

Time = Annotated[int, msgspec.Meta(ge=0, le=MAX_TS_MS)]
"""A moment that can be shown, ms since the epoch."""


class Reason(msgspec.Struct, frozen=True, gc=False):
    """One of the user's own events that moved an item.

    An event pulls by how near its item is, the less the longer ago (`core.ranking`).

    Attributes:
        item_id: The item of the event.
        type: The type of the event.
        ts: When it happened, ms since the epoch.
        weight: The event's share of what all events pull, 0 to 1.
    """

    item_id: str
    type: str
    ts: Time
    weight: float


class Item(msgspec.Struct, frozen=True, gc=False):
    """One ranked item.

    Attributes:
        item_id: The item.
        score: What the list is ranked by, the higher the better; comparable within a list alone.
        source: `model` (a candidate of the version), `cold` (newer than the version, placed by its text), `explore`
            (put there at random) or `popular`.
        propensity: The chance, 0 to 1, that this slot held this item under the policy that made the list.
        reasons: The user's own events that moved the item, the strongest first.
    """

    item_id: str
    score: float
    source: str
    propensity: float = 1.0
    reasons: tuple[Reason, ...] = ()


class AsOf(msgspec.Struct, frozen=True, gc=False):
    """The newest event that the list knows of.

    Attributes:
        partition: Its partition of the events topic.
        offset: Its offset there.
        ts: When it happened, ms since the epoch.
    """

    partition: Int64
    offset: Int64
    ts: Time


MAX_SKIPPED = 64
MAX_VISITS = 64
Cause = Literal["event", "visit", "item", "popularity", "model", "time"]
"""Why a list was made. `event` and `visit`: its user did something, or asked for a list. Otherwise the list was made
again without its user: an item of it went or changed (`item`), popularity rose past what the last slot was ahead by
(`popularity`), another version makes the user's lists (`model`), or the list was old (`time`)."""
OWN_CAUSES = frozenset({"event", "visit"})
"""Causes that the user is behind."""


class SideInputs(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """The newest offsets of the side-input topics that the list was made with, -1 for none.

    Attributes:
        items: Offset in the items topic.
        popularity: Offset in the popularity topic.
        models: Offset in the models topic.
        items_embedded: Offset in the items topic up to which cold items have their place: an item is available or not
            at once, but placed only when its text is encoded.
        items_skipped: Offsets up to there of texts that the encoder could not place, ascending: the items that they
            describe are in no list. Of very many the newest `MAX_SKIPPED` are named.
    """

    items: Int64
    popularity: Int64
    models: Int64
    items_embedded: Int64 = -1
    items_skipped: tuple[Int64, ...] = ()


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Times of that event's way, ms since the epoch.

    Attributes:
        event: When it happened, as the event says.
        broker: When the broker took the event; of a list that was made again, when the worker saw the cause.
        state: When the user's new state was durable; of a list that was made again, when the state was read.
        inference: When the encoder had answered.
        publish: When the list was handed to the broker.
    """

    event: Int64
    broker: Int64
    state: Int64
    inference: Int64
    publish: Int64


class Recommendation(msgspec.Struct, frozen=True, gc=False):
    """A user's list: a record of the recommendations topic, keyed by user id. A record without value is an erasure.

    Attributes:
        recommendation_id: The same for the same user, event, model and `degraded`, and where the list was made again
            without its user also for the same cause and side inputs: a list that appears again has it.
        user_id: The user.
        items: The ranked items, the best first.
        model_version: The version that the list was made with.
        as_of: The newest event that the list knows of.
        side_inputs: The catalogue, popularity and rollout that the list knows of.
        timings: How long that took.
        degraded: The encoder could not be asked, and nearness in the version's item table stood in (`core.fallback`).
        personalised: False where there is no profile of the user, and the list is the popular items.
        variant: The arm of the experiment that the user is in; `live` without an experiment.
        cause: Why the list was made: `event`, `visit` where the list answers a `user.visit`, or what moved in the
            world: `item`, `popularity`, `model` or `time`.
        visits: The event ids of the visits that the list answers, oldest first; of very many the newest `MAX_VISITS`.
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
    cause: Cause = "event"
    visits: tuple[str, ...] = ()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Recommendation)


def recommendation_id(
    user_id: str,
    as_of: AsOf,
    model_version: int,
    degraded: bool,
    cause: Cause = "event",
    side_inputs: SideInputs | None = None,
) -> str:
    """A deterministic id: the same user, event and model always give the same one.

    The id of a list that was made again without its user is also of the cause and of the side inputs.
    """
    facts = f"{user_id}\x1f{as_of.partition}\x1f{as_of.offset}\x1f{model_version}\x1f{degraded:d}"
    if side_inputs is not None and cause not in OWN_CAUSES:
        names = side_inputs.items, side_inputs.popularity, side_inputs.items_embedded, *side_inputs.items_skipped
        facts += "\x1f".join(["", cause, *map(str, names)])
    return hashlib.blake2b(facts.encode(), digest_size=12).hexdigest()


def encode_recommendation(recommendation: Recommendation) -> bytes:
    """The JSON bytes of a list."""
    return _encoder.encode(recommendation)


def decode_recommendation(value: bytes) -> Recommendation | str:
    """Decode a record of the recommendations topic, or say in a sentence why it is none."""
    made = decode(_decoder, value)
    return f"no list: {made.why}" if isinstance(made, Undecodable) else made
