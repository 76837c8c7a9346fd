"""The publication of lists: of those that events call for, and of those that are made again without their users.

What is published of a user never goes back. A list that is made again is given up where its user's next list is on its
way, and the next list waits where the list made again is.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from freshet.core.recommendation import (
    MAX_VISITS,
    AsOf,
    Cause,
    Recommendation,
    Timings,
    encode_recommendation,
    recommendation_id,
)
from freshet.core.standing_lists import ItemNumbers, StandingList, StandingLists, Wait
from freshet.core.state import UserState
from freshet.ports import Message, Publisher
from freshet.process import metrics
from freshet.serving.dead_letters import publish_or_tell
from freshet.serving.list_maker import MadeList
from freshet.serving.servable_version import ServableVersion
from freshet.serving.touched_user import Touched
from freshet.settings import Settings

CAUSES: dict[Wait, Cause] = {
    Wait.ITEM: "item",
    Wait.MODEL: "model",
    Wait.POPULARITY: "popularity",
    Wait.TIME: "time",
}
BEFORE_START_S = 366 * 86_400.0
"""Records of standing lists keep times from so long before their worker's start."""


class Making(NamedTuple):
    """How lists were made together: the version, its moments in ms since the epoch, and what they are."""

    live: ServableVersion
    state_ms: int
    inference_ms: int
    degraded: bool = False
    personalised: bool = True


@dataclass(frozen=True, slots=True)
class Taken:
    """A standing list that is being made again: its position in the record of its partition, and its user's state."""

    record: StandingLists
    position: int
    user_id: str
    state: UserState


