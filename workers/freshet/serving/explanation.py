"""Which of a user's own events raised an item: the encoder's score with all of them, and without each."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from freshet.core.attribution import leave_each_out, losses
from freshet.core.features import featurise
from freshet.core.state import UserState
from freshet.ports import Encoder
from freshet.serving.servable_version import ServableVersion


class RaisedBy(msgspec.Struct, frozen=True):
    """An event of the user, and what the item's score loses without it.

    Attributes:
        item_id: The item of the event.
        type: The type of the event.
        ts: When it happened, ms since the epoch.
        loss: What the encoder's score of the explained item loses where the event is left out.
    """

    item_id: str
    type: str
    ts: int
    loss: float


class ExplainedItem(msgspec.Struct, frozen=True):
    """An item, and the user's events that raised it.

    Attributes:
        item_id: The item.
        encoder_score: The encoder's part of its score.
        raised_by: The events, the strongest first.
    """

    item_id: str
    encoder_score: float
    raised_by: list[RaisedBy]


async def explain(
    encoder: Encoder, live: ServableVersion, state: UserState, wanted: Sequence[str], top: int
) -> list[ExplainedItem]:
    """The `top` events that raised each of the wanted items most, for a user with events. Raises `Unavailable`.

    Every wanted item has a place in the version's space.
    """
    states = leave_each_out(state, live.length)
    alone = len(states) == 2  # noqa: PLR2004 - the whole, and nothing at all
    read = states[:1] if alone else states
    tensors = featurise(read, live.item_index, live.type_index, live.length)
    encoded = await encoder.encode(tensors, live.version)
    vectors = live.space.vectors[[live.space.index[item_id] for item_id in wanted]]
    lost = losses(encoded.embedding, vectors)
    events = list(zip(states[0].items, states[0].types, states[0].times, strict=True))
    explained = []
    for item_id, row, vector in zip(wanted, lost, vectors, strict=True):
        raised = [RaisedBy(*event, round(float(loss), 4)) for event, loss in zip(events, row, strict=False) if loss > 0]
        raised.sort(key=_strongest)
        explained.append(ExplainedItem(item_id, round(float(vector @ encoded.embedding[0]), 4), raised[:top]))
    return explained


def _strongest(raised: RaisedBy) -> float:
    return -raised.loss
