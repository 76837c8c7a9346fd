"""Publish the lists of a replay to a topic, as a worker would have published them in event time."""

from __future__ import annotations

from collections.abc import Sequence

from freshet.core.events import VISIT
from freshet.core.recommendation import AsOf, Recommendation, Timings, encode_recommendation, recommendation_id
from freshet.ports import Message, Publisher
from freshet.replay.actions import Moment
from freshet.replay.models import encodable
from freshet.serving.list_maker import MadeList


class ListTopic:
    """Gathers lists and publishes them. An erased user gets a tombstone.

    If a replay was cut off, the lists after its last checkpoint are published again with the same ids.
    """

    def __init__(self, name: str, publisher: Publisher) -> None:
        self._name = name
        self._publisher = publisher
        self._waiting: list[Message] = []

    def add(self, version: int, made: Sequence[tuple[Moment, MadeList | None]]) -> None:
        """Lists of one version, in order."""
        self._waiting += [
            Message(
                self._name, moment.user_id.encode(), None if made_list is None else _value(version, moment, made_list)
            )
            for moment, made_list in made
        ]

    async def publish(self) -> None:
        """Publish what was gathered, and await it. Raises `DeliveryError`."""
        waiting, self._waiting = self._waiting, []
        await self._publisher.publish(waiting)


def _value(version: int, moment: Moment, made: MadeList) -> bytes:
    """All times are the event's: a replay's clock is event time."""
    ts = moment.event.ts
    as_of = AsOf(moment.state.partition, moment.state.offset, ts)
    return encode_recommendation(
        Recommendation(
            recommendation_id(moment.user_id, as_of, version, degraded=False),
            moment.user_id,
            made.items,
            version,
            as_of,
            made.side_inputs,
            Timings(ts, ts, ts, ts, ts),
            degraded=False,
            personalised=encodable(moment.state),
            variant=made.variant,
            cause="visit" if moment.event.type == VISIT else "event",
            visits=(moment.event.event_id,) if moment.event.type == VISIT else (),
        )
    )