class ListPublication:
    """Publishes lists, and keeps the record of those that stand, by partition of the events topic."""

    def __init__(self, settings: Settings, publisher: Publisher, clock: Callable[[], float] = time.time) -> None:
        """Without a `living_budget` no record is kept."""
        self._topic = settings.recommendations_topic
        self._slots = settings.list_size
        self._keeps = settings.living_budget > 0
        self._publisher = publisher
        self._clock = clock
        self._origin_s = clock() - BEFORE_START_S
        self._underway: dict[str, asyncio.Future[None]] = {}
        """Users whose list that was made again is being published."""
        self.numbers = ItemNumbers()
        self.standing: dict[int, StandingLists] = {}

    def record(self, partition: int) -> StandingLists:
        """The standing lists of a partition."""
        if partition not in self.standing:
            self.standing[partition] = StandingLists(self._slots, self._origin_s)
        return self.standing[partition]

    async def publish(self, users: Sequence[Touched], lists: Sequence[MadeList], making: Making) -> None:
        """Publish the lists of users whom events touched. Raises `DeliveryError`."""
        await self._after_underway([user.user_id for user in users])
        messages = []
        for user, made in zip(users, lists, strict=True):
            as_of = AsOf(user.state.partition, user.state.offset, user.event_ts)
            cause: Cause = "visit" if user.visits else "event"
            visits = tuple(user.visits[-MAX_VISITS:])
            messages.append(self._message(user.user_id, made, making, as_of, user.broker_ts, cause, visits))
        if self._keeps:
            self._enter(users, lists, making.live)
        with metrics.STEP.labels("publish").time():
            await publish_or_tell(self._publisher, messages)
        acknowledged = self._now_ms()
        for user in users:
            metrics.EVENT_TO_PUBLISH.observe(max(0, acknowledged - user.broker_ts) / 1000)
        kind = "degraded" if making.degraded else "personalised" if making.personalised else "plain"
        metrics.LISTS.labels(kind).inc(len(users))

    async def erase(self, user_ids: Sequence[str]) -> None:
        """Publish a tombstone for each user, of whom the record keeps nothing. Raises `DeliveryError`."""
        await self._after_underway(user_ids)
        for record in self.standing.values():
            record.forget(user_ids)
        await self._publisher.publish([Message(self._topic, user_id.encode(), None) for user_id in user_ids])

    def publish_again(
        self, taken: Sequence[Taken], lists: Sequence[MadeList], making: Making
    ) -> asyncio.Task[None] | None:
        """Publish those of the lists made again that are others than what stands.

        A list whose user has a newer one by now is given up. Returns what is to be awaited, None for nothing; it raises
        `DeliveryError`.
        """
        messages, users = [], []
        entries: dict[int, tuple[StandingLists, list[StandingList]]] = {}
        for again, made in zip(taken, lists, strict=True):
            record, position, state = again.record, again.position, again.state
            if not record.is_taken(position):
                continue
            wait, since_s = record.waits(position)
            event_ts = record.event_ts(position)
            numbers = self.numbers.of([item.item_id for item in made.items])
            entry = self._entry(again.user_id, numbers, made, making.live, event_ts, record.acted_s(position))
            entries.setdefault(id(record), (record, []))[1].append(entry)
            if record.is_same(position, numbers, making.live.version):
                metrics.LIVING_UNCHANGED.inc()
                continue
            cause = CAUSES[wait]
            as_of = AsOf(state.partition, state.offset, event_ts)
            messages.append(self._message(again.user_id, made, making, as_of, int(since_s * 1000), cause))
            users.append(again.user_id)
            metrics.LIVING_LISTS.labels(cause).inc()
        for record, entered in entries.values():
            record.enter(entered, self._clock(), is_remade=True)
        if not messages:
            return None
        done = asyncio.get_running_loop().create_future()
        self._underway |= dict.fromkeys(users, done)
        return asyncio.create_task(self._send(messages, users, done))

    async def _send(self, messages: Sequence[Message], users: Sequence[str], done: asyncio.Future[None]) -> None:
        try:
            with metrics.STEP.labels("publish").time():
                await publish_or_tell(self._publisher, messages)
        finally:
            for user_id in users:
                if self._underway.get(user_id) is done:
                    del self._underway[user_id]
            done.set_result(None)

    async def _after_underway(self, user_ids: Collection[str]) -> None:
        """Wait until no list of these users that was made again is being published."""
        while self._underway:
            waiting = {done for user_id in user_ids if (done := self._underway.get(user_id)) is not None}
            if not waiting:
                return
            await asyncio.wait(waiting)

    def _enter(self, users: Sequence[Touched], lists: Sequence[MadeList], live: ServableVersion) -> None:
        now_s = self._clock()
        by_partition: dict[int, list[StandingList]] = defaultdict(list)
        gone = []
        for user, made in zip(users, lists, strict=True):
            items = [item.item_id for item in made.items]
            numbers = self.numbers.of(items)
            entry = self._entry(user.user_id, numbers, made, live, user.event_ts, user.broker_ts / 1000)
            by_partition[user.state.partition].append(entry)
            if made.side_inputs.items != live.side_inputs.items and not _all_available(live, items):
                gone.append(user)
        for partition, entries in by_partition.items():
            self.record(partition).enter(entries, now_s)
        for user in gone:
            self.record(user.state.partition).mark_user(user.user_id, now_s)

    @staticmethod
    def _entry(
        user_id: str, numbers: Sequence[int], made: MadeList, live: ServableVersion, event_ts: int, acted_s: float
    ) -> StandingList:
        return StandingList(user_id, numbers, live.version, made.margin, made.needed_prior, event_ts, acted_s)

    def _message(
        self,
        user_id: str,
        made: MadeList,
        making: Making,
        as_of: AsOf,
        broker_ms: int,
        cause: Cause,
        visits: tuple[str, ...] = (),
    ) -> Message:
        version, degraded = making.live.version, making.degraded
        recommendation = Recommendation(
            recommendation_id(user_id, as_of, version, degraded, cause, made.side_inputs),
            user_id,
            made.items,
            version,
            as_of,
            made.side_inputs,
            Timings(as_of.ts, broker_ms, making.state_ms, making.inference_ms, self._now_ms()),
            degraded,
            making.personalised,
            made.variant,
            cause,
            visits,
        )
        return Message(self._topic, user_id.encode(), encode_recommendation(recommendation))

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _all_available(live: ServableVersion, item_ids: Sequence[str]) -> bool:
    """Whether all items of a list may still stand in lists."""
    return all(bool(live.space.available[live.space.index[item_id]]) for item_id in item_ids)
