"""Lists that are made again between the events stay exact under a kill at every point, and after a hand-over."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from freshet.core.catalogue import CatalogueItem, encode_item
from freshet.core.recommendation import OWN_CAUSES, Recommendation, decode_recommendation
from freshet.core.standing_lists import Wait
from freshet.ports import Record
from freshet.replay.rebuild import FoldedLog, Rebuilder, SideInputTopics
from freshet.replay.verify import Published, Verifier
from freshet.serving.canary import CanaryAnalysis
from freshet.serving.list_publication import CAUSES, ListPublication
from freshet.serving.live_versions import LiveVersions
from freshet.serving.living_lists import LivingLists
from freshet.serving.pipeline import Pipeline
from freshet.settings import Settings

from tests.simulation.memory_replays import ListLog
from tests.simulation.memory_world import ITEMS, NOW, FakeEncoder, go_live, write_bundle
from tests.simulation.mortal_worker import (
    BUNDLE,
    PARTITIONS,
    SLOW_ENCODER,
    Batch,
    Crash,
    Durable,
    Killer,
    MortalEncoder,
    MortalFeatures,
    MortalPublisher,
    MortalStore,
    commit_last,
    partition_of,
    small_log,
)

SETTINGS = Settings(prior_weight=0.0, list_size=3, encode_batch=2, living_budget=1.0)
LOG = small_log()
BATCH = 3
LAST_TURNS = 8
"""Turns after the last event, a second each: all that waits is made again in them."""


@pytest.fixture(scope="module", autouse=True)
def _killed_lives_are_buried() -> Iterator[None]:
    """As in `test_crash_points`."""
    yield
    gc.collect()


@dataclass
class Shop:
    """The items topic, which goes on whatever happens to a worker: items of lists are sold out and come back."""

    records: list[Record] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def trade(self, durable: Durable) -> None:
        """Sell out the first item of every list that stands; what went the trade before is there again."""
        back, self.gone = self.gone, sorted({made.items[0].item_id for made in newest(durable).values()})
        for item_id in back:
            self._put(item_id, available=True)
        for item_id in self.gone:
            self._put(item_id, available=False)

    def _put(self, item_id: str, *, available: bool) -> None:
        value = encode_item(CatalogueItem(item_id, available=available))
        self.records.append(Record(len(self.records), 0, item_id.encode(), value))


class StoreOfPartition(MortalStore):
    """The states of one partition."""

    def __init__(self, killer: Killer, durable: Durable, partition: int) -> None:
        super().__init__(killer, durable)
        self._partition = partition
        self._states = durable.store.states

    def users(self) -> list[str]:
        """Every user of the partition with a state."""
        return [user for user in self._states if PARTITIONS[user.encode()] == self._partition]


def of_users(durable: Durable) -> dict[str, list[Recommendation | None]]:
    """Everybody's lists in the order in which they were published, None for a tombstone."""
    found: dict[str, list[Recommendation | None]] = {}
    for message in durable.publisher.messages:
        if message.topic == SETTINGS.recommendations_topic:
            made = decode_recommendation(message.value) if message.value else None
            found.setdefault((message.key or b"").decode(), []).append(made)
    return found


def newest(durable: Durable) -> dict[str, Recommendation]:
    """The lists that stand."""
    return {user: lists[-1] for user, lists in of_users(durable).items() if lists[-1] is not None}


async def lived(kills: Sequence[int], interleaving: int = 0) -> tuple[Durable, Shop]:
    """Lives of a worker over the log, each but the last ended at the given point."""
    durable, shop = Durable(), Shop()
    for number, at in enumerate([*kills, None]):
        killer = Killer(at, interleaving + number if interleaving > 0 else interleaving)
        before = len(durable.publisher.messages)
        try:
            await live(killer, durable, shop)
        except Crash:
            durable.crashes += 1
        else:
            durable.points = killer.points
            break
        finally:
            durable.complaints |= twice(durable, before)
    return durable, shop


def twice(durable: Durable, since: int) -> set[str]:
    """Lists that one life made again twice for the same cause and inputs."""
    lists = [
        decode_recommendation(message.value)
        for message in durable.publisher.messages[since:]
        if message.topic == SETTINGS.recommendations_topic and message.value
    ]
    again = Counter(made.recommendation_id for made in lists if made.cause not in OWN_CAUSES)
    return {f"{list_id} was published {count} times in a life" for list_id, count in again.items() if count > 1}


