"""A worker in memory that can be killed at any point of any micro-batch, and the judge of what is left.

A kill is an exception out of one point; from then on every other point of that
life raises too, so that nothing has an effect after the kill, whatever tasks
were under way. A life starts with empty hands from the committed offset, and
cuts its batches in its own way. What survives is in `Durable`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from freshet.core.popularity import PopularityTable, decode_partial
from freshet.core.recommendation import decode_recommendation
from freshet.core.state import decode_state
from freshet.ports import FeatureRow, Message, Record
from freshet.serving.canary import CanaryAnalysis
from freshet.serving.live_versions import LiveVersions
from freshet.serving.pipeline import PartitionBatch, Pipeline
from freshet.settings import Settings

from tests.memory_ports import MemoryFeatureStore, MemoryPublisher, MemoryStateStore
from tests.simulation.memory_world import NOW, PARTITION, FakeEncoder, event, go_live, make_bundle, record

PARTITIONS = {b"ann": PARTITION, b"bob": PARTITION + 1, b"cyd": PARTITION}
LONGEST_BATCH = 5
IN_FLIGHT = 2
SLOW_STATE = -1
SLOW_ENCODER = -2
CONSENTS = {"given": "GIVEN", "opt_out": "OPTED_OUT", "erase": "ERASED"}
SETTINGS = Settings(prior_weight=0.0, list_size=3, encode_batch=2)
BUNDLE = make_bundle()


class Crash(Exception):
    """The process is gone."""


class Killer:
    """Ends a life at its `at`-th point; None lets it live.

    Between points other tasks may come first: `interleaving` is a seed for how
    long each takes, 0 for all alike, `SLOW_STATE`, or `SLOW_ENCODER` for every other call of it.
    """

    def __init__(self, at: int | None, interleaving: int) -> None:
        self.at = at
        self.points = 0
        self.dead = False
        self.state_turns = 40 if interleaving == SLOW_STATE else 0
        self.encoder_turns = 40 if interleaving == SLOW_ENCODER else 0
        self._random = Random(interleaving) if interleaving > 0 else None

    async def point(self) -> None:
        """A place where the process may end."""
        for _ in range(self._random.randrange(4) if self._random else 1):
            await asyncio.sleep(0)
        self.points += 1
        if self.dead or self.points == self.at:
            self.dead = True
            raise Crash


@dataclass
class Durable:
    """What outlives the process."""

    store: MemoryStateStore = field(default_factory=MemoryStateStore)
    features: MemoryFeatureStore = field(default_factory=lambda: MemoryFeatureStore(list(SETTINGS.behaviours)))
    publisher: MemoryPublisher = field(default_factory=MemoryPublisher)
    committed: dict[int, int] = field(default_factory=lambda: dict.fromkeys(PARTITIONS.values(), 0))
    crashes: int = 0
    points: int = 0
    complaints: set[str] = field(default_factory=set)


class MortalStore:
    """The state store through a killer; a kill may leave a write half done."""

    def __init__(self, killer: Killer, durable: Durable) -> None:
        self._killer = killer
        self._store = durable.store
        self.read = durable.store.read

    async def write(self, states: Mapping[str, bytes]) -> None:
        """Store states one by one."""
        for _ in range(self._killer.state_turns):
            await asyncio.sleep(0)
        await self._killer.point()
        for user, state in states.items():
            await self._store.write({user: state})
            await self._killer.point()


class MortalFeatures:
    """The feature store through a killer."""

    def __init__(self, killer: Killer, durable: Durable) -> None:
        self._killer = killer
        self._features = durable.features
        self.read = durable.features.read

    async def write(self, *views: Sequence[FeatureRow]) -> None:
        """Write users one by one, each with the rows of all views."""
        users = dict.fromkeys(row.user_id for rows in views for row in rows)
        await self._each(list(users), lambda user: self._features.write(*(_of(user[0], rows) for rows in views)))

    async def delete(self, user_ids: Sequence[str]) -> None:
        """Delete users one by one."""
        await self._each(user_ids, self._features.delete)

    async def _each(self, parts: Sequence[Any], effect: Callable[[list[Any]], Awaitable[None]]) -> None:
        await self._killer.point()
        for part in parts:
            await effect([part])
            await self._killer.point()


def _of(user_id: str, rows: Sequence[FeatureRow]) -> list[FeatureRow]:
    return [row for row in rows if row.user_id == user_id]


class MortalPublisher:
    """The output topics through a killer."""

    def __init__(self, killer: Killer, durable: Durable) -> None:
        self._killer = killer
        self._publisher = durable.publisher

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publish one by one."""
        await self._killer.point()
        for message in messages:
            await self._publisher.publish([message])
            await self._killer.point()


