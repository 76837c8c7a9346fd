"""Standing lists are made again as the world moves: which, when, why, and never a wrong one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from unittest.mock import patch

import pytest
from freshet.core.catalogue import CatalogueItem, encode_item
from freshet.core.features import featurise
from freshet.core.popularity import Partial, encode_partial
from freshet.core.recommendation import Recommendation
from freshet.core.rollout import MODEL, Rollout, encode_record
from freshet.ports import Encoded, Message, Record
from freshet.process import metrics
from freshet.serving.list_maker import ListMaker
from freshet.serving.living_lists import POPULARITY_REST_SECONDS, URGENT_CHUNK, LivingLists

from tests.simulation.memory_world import (
    ITEMS,
    NOW,
    PARTITION,
    FakeEncoder,
    MemoryWorld,
    event,
    go_live,
    lists,
    make_bundle,
)

HOUR = 3600.0


class World(MemoryWorld):
    """A world whose clock is set, whose side inputs move, and whose lists live."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**({"living_budget": 1.0, "list_size": 5} | settings))
        self.now_s = NOW / 1000 + 60
        self.clock = lambda: self.now_s
        self._item_offset = self._count_offset = self._step_offset = -1

    async def lived(self, users: int, events: int = 3) -> LivingLists:
        """Users with some events each, and what makes their lists again, after its first look."""
        await self.start()
        living = self.living()
        living.follow({PARTITION})
        await living.turn()
        for number in range(users * events):
            await self.run(event(number, user=f"u{number % users}", ts=int(self.now_s * 1000) - 5000))
        await self.settled(living)
        self.publisher.messages.clear()
        return living

    async def settled(self, living: LivingLists) -> None:
        """Let time pass, and make again until nothing is due."""
        self.now_s += 2.0
        for _ in range(1000):
            if not await living.turn():
                return
        raise AssertionError("there is no end of it")

    def item(self, item_id: str, *, available: bool = True, title: str = "") -> None:
        """A record of the catalogue."""
        self.catalogue(item_id, encode_item(CatalogueItem(item_id, title, available=available)))

    def catalogue(self, item_id: str, value: bytes | None) -> None:
        """A record of the catalogue as it is."""
        self._item_offset += 1
        self.model.apply_items([Record(self._item_offset, 0, item_id.encode(), value)])

    def popular(self, **counts: float) -> None:
        """A record of popularity: counts of items by their number, as `n7`."""
        self._count_offset += 1
        ts = int(self.now_s * 1000)
        named = {ITEMS[int(name[1:])]: count for name, count in counts.items()}
        partial = Partial(0, self._count_offset, ts, 7 * 86_400.0, named)
        self.model.apply_popularity([Record(self._count_offset, ts, b"0", encode_partial(partial))])

    def shown(self) -> dict[str, Recommendation]:
        """Everybody's newest list since the world was lived."""
        return {made.user_id: made for made in lists(self.publisher.messages)}

    async def expected(self, user: str) -> list[object]:
        """The list that an event-free rank gives a user at this moment."""
        live, state = self.model.current, self.state(user)
        tensors = featurise([state], live.item_index, live.type_index, live.length)
        encoded: Encoded = await self.encoder.encode(tensors, live.version)
        [made] = ListMaker(self.settings).make(live, [user], [state], tensors["item_index"], encoded)
        return list(made.items)