async def live(killer: Killer, durable: Durable, shop: Shop) -> None:
    """One life: batches of events, the shop's trades, and lists made again beside both."""
    encoder = MortalEncoder(killer)
    model = LiveVersions(encoder, BUNDLE.path)
    model.apply_items(shop.records)
    go_live(model, BUNDLE)
    publisher = MortalPublisher(killer, durable)
    now_s = NOW / 1000 + 60 + 1000 * durable.crashes

    def clock() -> float:
        return now_s

    canary = CanaryAnalysis(SETTINGS, model, encoder, publisher, "worker")
    publication = ListPublication(SETTINGS, publisher, clock)
    features = MortalFeatures(killer, durable)
    pipeline = Pipeline(SETTINGS, model, encoder, features, publisher, canary, clock=clock, publication=publication)
    living = LivingLists(
        SETTINGS,
        model,
        encoder,
        pipeline,
        publication,
        lambda partition: StoreOfPartition(killer, durable, partition),
        clock,
    )
    left = [logged for logged in LOG if logged.offset >= durable.committed[partition_of(logged)]]

    async def work() -> None:
        while left:
            batch: Batch = {}
            for logged in left[:BATCH]:
                batch.setdefault(partition_of(logged), []).append(logged)
                left.remove(logged)
            await commit_last(pipeline, MortalStore(killer, durable), killer, durable, batch)
            traded = len(shop.records)
            shop.trade(durable)
            model.apply_items(shop.records[traded:])

    async def make_again() -> None:
        nonlocal now_s
        turns = 0
        while turns < LAST_TURNS:
            turns += events.done()
            living.follow(set(PARTITIONS.values()))
            now_s += 1.0
            await living.turn()
            await asyncio.sleep(0)
        if killer.dead:
            raise Crash

    events = asyncio.create_task(work())
    for ended in await asyncio.gather(events, asyncio.create_task(make_again()), return_exceptions=True):
        if ended is not None:
            raise ended


async def wrong(durable: Durable, shop: Shop, repository: Path) -> set[str]:
    """What is wrong with what was published."""
    found = set(durable.complaints)
    for user, lists in of_users(durable).items():
        made = [recommendation for recommendation in lists if recommendation is not None]
        offsets = [recommendation.as_of.offset for recommendation in made]
        if offsets != sorted(offsets):
            found.add(f"{user}: lists go back")
        erased = next((number for number, recommendation in enumerate(lists) if recommendation is None), len(lists))
        if any(recommendation is not None for recommendation in lists[erased:]):
            found.add(f"{user}: a list follows the tombstone")
    for user, made_last in newest(durable).items():
        if gone := {item.item_id for item in made_last.items} & set(shop.gone):
            found.add(f"{user}: {gone} still stand")
    published = Published(
        Record(number, 0, message.key, message.value)
        for number, message in enumerate(durable.publisher.messages)
        if message.topic == SETTINGS.recommendations_topic
    )
    by_partition: dict[int, list[Record]] = {}
    for logged in LOG:
        by_partition.setdefault(partition_of(logged), []).append(logged)
    topics = SideInputTopics(shop.records, [])
    rebuilder = Rebuilder(SETTINGS, 1, FakeEncoder(BUNDLE), repository, topics)
    log = FoldedLog(ListLog(by_partition), SETTINGS, published.lists)
    verifier = Verifier(SETTINGS, log, published, topics, lambda _: rebuilder)
    await verifier.lists()
    verifier.last_lists()
    result = verifier.result()
    found |= {f"verify: {mismatch.user_id}: {mismatch.detail}" for mismatch in result.examples}
    if result.unverifiable:
        found.add(f"{result.unverifiable} lists cannot be verified")
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the bundle."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, 1)
    return folder


async def test_without_kills_lists_are_made_again_and_all_is_well(repository: Path) -> None:
    """The shop's trades change lists, and sold-out items leave them."""
    durable, shop = await lived([])
    assert await wrong(durable, shop, repository) == set()
    again = [made for lists in of_users(durable).values() for made in lists if made and made.cause not in OWN_CAUSES]
    assert len(again) > 2
    assert {made.cause for made in again} <= {"item", "popularity"}
    assert {item_id for made in again for item_id in (item.item_id for item in made.items)} <= set(ITEMS)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are made again in the midst of the batches, as where own events never end."""

    async def no_waiting(*_: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(Pipeline, "quiet", no_waiting)


@pytest.fixture
def late(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And take so long that users act meanwhile."""
    encode_again = LivingLists._encode_again

    async def slowly(*arguments: Any) -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        await encode_again(*arguments)

    monkeypatch.setattr(LivingLists, "_encode_again", slowly)


@pytest.mark.parametrize("interleaving", [0, 1, 2, SLOW_ENCODER])
@pytest.mark.parametrize("pace", ["patient", "hasty", "late"])
async def test_one_kill_at_every_point(
    repository: Path, interleaving: int, pace: str, request: pytest.FixtureRequest
) -> None:
    """No list is of an older event than the one before, none is wrong, and no sold-out item stands in the end."""
    if pace != "patient":
        request.getfixturevalue(pace)
    clean, _ = await lived([], interleaving)
    found, lives = {}, 0
    for at in range(1, clean.points):
        durable, shop = await lived([at], interleaving)
        lives += durable.crashes
        if faults := await wrong(durable, shop, repository):
            found[at] = faults
    assert found == {}
    assert lives > 0.9 * clean.points


async def test_lists_that_are_made_again_without_care_are_found_out(
    repository: Path, monkeypatch: pytest.MonkeyPatch, late: None
) -> None:
    """Failing control: where nobody asks whether a user's own list overtook, lists go back."""
    monkeypatch.setattr("freshet.core.standing_lists.StandingLists.is_taken", lambda *_: True)
    monkeypatch.setitem(CAUSES, Wait.NONE, "item")
    faults: set[str] = set()
    for interleaving in (SLOW_ENCODER, *range(1, 10)):
        durable, shop = await lived([], interleaving)
        faults |= await wrong(durable, shop, repository)
    assert any("lists go back" in fault or "follows the tombstone" in fault for fault in faults)