class MortalEncoder(FakeEncoder):
    """The encoder through a killer."""

    def __init__(self, killer: Killer) -> None:
        super().__init__(BUNDLE)
        self._killer = killer
        self._asked = 0

    async def encode(self, tensors: Any, version: int) -> Any:
        """Encode."""
        self._asked += 1
        if self._asked % 2 == 1:
            for _ in range(self._killer.encoder_turns):
                await asyncio.sleep(0)
        await self._killer.point()
        return await super().encode(tensors, version)


def partition_of(record: Record) -> int:
    """The partition in which a user's records are."""
    return PARTITIONS[record.key or b""]


Batch = dict[int, list[Record]]
Life = Callable[[Pipeline, MortalStore, Killer, Durable, Batch], Awaitable[None]]


async def commit_last(pipeline: Pipeline, store: MortalStore, killer: Killer, durable: Durable, batch: Batch) -> None:
    """One batch as the worker does it: every effect, then the commit."""
    await pipeline.process([PartitionBatch(store, partition, records) for partition, records in batch.items()])
    await killer.point()
    for partition, records in batch.items():
        durable.committed[partition] = records[-1].offset + 1
    await killer.point()


async def commit_first(pipeline: Pipeline, store: MortalStore, killer: Killer, durable: Durable, batch: Batch) -> None:
    """One batch as it must not be done: the commit does not wait for the effects."""
    runs = [PartitionBatch(store, partition, records) for partition, records in batch.items()]
    effects = asyncio.create_task(pipeline.process(runs))
    await asyncio.sleep(0)
    for run in runs:
        durable.committed[run.partition] = run.records[-1].offset + 1
    await effects
    await killer.point()


async def simulate(
    log: Sequence[Record],
    kills: Iterable[int],
    interleaving: int = 0,
    life: Life = commit_last,
    pipeline: type[Pipeline] = Pipeline,
    in_flight: int = IN_FLIGHT,
) -> Durable:
    """Lives of a worker over a log, each but the last ended at the given point, until all is committed."""
    durable = Durable()
    for number, at in enumerate([*kills, None]):
        killer = Killer(at, interleaving + number if interleaving > 0 else interleaving)
        try:
            await _live(log, killer, durable, life, pipeline, in_flight, Random(number) if number else None)
        except Crash:
            durable.crashes += 1
        else:
            durable.points = killer.points
            break
    return durable


async def _live(
    log: Sequence[Record],
    killer: Killer,
    durable: Durable,
    life: Life,
    make: type[Pipeline],
    in_flight: int,
    random: Random | None,
) -> None:
    encoder = MortalEncoder(killer)
    model = LiveVersions(encoder, BUNDLE.path)
    counts = [message for message in durable.publisher.messages if message.topic == SETTINGS.popularity_topic]
    model.apply_popularity([Record(offset, NOW, message.key, message.value) for offset, message in enumerate(counts)])
    go_live(model, BUNDLE)
    publisher = MortalPublisher(killer, durable)
    worker = make(
        SETTINGS,
        model,
        encoder,
        MortalFeatures(killer, durable),
        publisher,
        CanaryAnalysis(SETTINGS, model, encoder, publisher, "worker"),
        clock=lambda: NOW / 1000,
    )
    left = [record for record in log if record.offset >= durable.committed[partition_of(record)]]

    async def work() -> None:
        while left:
            batch: Batch = {}
            for logged in left[: random.randint(1, LONGEST_BATCH) if random else LONGEST_BATCH - 1]:
                batch.setdefault(partition_of(logged), []).append(logged)
                left.remove(logged)
            await life(worker, MortalStore(killer, durable), killer, durable, batch)
            durable.complaints |= {f"committed too early: {complaint}" for complaint in judge(log, durable)}

    workers = [asyncio.create_task(work()) for _ in range(in_flight)]
    for ended in await asyncio.gather(*workers, return_exceptions=True):
        if ended is not None:
            raise ended


