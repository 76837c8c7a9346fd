"""Lists as living views: a list is made again when the world moved enough to change it, not only when its user acts.

A worker watches the side inputs, marks the standing lists that a change can touch (`core.standing_lists`), and makes
them again within a budget: those with an item that went first, then by what making them again is expected to gain. Own
events go first: lists are made again between the micro-batches, a few at a time.

What another worker's lists were is not known. After a hand-over, and after a start, the lists of the partition's users
who acted within the horizon are made again, out of the states.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from freshet.core.features import featurise
from freshet.core.standing_lists import StandingLists, Wait
from freshet.core.state import Consent, decode_state
from freshet.ports import Encoder, Unavailable
from freshet.process import metrics
from freshet.serving.feature_keeper import KeptStates
from freshet.serving.list_maker import ListMaker, MadeList, fitting
from freshet.serving.list_publication import ListPublication, Making, Taken
from freshet.serving.live_versions import LiveVersions
from freshet.serving.pipeline import Pipeline
from freshet.serving.refresh_budget import RefreshBudget
from freshet.serving.servable_version import ServableVersion
from freshet.serving.world_watch import WorldWatch
from freshet.settings import Settings

TICK_SECONDS = 0.05
"""Between two looks at the world while nothing waits."""
CHUNK = 32
"""Lists made again together: an own event waits for no more of them at the encoder."""
URGENT_CHUNK = 64
"""The same where an item went."""
URGENT_TOGETHER = 2
"""Chunks that are made together where an item went: the encoder has the next while lists are ranked."""
SENDING = 2
"""Chunks that may be on their way to the broker while the next is made."""
QUEUE = 512
"""Lists that are chosen together."""
CHOICE_SECONDS = 0.5
"""A choice is made anew after so long, and where an item went."""
PATIENCE_SECONDS = 0.25
"""How long own events go first: where they never end, lists are made again beside them."""
REST_SECONDS = 1.0
"""A list that was made again is not made again within so long, unless its user acts: an item may flicker."""
POPULARITY_REST_SECONDS = 300.0
"""The same for popularity, of which something always rises somewhere."""
OLD_SECONDS = 3600.0
"""A list older than that is made again for its age, where the side inputs have changed since it was made."""
RETRY_SECONDS = 1.0
SLOW_SECONDS = 1.0
"""Between two renewals of what is told, and between two looks at ages and partitions."""
ARRIVING = 256
"""States of a partition taken over that are read together."""

log = logging.getLogger(__name__)


class _Choice(NamedTuple):
    """A list to be made again."""

    partition: int
    record: StandingLists
    position: int

    @property
    def is_urgent(self) -> bool:
        """Whether an item of the list went."""
        return self.record.waits(self.position)[0] is Wait.ITEM


class LivingLists:
    """Makes standing lists again. Not thread-safe: event loop only."""

    def __init__(
        self,
        settings: Settings,
        model: LiveVersions,
        encoder: Encoder,
        pipeline: Pipeline,
        publication: ListPublication,
        states: Callable[[int], KeptStates],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`states` opens the states of a partition."""
        self._horizon = settings.living_horizon
        self._model = model
        self._encoder = encoder
        self._pipeline = pipeline
        self._publication = publication
        self._states = states
        self._clock = clock
        self._lists = ListMaker(settings)
        self._world = WorldWatch(model, self._lists)
        self._budget = RefreshBudget(settings.living_budget)
        self._followed: set[int] = set()
        self._suspended = False
        self._arriving: deque[tuple[int, Sequence[str]]] = deque()
        self._queue: deque[_Choice] = deque()
        self._chosen_at = self._slow_at = -np.inf
        self._making = asyncio.Lock()
        self._sending: deque[asyncio.Task[None]] = deque()

    async def run(self, assigned: Callable[[], set[int]], recovering: Callable[[], bool]) -> None:
        """Keep the lists of the assigned partitions for ever. Raises what publishing raises."""
        while True:
            if recovering():
                await asyncio.sleep(TICK_SECONDS)
                continue
            self.follow(assigned())
            await asyncio.sleep(0 if await self.turn() else TICK_SECONDS)

    async def suspend(self) -> None:
        """Make nothing again until partitions are assigned anew. On return nothing is under way."""
        self._suspended = True
        self._queue.clear()
        for record in self._publication.standing.values():
            record.give_up()
        async with self._making:
            await self._sent()

    def follow(self, assigned: Collection[int]) -> None:
        """Take up the partitions that are new among those assigned, and let go of those that are there no more."""
        self._suspended = False
        if gone := self._followed - set(assigned):
            self._followed -= gone
            self._arriving = deque(users for users in self._arriving if users[0] not in gone)
            self._queue = deque(choice for choice in self._queue if choice.partition not in gone)
        for partition in self._publication.standing.keys() - set(assigned):
            del self._publication.standing[partition]
        for partition in sorted(set(assigned) - self._followed):
            self._followed.add(partition)
            users = self._states(partition).users()
            self._arriving.extend((partition, users[at : at + ARRIVING]) for at in range(0, len(users), ARRIVING))

    async def turn(self) -> bool:
        """Look at the world, and make a few lists again where some are due; returns whether any were."""
        if self._suspended or not self._budget.allows(urgent=True):
            return False
        with self._budget.spend():
            now_s = self._clock()
            self._take_over(now_s)
            await self._mark(now_s)
            self._choose(now_s)
        if not self._queue or not self._budget.allows(urgent=self._queue[0].is_urgent):
            await self._sent()
            return False
        await self._pipeline.quiet(PATIENCE_SECONDS)
        urgent = bool(self._queue) and self._queue[0].is_urgent
        size, together = (URGENT_CHUNK, URGENT_TOGETHER) if urgent else (CHUNK, 1)
        chosen = [self._queue.popleft() for _ in range(min(size * together, len(self._queue)))]
        async with self._making:
            if self._suspended:
                return False
            with self._budget.spend():
                chunks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
                return all(await asyncio.gather(*(self._make_again(chunk) for chunk in chunks)))

    def _take_over(self, now_s: float) -> None:
        """Let the lists wait of users who acted within the horizon, of a few users of the partitions taken over."""
        if not self._arriving or not self._budget.allows(urgent=False):
            return
        partition, user_ids = self._arriving.popleft()
        record = self._publication.record(partition)
        found = []
        for user_id, raw in zip(user_ids, self._states(partition).read(user_ids), strict=True):
            state = decode_state(raw) if raw is not None else None
            if state is not None and state.consent is not Consent.ERASED:
                acted_ms = max(state.newest_ts, state.feature_ts // 1000)
                if acted_ms / 1000 >= now_s - self._horizon:
                    found.append((user_id, acted_ms))
        record.take_over(found, now_s)

    async def _mark(self, now_s: float) -> None:
        """Let the lists wait that what moved can touch; partition by partition, with room for others in between."""
        moved = self._world.look(now_s)
        numbers = self._publication.numbers.known(moved.items)
        is_slow = not 0.0 <= now_s - self._slow_at < SLOW_SECONDS
        older_s = min(now_s - OLD_SECONDS, self._world.changed_s)
        for record in list(self._publication.standing.values()):
            if numbers:
                record.mark_items(numbers, now_s, REST_SECONDS)
                self._chosen_at = -np.inf
            if moved.rises is not None:
                record.mark_rises(moved.rises, now_s, POPULARITY_REST_SECONDS)
            if moved.versions is not None:
                record.mark_versions(moved.versions, now_s, REST_SECONDS)
            if is_slow:
                record.mark_older(older_s, now_s)
            if numbers or is_slow:
                await asyncio.sleep(0)
        if is_slow:
            self._slow_at = now_s
            self._tell(now_s)

    def _choose(self, now_s: float) -> None:
        """Choose the lists to be made again next, by what that is expected to gain."""
        if self._queue and 0.0 <= now_s - self._chosen_at < CHOICE_SECONDS:
            return
        self._chosen_at = now_s
        due = [
            (partition, record, positions)
            for partition, record in self._publication.standing.items()
            if len(positions := record.due(now_s, now_s - self._horizon))
        ]
        candidates: list[tuple[float, _Choice]] = []
        for partition, record, positions in due:
            worth = record.gains(positions, now_s)
            best = np.argsort(-worth, kind="stable")[:QUEUE]
            candidates += [
                (value, _Choice(partition, record, position))
                for value, position in zip(worth[best].tolist(), positions[best].tolist(), strict=True)
            ]
        candidates.sort(key=lambda candidate: -candidate[0])
        self._queue = deque(choice for _, choice in islice(candidates, QUEUE))

    async def _make_again(self, chosen: Sequence[_Choice]) -> bool:
        """Make lists again and publish those that changed. Returns False where the encoder does not answer."""
        state_ms = self._now_ms()
        taken = self._take(chosen)
        plain = [again for again in taken if again.state.consent or not again.state.length]
        encoded = [again for again in taken if not again.state.consent and again.state.length]
        try:
            for live, own in self._model.parts(plain, _user_id):
                lists = [self._lists.make_popular(live, again.user_id, None) for again in own]
                making = Making(live, state_ms, self._now_ms(), personalised=False)
                await self._send(own, lists, making)
            for live, own in self._model.parts(encoded, _user_id):
                await self._encode_again(live, own, state_ms)
        except Unavailable as error:
            log.warning("living lists wait", extra={"why": str(error), "lists": len(encoded)})
            self._queue.clear()
            await asyncio.sleep(RETRY_SECONDS)
            return False
        finally:
            for again in taken:
                again.record.put_back(again.position)
        return True

    def _take(self, chosen: Sequence[_Choice]) -> list[Taken]:
        """The chosen lists that still wait, with their users' states."""
        by_partition: dict[int, list[_Choice]] = {}
        for choice in chosen:
            if self._publication.standing.get(choice.partition) is choice.record:
                by_partition.setdefault(choice.partition, []).append(choice)
        taken = []
        for partition, choices in by_partition.items():
            waiting = [choice for choice in choices if choice.record.waits(choice.position)[0] is not Wait.NONE]
            user_ids = [choice.record.take(choice.position) for choice in waiting]
            raws = self._states(partition).read(user_ids)
            for choice, user_id, raw in zip(waiting, user_ids, raws, strict=True):
                state = decode_state(raw) if raw is not None else None
                if state is None or state.consent is Consent.ERASED:
                    choice.record.forget([user_id])
                else:
                    taken.append(Taken(choice.record, choice.position, user_id, state))
        return taken

    async def _encode_again(self, live: ServableVersion, taken: Sequence[Taken], state_ms: int) -> None:
        """Encode, rank and publish. Nothing comes between the ranking and the publication. Raises `Unavailable`."""
        states = [again.state for again in taken]
        tensors = featurise(states, live.item_index, live.type_index, live.length)
        with metrics.STEP.labels("encode").time():
            encoded = fitting(await self._encoder.encode(tensors, live.version), live, len(taken))
        inference_ms = self._now_ms()
        with metrics.STEP.labels("rank").time():
            user_ids = [again.user_id for again in taken]
            lists = self._lists.make(live, user_ids, states, tensors["item_index"], encoded)
        await self._send(taken, lists, Making(live, state_ms, inference_ms))

    async def _send(self, taken: Sequence[Taken], lists: Sequence[MadeList], making: Making) -> None:
        """Hand lists over to the broker, and wait for those that were handed over some chunks before."""
        sending = self._publication.publish_again(taken, lists, making)
        if sending is not None:
            self._sending.append(sending)
        await self._sent(SENDING)

    async def _sent(self, left: int = 0) -> None:
        """Wait until at most so many chunks are on their way. Raises `DeliveryError`."""
        while len(self._sending) > left:
            await self._sending.popleft()

    def _tell(self, now_s: float) -> None:
        """Renew the gauges."""
        since_s = now_s - self._horizon
        waiting, behind, made, active, memory = 0, 0.0, 0, 0, 0
        for record in self._publication.standing.values():
            positions = record.due(now_s, since_s)
            waiting += len(positions)
            behind = max(behind, float(record.ages(positions, now_s).max(initial=0.0)))
            mine, users = record.share_of(self._model.current.version, since_s)
            made, active, memory = made + mine, active + users, memory + record.nbytes
        metrics.LIVING_WAITING.set(waiting)
        metrics.LIVING_BEHIND.set(behind)
        metrics.LIVING_SHARE.set(made / active if active else 1.0)
        metrics.LIVING_BYTES.set(memory)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _user_id(again: Taken) -> str:
    return again.user_id
