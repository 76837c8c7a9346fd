"""The micro-batch: a run of each partition that has something new, from records to durable effects.

decode → fold → state → featurise → encode → rank → features → publish. When
`process` returns, every effect of the batch is durable and its offsets may be
committed; when it raises, nothing may be.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from freshet.core.events import VISIT, BadEvent, Event, decode_event
from freshet.core.features import featurise
from freshet.core.fold_run import fold_run
from freshet.core.state import (
    FIRST_TOUCH,
    REDELIVERED,
    Consent,
    Outcome,
    decode_state,
    empty_state,
    encode_state,
)
from freshet.ports import (
    Encoder,
    FeatureStore,
    Fetched,
    Message,
    Publisher,
    StateStore,
    Unavailable,
)
from freshet.process import metrics
from freshet.serving.canary import CanaryAnalysis
from freshet.serving.dead_letters import dead_letter, publish_dead_letters
from freshet.serving.feature_writer import FeatureWriter, Inference
from freshet.serving.list_maker import ListMaker, MadeList, fallback_encoded, fitting
from freshet.serving.list_publication import ListPublication, Making
from freshet.serving.live_versions import LiveVersions
from freshet.serving.popularity_counts import PopularityCounts
from freshet.serving.servable_version import ServableVersion
from freshet.serving.touched_user import Touched, urgency_of
from freshet.settings import Settings

ENCODED_AHEAD = 2
"""Chunks of a batch that are at the encoder together: it works on one while the next waits there, not here."""

log = logging.getLogger(__name__)


class PartitionBatch(NamedTuple):
    """Consecutive records of one partition, the states of the users in it, and users whose features are restored."""

    store: StateStore
    partition: int
    records: Sequence[Fetched]
    restored: Sequence[str] = ()


@dataclass(slots=True)
class _Batch:
    """A folded micro-batch.

    No list is published before `written` is done: after a crash the batch is cut
    elsewhere, and a list of an older state would follow the newer one.
    """

    touched: list[Touched]
    dead: list[Message]
    state_ms: int
    written: asyncio.Future[None]


_Chunk = tuple[ServableVersion, list[Touched]]
"""Users encoded in one call, and the version they are encoded with."""


class Pipeline:
    """Processes the micro-batches of a worker.

    A batch may be handed in while earlier ones are under way: it is folded once
    their states are written, has its effects after theirs, and fails if one of
    them does.
    """

    def __init__(
        self,
        settings: Settings,
        model: LiveVersions,
        encoder: Encoder,
        features: FeatureStore,
        publisher: Publisher,
        trial: CanaryAnalysis,
        clock: Callable[[], float] = time.time,
        catch_up: Callable[[], Awaitable[None]] | None = None,
        publication: ListPublication | None = None,
    ) -> None:
        """`catch_up` reads the popularity topic to its end: what others have counted in partitions taken over.

        `publication` is shared with whoever else publishes lists.
        """
        self._settings = settings
        self._model = model
        self._encoder = encoder
        self._features = FeatureWriter(features, settings.behaviours)
        self._publisher = publisher
        self._lists = ListMaker(settings)
        self._published = publication or ListPublication(settings, publisher, clock)
        self._trial = trial
        self._clock = clock
        self._popularity = PopularityCounts(settings, model.published_counts, publisher)
        self._catch_up = catch_up
        self._folded: asyncio.Task[_Batch] | None = None
        self._done: asyncio.Task[None] | None = None

    def release(self, partitions: Collection[int]) -> None:
        """Put aside what has been counted in partitions that another worker may own next."""
        self._popularity.release(partitions)

    async def process(self, runs: Sequence[PartitionBatch]) -> None:
        """Process a run of each of some partitions. Raises on anything unexpected; nothing is then to be committed."""
        self._folded = folded = asyncio.create_task(self._fold_next(runs, self._folded))
        self._done = done = asyncio.create_task(self._take_effect(folded, self._done))
        await done

    async def quiet(self, seconds: float) -> None:
        """Wait, at most so long, until no batch is under way."""
        if self._done is not None:
            await asyncio.wait([self._done], timeout=seconds)

    async def _fold_next(self, runs: Sequence[PartitionBatch], before: asyncio.Task[_Batch] | None) -> _Batch:
        """Fold the runs and start to write the states, when those of the batch before can be read."""
        if before is not None:
            await (await before).written
        if any(run.partition not in self._popularity for run in runs):
            await self._model.caught_up()
            if self._catch_up is not None:
                await self._catch_up()
        metrics.BATCH_EVENTS.observe(sum(len(run.records) for run in runs))
        touched: list[Touched] = []
        dead: list[Message] = []
        writing = []
        for run in runs:
            with metrics.STEP.labels("fold").time():
                users, bad = self.fold(run)
            touched += users
            dead += bad
            writing.append(asyncio.create_task(self._write(run, users)))
            await asyncio.sleep(0)  # these states travel while the next run is folded
        written = asyncio.ensure_future(_all(writing))
        return _Batch(touched, dead, self._now_ms(), written)

    def fold(self, run: PartitionBatch) -> tuple[list[Touched], list[Message]]:
        """Decode and fold a run: the users it touches with their new states, and its dead letters."""
        store, partition, records, restored = run
        behaviours = self._settings.behaviours
        events: list[tuple[int, Fetched, Event]] = []
        dead: list[Message] = []
        for record in records:
            latest = self._settings.latest_ts(record.timestamp)
            event = decode_event(record.value, record.key, behaviours, record.headers, latest)
            if isinstance(event, BadEvent):
                dead.append(dead_letter(self._settings, partition, record, event))
            else:
                events.append((partition, record, event))
        users = Counter(event.user_id for _, _, event in events)
        names = list(users) or restored
        states = {
            user: decode_state(raw) if raw is not None else empty_state(partition)
            for user, raw in zip(names, store.read(names), strict=True)
        }
        touched = {user: Touched(user, state, restored=not users) for user, state in states.items()}
        popularity = self._popularity.of(partition)
        outcomes = [0] * len(Outcome)
        folded = fold_run(states, users, events, self._settings.history)
        for (_, record, event), outcome in zip(events, folded, strict=True):
            user = touched[event.user_id]
            outcomes[outcome] += 1
            user.broker_ts = record.timestamp
            if event.type == VISIT:
                user.note_visit(event)
            if outcome is REDELIVERED:
                user.note_redelivery(event, record)
                continue
            user.event_ts = event.ts
            user.changed = True
            weight = behaviours.get(event.type, 0.0)
            user.weight = max(user.weight, weight)
            if outcome is FIRST_TOUCH and weight > 0:
                popularity.add(event.item_id or "", event.ts, record.offset)
        metrics.FOLDED.inc(outcomes[Outcome.APPLIED] + outcomes[Outcome.FIRST_TOUCH])
        for outcome in (Outcome.REDELIVERED, Outcome.DUPLICATE, Outcome.IGNORED):
            if outcomes[outcome]:
                metrics.SKIPPED.labels(outcome.name.lower()).inc(outcomes[outcome])
        return list(touched.values()), dead

    async def _write(self, run: PartitionBatch, touched: list[Touched]) -> None:
        """Publish what the run counted, then write its states: counted first, an event that comes again is known."""
        await self._popularity.publish(run.partition)
        await self.write_state(run.store, touched)

    async def write_state(self, store: StateStore, touched: list[Touched]) -> None:
        """Write the states that changed."""
        with metrics.STEP.labels("state").time():
            states = {user.user_id: user.state for user in touched if user.changed}
            metrics.STATES_FULL.inc(sum(state.full for state in states.values()))
            await store.write({user_id: encode_state(state) for user_id, state in states.items()})

    async def _take_effect(self, folded: asyncio.Task[_Batch], before: asyncio.Task[None] | None) -> None:
        """Have all effects of a batch, after those of the batch before; its first users are encoded meanwhile."""
        batch = await folded
        plain = [user for user in batch.touched if user.state.consent or not user.state.length]
        encoded = [user for user in batch.touched if not user.state.consent and user.state.length]
        urgency = urgency_of(encoded)
        encoded.sort(key=urgency)
        size = self._settings.encode_batch
        chunks = [
            (live, users[start : start + size])
            for live, users in self._model.parts(encoded, _user_id)
            for start in range(0, len(users), size)
        ]
        chunks.sort(key=lambda chunk: urgency(chunk[1][0]))
        first = asyncio.create_task(self._infer(*chunks[0])) if chunks else None
        try:
            if before is not None:
                await before
            effects: list[Awaitable[None]] = [batch.written]
            if batch.dead:
                effects.append(publish_dead_letters(self._publisher, batch.dead))
            if plain:
                effects += [self._features.write(plain), self._publish_plain(batch, plain)]
            if first is not None:
                effects.append(self._refresh(batch, chunks, first))
            await _all(effects)
        finally:
            if first is not None:
                first.cancel()

    async def _refresh(self, batch: _Batch, chunks: list[_Chunk], first: asyncio.Task[Inference]) -> None:
        """Rank and publish for every chunk of users, while the encoder works on the next ones."""
        pending: list[asyncio.Task[None]] = []
        asked = deque([first])
        upcoming = iter(chunks[1:])
        try:
            for _, chunk in chunks:
                for following in islice(upcoming, ENCODED_AHEAD - len(asked)):
                    asked.append(asyncio.create_task(self._infer(*following)))
                    await asyncio.sleep(0)
                inference = await asked.popleft()
                pending.append(asyncio.create_task(self._deliver(batch, chunk, inference)))
                await asyncio.sleep(0)
        finally:
            for inference_task in asked:
                inference_task.cancel()
            await _all(pending)

    async def _infer(self, live: ServableVersion, chunk: list[Touched]) -> Inference:
        tensors = featurise([user.state for user in chunk], live.item_index, live.type_index, live.length)
        history, degraded = tensors["item_index"], False
        with metrics.STEP.labels("encode").time():
            try:
                encoded = fitting(await self._encoder.encode(tensors, live.version), live, len(chunk))
            except Unavailable as error:
                log.warning("degraded", extra={"why": str(error), "users": len(chunk)})
                degraded, encoded = True, await asyncio.to_thread(fallback_encoded, live, history)
        return Inference(live, history, encoded, degraded, self._now_ms())

    async def _deliver(self, batch: _Batch, chunk: list[Touched], inference: Inference) -> None:
        live, encoded, degraded = inference.live, inference.encoded, inference.degraded
        ids, states = [user.user_id for user in chunk], [user.state for user in chunk]
        with metrics.STEP.labels("rank").time():
            lists = self._lists.make(live, ids, states, inference.history, encoded, degraded=degraded)
        effects = [self._features.write(chunk, inference)]
        if not chunk[0].restored:
            making = Making(live, batch.state_ms, inference.done_ms, degraded)
            effects.append(self._publish_lists(batch, chunk, lists, making))
        await _all(effects)
        self._trial.offer(list(zip(ids, states, strict=True)), answered=not degraded)

    async def _publish_plain(self, batch: _Batch, users: list[Touched]) -> None:
        """Users without a profile get the popular list; an erased one gets a tombstone."""
        users = [user for user in users if not user.restored]
        gone = [user for user in users if user.state.consent is Consent.ERASED]
        if gone:
            await batch.written
            await self._published.erase([user.user_id for user in gone])
        rest = [user for user in users if user.state.consent is not Consent.ERASED]
        for live, own in self._model.parts(rest, _user_id):
            lists = [self._lists.make_popular(live, user.user_id, None) for user in own]
            making = Making(live, batch.state_ms, self._now_ms(), personalised=False)
            await self._publish_lists(batch, own, lists, making)

    async def _publish_lists(self, batch: _Batch, users: list[Touched], lists: list[MadeList], making: Making) -> None:
        await batch.written
        await self._published.publish(users, lists, making)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _user_id(user: Touched) -> str:
    return user.user_id


async def _all(awaitables: Sequence[Awaitable[None]]) -> None:
    """Await all, whatever happens to one, then raise the first failure."""
    for result in await asyncio.gather(*awaitables, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