def small_log() -> list[Record]:
    """Three users, every kind of event, bad records, an id sent twice, late times, gaps in the offsets."""
    events = [
        event(0, "ann"),
        event(1, "bob", "click"),
        event(2, "ann", "purchase", amount=3.5),
        None,
        event(4, "cyd"),
        event(1, "bob", "click"),
        event(6, "ann", ts=NOW - 7000),
        event(7, "cyd", "user.opt_out"),
        event(8, "cyd"),
        event(9, "bob", "user.erase"),
        event(10, "ann", "click", amount=0.25),
        None,
        event(12, "cyd", "user.opt_in"),
        event(13, "cyd", "purchase", amount=9.0),
        event(0, "ann"),
    ]
    offsets = [10 * (number // 6) + number for number in range(len(events))]
    return [
        record(offset, sent) if sent else Record(offset, NOW, b"ann", b'{"half": "an eve')
        for offset, sent in zip(offsets, events, strict=True)
    ]


@dataclass
class Expected:
    """A user by the judge's own fold."""

    offset: int = -1
    ids: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    consent: str = "given"


def fold_again(log: Iterable[Record]) -> tuple[dict[str, Expected], set[int]]:
    """The log folded once from its start, by the description alone; and the offsets of the bad records."""
    users: dict[str, Expected] = {}
    bad: set[int] = set()
    for logged in log:
        try:
            body = json.loads(logged.value or b"")
        except ValueError:
            bad.add(logged.offset)
            continue
        user = users.setdefault(body["user_id"], Expected())
        user.offset = logged.offset
        if body["event_id"] in user.ids:
            continue
        kind = body["type"].removeprefix("user.")
        if kind in ("opt_out", "erase"):
            user.consent, user.events, user.ids = kind, [], [body["event_id"]]
        elif kind == "opt_in":
            user.consent = "given"
            user.ids.append(body["event_id"])
        elif user.consent == "given":
            user.events.append(body)
            user.ids.append(body["event_id"])
    return users, bad


def judge(log: Sequence[Record], durable: Durable) -> set[str]:
    """What is wrong with what is durable, given that all that is committed should be."""
    users, bad = fold_again(record for record in log if record.offset < durable.committed[partition_of(record)])
    wrong = set()
    for name, user in users.items():
        raw = durable.store.states.get(name)
        if raw is None:
            wrong.add(f"{name} has no state")
            continue
        state = decode_state(raw)
        if state.offset < user.offset:
            wrong.add(f"{name}: the state is behind")
        last = _last_list(durable, name)
        if last is None or last < user.offset:
            wrong.add(f"{name}: the list is behind")
    dead = {
        int(dict(message.headers)["origin_offset"])
        for message in durable.publisher.messages
        if message.topic == SETTINGS.dlq_topic
    }
    wrong |= {f"the bad record at {offset} is nowhere" for offset in bad - dead}
    return wrong


def _last_list(durable: Durable, user: str) -> int | None:
    """The offset that the last list of a user is as of; beyond all for a tombstone."""
    mine = _of_user(user, durable)
    if not mine:
        return None
    value = mine[-1].value
    return decode_recommendation(value).as_of.offset if value else 1 << 60


async def judge_finished(log: Sequence[Record], durable: Durable, clean: Durable) -> set[str]:
    """What is wrong at the end, when the log has been read to its end."""
    wrong = judge(log, durable) | durable.complaints
    if durable.committed != clean.committed or any(
        record.offset >= durable.committed[partition_of(record)] for record in log
    ):
        wrong.add("not all is committed")
    counts, should = popularity(durable), popularity(clean)
    if counts != pytest.approx(should, abs=1e-4):
        wrong.add(f"popularity is {counts}, not {should}")
    users, bad = fold_again(log)
    valid = 0
    for name, user in users.items():
        state = decode_state(durable.store.states[name]) if name in durable.store.states else None
        facts = {
            "offset": (state and state.offset, user.offset),
            "items": (state and state.items, [body["item_id"] for body in user.events]),
            "types": (state and state.types, [body["type"] for body in user.events]),
            "times": (state and list(state.times), [body["ts"] for body in user.events]),
            "folded": (state and state.folded, len(user.events)),
            "spend": (state and sum(state.spend.values()), sum(body.get("amount", 0) for body in user.events)),
            "counts": (state and sum(state.counts.values()), len(user.events)),
            "consent": (state and state.consent.name, CONSENTS[user.consent]),
        }
        wrong |= {f"{name}: {fact} is {has}, not {should}" for fact, (has, should) in facts.items() if has != should}
        features = await durable.features.read(name)
        should_have = [body["item_id"] for body in user.events] if user.consent == "given" else None
        has_items = features["recent_items"] and list(features["recent_items"])
        if has_items != should_have:
            wrong.add(f"{name}: features are {has_items}, not {should_have}")
        if (features["embedding"] is not None) != bool(user.events):
            wrong.add(f"{name}: the embedding does not fit the profile")
        wrong |= {f"{name}: {complaint}" for complaint in _lists_of(name, durable, clean)}
    valid = sum(1 for record in log if record.offset not in bad)
    lists = [message for message in durable.publisher.messages if message.topic == SETTINGS.recommendations_topic]
    if len(lists) > valid + durable.crashes * IN_FLIGHT * LONGEST_BATCH:
        wrong.add(f"{len(lists)} lists of {valid} events after {durable.crashes} crashes")
    return wrong


def popularity(durable: Durable) -> dict[str, float]:
    """What the popularity topic says of each item."""
    table = PopularityTable()
    for message in durable.publisher.messages:
        if message.topic == SETTINGS.popularity_topic:
            table.apply(decode_partial(message.value))
    return dict(zip(*table.popularity(), strict=True))


def _of_user(user: str, durable: Durable) -> list[Message]:
    topic, key = SETTINGS.recommendations_topic, user.encode()
    return [message for message in durable.publisher.messages if (message.topic, message.key) == (topic, key)]


def _lists_of(user: str, durable: Durable, clean: Durable) -> Iterable[str]:
    """A user's lists never go back, one id always is one list, and the last is that of a quiet run."""
    mine, quiet = _of_user(user, durable), _of_user(user, clean)
    made = [decode_recommendation(message.value) for message in mine if message.value]
    offsets = [recommendation.as_of.offset for recommendation in made]
    if offsets != sorted(offsets):
        yield "lists go back"
    ids: dict[str, Any] = {}
    for recommendation in made:
        if (
            recommendation.personalised
            and ids.setdefault(recommendation.recommendation_id, recommendation.items) != recommendation.items
        ):
            yield "two lists have one id"
    if not mine or (mine[-1].value is None) != (quiet[-1].value is None):
        yield "the last list is missing"
    elif mine[-1].value and quiet[-1].value:
        last, should = decode_recommendation(mine[-1].value), decode_recommendation(quiet[-1].value)
        if (last.recommendation_id, last.as_of) != (should.recommendation_id, should.as_of):
            yield "the last list is of another event"
        if should.personalised and last.items != should.items:
            yield "the last list has other items"
