"""What requests and answers of the read service are made of; the OpenAPI document is made from these types."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from freshet.core.catalogue import CatalogueItem
from freshet.core.events import MAX_TS_MS, Id
from freshet.core.recommendation import AsOf, Item, SideInputs, Time
from freshet.serving.explanation import ExplainedItem

MAX_LIMIT = 100
"""Most items of an answer."""
MAX_EXCLUDED = 500
MAX_EVENTS = 1000
"""Most events of a request."""

Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)]
Excluded = Annotated[tuple[Id, ...], msgspec.Meta(max_length=MAX_EXCLUDED)]
Cursor = Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of a list is wanted.

    Attributes:
        limit: Most items; without it as many as a published list has.
        exclude: Items that are not wanted, such as those in the basket. Repeat it for more than one.
        cursor: `next` of the page before.
        events_before: Make the list from the user's events before this moment alone, ms since the epoch: what a job
            that ran then would have known of the user. Catalogue and popularity are as of now.
    """

    limit: Limit | None = None
    exclude: Excluded = ()
    cursor: Cursor | None = None
    events_before: Annotated[int, msgspec.Meta(ge=0, le=MAX_TS_MS)] | None = None


class SimilarQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many similar items are wanted.

    Attributes:
        limit: Most items.
        exclude: Items that are not wanted. Repeat it for more than one.
    """

    limit: Limit = 10
    exclude: Excluded = ()


class ExplanationQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be explained.

    Attributes:
        item_id: The item; without it all items of the user's list.
        limit: Most events of each item.
    """

    item_id: Id | None = None
    limit: Limit = 3


class SearchQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which items of the catalogue are wanted.

    Attributes:
        search: Words that the title or the id holds; without it the first items.
        limit: Most items.
    """

    search: Annotated[str, msgspec.Meta(max_length=256)] = ""
    limit: Limit = 20


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameter at all."""


class ServedList(msgspec.Struct, frozen=True):
    """A list as of now.

    For the same user, events, side inputs and version it is the list that is published, to the last bit.

    Attributes:
        recommendation_id: Names the list, as in the published one; send it in the context of the events that follow.
        user_id: The user, or the session's name.
        items: The ranked items, the best first.
        model_version: The version that the list was made with.
        as_of: The newest event that the list knows of; null where nothing is known of the user.
        side_inputs: The catalogue, popularity and rollout that the list knows of.
        made_at: When the list was made, ms since the epoch.
        degraded: A part was away: nearness in the version's item table stood in for the encoder, or, where it is not
            personalised either, the user's features could not be read.
        personalised: False where there is no profile of the user, and the list is the popular items.
        variant: The arm of the experiment that the user is in; `live` without an experiment.
        next: The cursor of the next page; null where there is nothing more.
    """

    recommendation_id: str
    user_id: str
    items: list[Item]
    model_version: int
    as_of: AsOf | None
    side_inputs: SideInputs
    made_at: Time
    degraded: bool
    personalised: bool
    variant: str
    next: str | None = None


class Session(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A visitor who is nothing but a few events. Nothing of it is stored.

    Attributes:
        events: What the visitor did, oldest first: events as on the events topic, where `event_id`, `user_id` and `ts`
            may be left out.
        session_id: Decides the variant and the exploration, as a user id does.
        limit: Most items; without it as many as a published list has.
        exclude: Items that are not wanted.
        cursor: `next` of the page before.
    """

    events: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=MAX_EVENTS)] = []
    session_id: Id = "session"
    limit: Limit | None = None
    exclude: Excluded = ()
    cursor: Cursor | None = None


class Similar(msgspec.Struct, frozen=True):
    """An item that is near another one.

    Attributes:
        item_id: The item.
        similarity: Cosine of the angle between the two items' vectors, -1 to 1.
    """

    item_id: str
    similarity: float


class SimilarItems(msgspec.Struct, frozen=True):
    """The available items nearest to an item, in the space of the live version.

    Attributes:
        item_id: The item.
        items: Its neighbours, the nearest first.
        model_version: The version whose vectors were compared.
    """

    item_id: str
    items: list[Similar]
    model_version: int


class Explanation(msgspec.Struct, frozen=True):
    """Why items stand in a user's list: what each of the user's events does for them.

    Attributes:
        user_id: The user.
        model_version: The version that was asked.
        items: The items, in the order of the list.
    """

    user_id: str
    model_version: int
    items: list[ExplainedItem]


class Accepted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of an event of a request.

    Attributes:
        event_id: The event, as it is on the topic: one without an id was given one.
        reason: Why it was refused, as in a dead letter's headers.
        detail: The same in a sentence.
    """

    event_id: str | None = None
    reason: str | None = None
    detail: str | None = None


class AcceptedEvents(msgspec.Struct, frozen=True):
    """What became of the events of a request, in their order.

    Attributes:
        accepted: How many Kafka has.
        refused: How many are no events, each with its reason.
        events: What became of each.
    """

    accepted: int
    refused: int
    events: list[Accepted]


class FoundItems(msgspec.Struct, frozen=True):
    """Items of the catalogue.

    Attributes:
        items: The items.
    """

    items: list[CatalogueItem]


class VersionStatus(msgspec.Struct, frozen=True):
    """A version's last step.

    Attributes:
        version: Its number.
        stage: What the step made of it.
        share: Share of the users that it makes lists for, or is compared for.
        ts: When the step was taken, ms since the epoch.
        reason: Why, where somebody said.
    """

    version: int
    stage: str
    share: float
    ts: int
    reason: str


class Status(msgspec.Struct, frozen=True):
    """How the stream is.

    Attributes:
        live_version: The version that makes the lists.
        candidate_version: The version in shadow or canary beside it.
        versions: Every version's last step, the newest first.
        items: Items that lists can hold.
        side_inputs: The catalogue, popularity and rollout that lists know of.
        behaviours: Behaviour types, with their weights.
        lists: Lists published since the service began to follow them.
        fresh_p50_ms: From the broker's having the event to the list's being published: the median of the newest lists.
        fresh_p99_ms: The 99th percentile of these.
        lag_events: Events that the workers have not committed; null where the broker does not say.
        dead_letters: Records on the dead-letter topic; null where the broker does not say.
        checks: What each part says of itself: `ok`, or what is wrong.
    """

    live_version: int
    candidate_version: int | None
    versions: list[VersionStatus]
    items: int
    side_inputs: SideInputs
    behaviours: dict[str, float]
    lists: int
    fresh_p50_ms: float | None
    fresh_p99_ms: float | None
    lag_events: int | None
    dead_letters: int | None
    checks: dict[str, str]


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong (RFC 9457).

    Attributes:
        type: Names the kind of problem.
        title: The kind in words.
        status: The HTTP status.
        detail: What was wrong with this request, and what to do.
    """

    type: str
    title: str
    status: int
    detail: str = ""