async def until(holds: Callable[[], bool]) -> None:
    """Let other tasks go on until something holds."""
    for _ in range(10_000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never holds")


def items_of(made: Recommendation) -> list[str]:
    """The items of a list."""
    return [item.item_id for item in made.items]


async def everybody(world: World, users: int) -> dict[str, list[str]]:
    """What the lists of users are as of now, by an event-free rank."""
    return {f"u{number}": [item.item_id for item in await world.expected(f"u{number}")] for number in range(users)}


@pytest.mark.parametrize("by", ["unavailable", "tombstone"])
async def test_a_sold_out_item_leaves_every_list(by: str) -> None:
    """Each list that held the item is what an event-free rank gives now; no other list is published."""
    world = World()
    living = await world.lived(40)
    before = await everybody(world, 40)
    gone = before["u7"][0]
    if by == "tombstone":
        world.catalogue(gone, None)
    else:
        world.item(gone, available=False)
    await world.settled(living)
    shown = world.shown()
    assert set(shown) == {user for user, items in before.items() if gone in items}
    assert len(lists(world.publisher.messages)) == len(shown) > 1
    for user, made in shown.items():
        assert made.items == await world.expected(user)
        assert (made.cause, made.visits, made.personalised, made.degraded) == ("item", (), True, False)
        assert (made.as_of.partition, made.as_of.offset) == (PARTITION, world.state(user).offset)
        assert made.timings.broker <= made.timings.state <= made.timings.inference <= made.timings.publish
        assert made.side_inputs == world.model.side_inputs


async def test_what_becomes_popular_comes_into_the_lists_it_can_reach() -> None:
    """Afterwards every list stands as an event-free rank gives it, published anew or not."""
    world = World(prior_weight=10.0)
    living = await world.lived(40)
    stood = await everybody(world, 40)
    world.popular(n3=400.0, n90=30.0)
    await world.settled(living)
    now = await everybody(world, 40)
    shown = world.shown()
    assert {made.cause for made in shown.values()} == {"popularity"}
    assert any(ITEMS[3] in items_of(made) for made in shown.values())
    for user, items in now.items():
        if set(items) != set(stood[user]):
            assert items_of(shown[user]) == items


async def test_a_promoted_version_reaches_the_quiet() -> None:
    """Every list is made again with the version that took over; one share says how many are."""
    world = World()
    second = make_bundle(2)
    world.encoder = FakeEncoder(world.bundle, second)
    world.model._embedder._encoder = world.encoder
    living = await world.lived(10)
    world.model.apply_models([Record(0, 0, b"user_encoder", encode_record(Rollout(MODEL, 2, "promoted", NOW)))])
    go_live_beside(world, second)
    assert world.model.current.version == 2
    await world.settled(living)
    shown = world.shown()
    assert len(shown) == 10
    for user, made in shown.items():
        assert (made.cause, made.model_version) == ("model", 2)
        assert made.items == await world.expected(user)
    world.now_s += 2
    await living.turn()
    assert metrics.LIVING_SHARE._value.get() == 1.0
    assert metrics.LIVING_WAITING._value.get() == 0


def go_live_beside(world: World, bundle: object) -> None:
    """Prepare a version that a step promotes."""
    first = world.model._first
    go_live(world.model, bundle)  # type: ignore[arg-type]
    world.model._first = first


async def test_an_old_list_is_made_again_where_the_world_has_changed() -> None:
    """And not for its age alone: nothing else would come out."""
    world = World()
    living = await world.lived(6)
    world.now_s += 2 * HOUR
    unchanged = metrics.LIVING_UNCHANGED._value.get()
    await world.settled(living)
    assert (world.shown(), metrics.LIVING_UNCHANGED._value.get()) == ({}, unchanged)
    world.item("elsewhere", title="Something new")
    await world.settled(living)
    world.now_s += 2 * HOUR
    await world.settled(living)
    assert metrics.LIVING_UNCHANGED._value.get() == unchanged + 6
    assert world.shown() == {}


async def test_an_item_that_flickers_costs_a_list_a_rest() -> None:
    """A hundred changes in a second make a list again once or twice, and in the end it is right."""
    world = World()
    living = await world.lived(20)
    gone = (await everybody(world, 20))["u0"][0]
    holders = [user for user, items in (await everybody(world, 20)).items() if gone in items]
    for flip in range(101):
        world.item(gone, available=flip % 2 == 1)
        world.now_s += 0.01
        await living.turn()
    made = [made.user_id for made in lists(world.publisher.messages)]
    assert all(made.count(user) <= 2 for user in holders)
    await world.settled(living)
    assert {user: items_of(made) for user, made in world.shown().items()} == {
        user: [item.item_id for item in await world.expected(user)] for user in holders
    }


async def test_without_the_encoder_lists_wait() -> None:
    """No list is made again degraded; once the encoder answers, all are."""
    world = World()
    living = await world.lived(6)
    world.encoder.away = True
    for item in ITEMS[:60]:
        world.item(item, available=False)
    with patch("freshet.serving.living_lists.RETRY_SECONDS", 0.0):
        assert not await living.turn()
    assert world.shown() == {}
    world.encoder.away = False
    await world.settled(living)
    assert world.shown()
    assert not any(made.degraded for made in world.shown().values())


async def test_an_event_of_the_user_overtakes() -> None:
    """The list that was being made again is given up: its user's own list is newer."""
    world = World()
    living = await world.lived(1)
    world.item((await everybody(world, 1))["u0"][0], available=False)
    world.now_s += 1
    world.encoder.takes = {1: 0.02}
    again = asyncio.create_task(living.turn())
    await until(lambda: bool(world.publication.record(PARTITION)._taken))
    world.encoder.takes = {}
    await world.run(event(50, user="u0"))
    await again
    assert [(made.cause, made.as_of.offset) for made in lists(world.publisher.messages)] == [("event", 3)]


async def test_no_list_follows_a_tombstone() -> None:
    """An erasure overtakes too, and the record keeps nothing of the user."""
    world = World()
    living = await world.lived(2)
    world.item((await everybody(world, 2))["u0"][0], available=False)
    world.encoder.takes = {1: 0.02}
    again = asyncio.create_task(living.turn())
    await until(lambda: bool(world.publication.record(PARTITION)._taken))
    await world.run(event(50, user="u0", kind="user.erase"))
    await again
    await world.settled(living)
    assert [message.value for message in world.messages("recommendations") if message.key == b"u0"] == [None]
    assert "u0" not in world.publication.record(PARTITION)


async def test_an_own_list_waits_for_the_list_made_again_that_is_on_its_way() -> None:
    """So what is published never goes back, however long the broker takes."""
    world = World()
    living = await world.lived(1)
    world.item((await everybody(world, 1))["u0"][0], available=False)
    handed_over, goes_on = asyncio.Event(), asyncio.Event()
    publish = world.publisher.publish

    async def slowly(messages: Sequence[Message]) -> None:
        world.publisher.publish = publish
        handed_over.set()
        await goes_on.wait()
        await publish(messages)

    world.publisher.publish = slowly
    again = asyncio.create_task(living.turn())
    await handed_over.wait()
    own = asyncio.create_task(world.run(event(50, user="u0")))
    for _ in range(50):
        await asyncio.sleep(0)
    goes_on.set()
    await asyncio.gather(again, own)
    assert [made.cause for made in lists(world.publisher.messages)] == ["item", "event"]


async def test_an_item_that_goes_while_a_list_is_published_is_seen() -> None:
    """The list was ranked before the item went, and is entered after the look that saw it go."""
    world = World()
    living = await world.lived(1)
    top = (await everybody(world, 1))["u0"][0]
    write = world.store.write

    async def slowly(states: Mapping[str, bytes]) -> None:
        await asyncio.sleep(0.02)
        world.item(top, available=False)
        await living.turn()
        await write(states)

    world.store.write = slowly
    await world.run(event(0, user="u0", kind="user.visit"))
    assert top in items_of(world.shown()["u0"])
    await world.settled(living)
    assert (world.shown()["u0"].cause, top in items_of(world.shown()["u0"])) == ("item", False)


async def test_after_a_hand_over_the_lists_of_active_users_are_made_again_from_the_states() -> None:
    """What the other worker's lists were is not known; who is quiet beyond the horizon or erased is left alone."""
    world = World(living_horizon=HOUR)
    await world.lived(3)
    await world.run(event(20, user="left", kind="user.erase", ts=int(world.now_s * 1000)))
    await world.run(event(21, user="quiet", ts=int((world.now_s - 2 * HOUR) * 1000)))
    await world.run(event(22, user="plain", kind="user.opt_out", ts=int(world.now_s * 1000)))
    world.publication.standing.clear()
    world.publisher.messages.clear()
    heir = world.living()
    heir.follow({PARTITION})
    await world.settled(heir)
    shown = world.shown()
    assert set(shown) == {"u0", "u1", "u2", "plain"}
    assert {made.cause for made in shown.values()} == {"time"}
    assert not shown["plain"].personalised
    for user in ("u0", "u1", "u2"):
        assert shown[user].items == await world.expected(user)
    heir.follow(set())
    assert world.publication.standing == {}


async def test_a_suspended_worker_makes_nothing_again() -> None:
    """What is under way when partitions go is finished or given up before they go."""
    world = World()
    living = await world.lived(4)
    for item in ITEMS[:60]:
        world.item(item, available=False)
    again = asyncio.create_task(living.turn())
    await asyncio.sleep(0)
    await living.suspend()
    published = len(world.publisher.messages)
    await again
    assert not await living.turn()
    assert len(world.publisher.messages) == published
    living.follow({PARTITION})
    await world.settled(living)
    assert len(world.publisher.messages) > published


async def test_the_popular_list_lives_too() -> None:
    """Of a user without a profile: without what is sold out, with what has become popular."""
    world = World()
    world.popular(n1=9.0, n2=8.0, n3=7.0, n4=6.0, n5=5.0, n6=4.0)
    living = await world.lived(1)
    await world.run(event(9, user="anon", kind="user.visit"))
    world.item(ITEMS[1], available=False)
    await world.settled(living)
    made = world.shown()["anon"]
    assert (made.cause, made.personalised) == ("item", False)
    assert items_of(made) == [ITEMS[number] for number in (2, 3, 4, 5, 6)]
    world.popular(n50=100.0)
    world.now_s += POPULARITY_REST_SECONDS
    await world.settled(living)
    world.now_s += POPULARITY_REST_SECONDS
    await world.settled(living)
    assert items_of(world.shown()["anon"])[0] == ITEMS[50]


async def test_lists_are_made_again_a_few_at_a_time() -> None:
    """An own event never waits for more of them at the encoder."""
    world = World()
    living = await world.lived(2 * URGENT_CHUNK, events=1)
    world.encoder.calls.clear()
    for item in ITEMS[:60]:
        world.item(item, available=False)
    await world.settled(living)
    assert world.encoder.calls
    assert max(users for users, _ in world.encoder.calls) <= URGENT_CHUNK


async def test_without_a_budget_nothing_is_kept() -> None:
    """Lists are left to their users, and cost no memory."""
    world = World(living_budget=0.0)
    await world.start()
    await world.run(event(1))
    assert world.publication.standing == {}
