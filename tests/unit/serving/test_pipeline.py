"""The micro-batch with every part in memory: its effects, their order, and failures."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from freshet.core.events import ERASE, MAX_EVENT_BYTES, OPT_IN, OPT_OUT, VISIT, BadReason, Event, Unreadable
from freshet.core.features import Tensors
from freshet.core.popularity import Popularity, decode_partial
from freshet.core.state import Consent, empty_state
from freshet.ports import Encoded, FeatureRow, Message, Record, Unavailable
from freshet.serving import feature_writer
from freshet.serving.pipeline import PartitionBatch
from freshet.serving.touched_user import Touched, urgency_of
from msgspec.structs import replace
from prometheus_client import REGISTRY

from tests.simulation.memory_world import (
    ITEMS,
    NOW,
    PARTITION,
    MemoryWorld,
    digest,
    event,
    go_live,
    lists,
    make_bundle,
    record,
)


@pytest.fixture
async def world() -> MemoryWorld:
    """A world with the default settings."""
    return await MemoryWorld().start()


def sample(name: str, **labels: str) -> float:
    """A metric's value now."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_run_changes_state_features_and_list(world: MemoryWorld) -> None:
    """An event is in the state, the feature store and the list when `process` returns."""
    await world.run(event(3, kind="purchase", amount=7.5))
    assert world.state().items == [ITEMS[3]]
    row = await world.features.read("ann")
    assert list(row["recent_items"]) == [ITEMS[3]]
    assert row["purchase_count"] == 1
    assert row["purchase_spend"] == 7.5
    assert row["model_version"] == 1
    np.testing.assert_array_equal(row["embedding"], world.bundle.item_vectors[3])
    [made] = lists(world.publisher.messages)
    assert (made.user_id, made.model_version, made.degraded, made.personalised) == ("ann", 1, False, True)
    assert (made.as_of.partition, made.as_of.offset, made.as_of.ts) == (PARTITION, 0, event(3).ts)
    assert len(made.items) == world.settings.list_size
    assert ITEMS[3] not in {item.item_id for item in made.items}
    assert made.items[0].reasons[0].item_id == ITEMS[3]


async def test_timings_are_the_events_way(world: MemoryWorld) -> None:
    """Timings hold the event time, the broker's time and the worker's clock for state, inference and publish."""
    await world.run(event(1))
    [made] = lists(world.publisher.messages)
    clock = NOW + 60_000
    timings = made.timings
    assert (timings.event, timings.broker) == (event(1).ts, event(1).ts + 5)
    assert timings.state == timings.inference == timings.publish == clock


async def test_a_burst_costs_one_inference_and_one_list(world: MemoryWorld) -> None:
    """Ten events of a user in a run are folded singly, encoded once and published once."""
    await world.run(*(event(number) for number in range(10)))
    assert world.state().folded == 10
    assert world.encoder.calls == [(1, 1)]
    [made] = lists(world.publisher.messages)
    assert made.as_of.offset == 9


async def test_large_runs_are_encoded_in_batches_purchases_first() -> None:
    """No encoder call is larger than the setting, and buyers are encoded before viewers."""
    world = await MemoryWorld(encode_batch=4).start()
    views = [event(number, f"viewer-{number}") for number in range(7)]
    await world.run(*views, event(8, "clicker", "click"), event(9, "buyer", "purchase"))
    assert world.encoder.calls == [(4, 1), (4, 1), (1, 1)]
    assert [made.user_id for made in lists(world.publisher.messages)][:2] == ["buyer", "clicker"]


EFFECTS = ("state", "lists", "dead letters", "popularity", "features", "delete")


class Gate:
    """Lets every effect through but those that are held, and counts the waiting."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.opened = asyncio.Event()
        self.waiting: list[str] = []

    async def through(self, effect: str) -> None:
        """Wait while the effect is held."""
        if effect in self.held:
            self.waiting.append(effect)
            await self.opened.wait()


def gated(world: MemoryWorld, gate: Callable[[str], Any]) -> None:
    """Have every effect of a world pass a gate first."""
    topics = {
        world.settings.recommendations_topic: "lists",
        world.settings.dlq_topic: "dead letters",
        world.settings.popularity_topic: "popularity",
    }
    write, publish = world.store.write, world.publisher.publish
    write_rows, delete = world.features.write, world.features.delete

    async def write_state(states: Mapping[str, bytes]) -> None:
        await gate("state")
        await write(states)

    async def publish_messages(messages: Sequence[Message]) -> None:
        for topic in dict.fromkeys(message.topic for message in messages):
            await gate(topics[topic])
        await publish(messages)

    async def write_features(*rows: Sequence[FeatureRow]) -> None:
        await gate("features")
        await write_rows(*rows)

    async def delete_users(users: Sequence[str]) -> None:
        await gate("delete")
        await delete(users)

    world.store.write = write_state  # type: ignore[method-assign]
    world.publisher.publish = publish_messages  # type: ignore[method-assign]
    world.features.write = write_features  # type: ignore[method-assign]
    world.features.delete = delete_users  # type: ignore[method-assign]


def one_of_each() -> list[Record]:
    """A run that has every effect there is."""
    bad = Record(2, NOW, b"k", b"junk")
    return [record(0, event(0)), record(1, event(1, "bob", OPT_OUT)), bad]


@pytest.mark.parametrize("effect", EFFECTS)
async def test_nothing_returns_before_every_effect_is_durable(world: MemoryWorld, effect: str) -> None:
    """`process` does not return while any effect is not acknowledged."""
    gate = Gate()
    gate.held = {effect}
    gated(world, gate.through)
    task = asyncio.create_task(world.process(one_of_each()))
    for _ in range(50):
        await asyncio.sleep(0)
    assert set(gate.waiting) == {effect}
    assert not task.done()
    gate.opened.set()
    await asyncio.wait_for(task, 5)


@pytest.mark.parametrize("effect", EFFECTS)
async def test_a_failed_effect_raises_after_the_others_ended(world: MemoryWorld, effect: str) -> None:
    """A failed effect fails the run after every other effect of the run has ended."""

    class Refused(Exception):
        """Nobody expects this."""

    ended: list[str] = []

    async def gate(step: str) -> None:
        if step == effect:
            raise Refused
        await asyncio.sleep(0.01)
        ended.append(step)

    gated(world, gate)
    with pytest.raises(Refused):
        await world.process(one_of_each())
    at_once = list(ended)
    await asyncio.sleep(0.05)
    assert ended == at_once


async def test_a_broken_encoder_is_a_surprise(world: MemoryWorld) -> None:
    """Any encoder error except `Unavailable` raises out of the run."""

    async def encode(*_: object) -> None:
        raise ZeroDivisionError

    world.encoder.encode = encode  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await world.run(event(0))


async def test_a_list_never_mixes_versions(world: MemoryWorld) -> None:
    """A version that goes live while users are encoded makes the next list."""
    other = make_bundle(2, ITEMS[::-1])
    world.encoder.bundles[2] = other
    encode = world.encoder.encode

    async def swapped(tensors: Tensors, version: int) -> Encoded:
        encoded = await encode(tensors, version)
        go_live(world.model, other)
        return encoded

    world.encoder.encode = swapped  # type: ignore[method-assign]
    await world.run(event(3))
    world.encoder.encode = encode  # type: ignore[method-assign]
    row = await world.features.read("ann")
    await world.run(event(3))
    alone = await MemoryWorld().start()
    await alone.run(event(3))
    first, second = lists(world.publisher.messages)
    [expected] = lists(alone.publisher.messages)
    assert (first.model_version, row["model_version"], second.model_version) == (1, 1, 2)
    assert first.items == expected.items != second.items
    np.testing.assert_array_equal(row["embedding"], world.bundle.item_vectors[3])


async def test_lists_degrade_while_the_encoder_is_away(world: MemoryWorld) -> None:
    """Without the encoder, state and features go on, and the list is degraded, near the user's items and unseen."""
    world.encoder.away = True
    await world.run(event(0))
    [made] = lists(world.publisher.messages)
    assert (made.degraded, made.personalised) == (True, True)
    assert len(made.items) == world.settings.list_size
    vectors = world.bundle.item_vectors
    nearest = [ITEMS[row] for row in np.argsort(-(vectors @ vectors[0]), kind="stable") if row]
    assert made.items[0].item_id == nearest[0]
    assert [reason.item_id for reason in made.items[0].reasons] == [ITEMS[0]]
    assert ITEMS[0] not in {item.item_id for item in made.items}
    assert world.state().items == [ITEMS[0]]
    row = await world.features.read("ann")
    assert list(row["recent_items"]) == [ITEMS[0]]
    assert row["embedding"] is None
    world.encoder.away = False
    await world.run(event(1))
    assert not lists(world.publisher.messages)[-1].degraded


@pytest.mark.parametrize(
    "change",
    [
        {"topk_index": lambda index: index[:, :-1]},
        {"topk_index": lambda index: index + 10_000},
        {"topk_index": lambda index: index - 10_000},
        {"embedding": lambda embedding: embedding[:, :-1]},
        {"embedding": lambda embedding: embedding[:-1]},
    ],
)
async def test_an_answer_that_does_not_fit_has_no_part_in_a_list(world: MemoryWorld, change: Mapping[str, Any]) -> None:
    """Rows, columns or items that are not what was asked for: the list is degraded, and the worker goes on."""
    encode = world.encoder.encode

    async def changed(tensors: Tensors, version: int) -> Encoded:
        encoded = await encode(tensors, version)
        return encoded._replace(**{name: alter(getattr(encoded, name)) for name, alter in change.items()})

    world.encoder.encode = changed  # type: ignore[method-assign]
    await world.run(event(0))
    assert lists(world.publisher.messages)[0].degraded


async def test_features_are_restored_out_of_the_states(world: MemoryWorld) -> None:
    """All features of a user, and no list; those of a user who has opted out stay away."""
    await world.run(event(3), event(1, user="bob"))
    await world.run(Event("out", "bob", OPT_OUT, NOW))
    before, published = await world.features.read("ann"), len(world.publisher.messages)
    await world.features.delete(["ann", "bob"])
    await world.pipeline.process([PartitionBatch(world.store, PARTITION, (), ["ann", "bob"])])
    after = await world.features.read("ann")
    np.testing.assert_equal(after, before)
    assert not any((await world.features.read("bob")).values())
    assert len(world.publisher.messages) == published


async def test_partitions_without_a_backlog_get_their_lists_first() -> None:
    """A few users beside many of another partition come before them, and within each purchases come first."""
    backlog = [Touched(f"u{number}", empty_state(0), weight=number % 3) for number in range(100)]
    rest = [Touched("few", empty_state(1), weight=0.0)]
    ordered = sorted(backlog + rest, key=urgency_of(backlog + rest))
    assert ordered[0].user_id == "few"
    assert [user.weight for user in ordered[1:]] == sorted((user.weight for user in backlog), reverse=True)


async def test_opting_out_forgets_and_unpersonalises(world: MemoryWorld) -> None:
    """An opt-out empties state and features, and the last list is the popular one."""
    await world.run(event(0))
    await world.run(event(1, kind=OPT_OUT))
    assert world.state().consent is Consent.OPTED_OUT
    assert world.state().items == []
    assert set((await world.features.read("ann")).values()) == {None}
    last = lists(world.publisher.messages)[-1]
    assert (last.personalised, last.degraded, last.as_of.offset) == (False, False, 1)
    assert last.items
    assert not any(item.reasons for item in last.items)


async def test_a_profile_opted_out_stays_away_until_opt_in(world: MemoryWorld) -> None:
    """Events between opt-out and opt-in leave no trace, and events after the opt-in count."""
    await world.run(event(0), event(1, kind=OPT_OUT), event(2))
    assert world.state().items == []
    assert set((await world.features.read("ann")).values()) == {None}
    await world.run(event(3, kind=OPT_IN))
    assert not lists(world.publisher.messages)[-1].personalised
    await world.run(event(4))
    assert world.state().items == [ITEMS[4]]
    assert lists(world.publisher.messages)[-1].personalised
    assert (await world.features.read("ann"))["view_count"] == 1


async def test_a_visitor_has_a_list_before_the_first_event(world: MemoryWorld) -> None:
    """An opt-in is enough: it is what is popular at the moment, and the first event makes it their own."""
    world.model.live.space.set_popularity(Popularity.of({ITEMS[5]: 2.0}))
    await world.run(event(3, kind=OPT_IN))
    made = lists(world.publisher.messages)[-1]
    assert (made.user_id, made.personalised, made.degraded) == ("ann", False, False)
    assert (made.items[0].item_id, made.items[0].source) == (ITEMS[5], "popular")
    await world.run(event(4))
    assert lists(world.publisher.messages)[-1].personalised


async def test_a_visit_is_answered_by_a_list(world: MemoryWorld) -> None:
    """The list after a visit names the visit, and the profile, the popularity and the seen items stay as they were."""
    await world.run(event(0))
    counted = world.messages("popularity")
    visit = replace(event(1, kind=VISIT), item_id=ITEMS[1])
    await world.run(visit)
    before, made = lists(world.publisher.messages)
    assert (before.cause, before.visits) == ("event", ())
    assert (made.cause, made.visits, made.personalised) == ("visit", ("e1",), True)
    assert (made.as_of.offset, made.as_of.ts) == (1, visit.ts)
    assert [item.item_id for item in made.items] == [item.item_id for item in before.items]
    assert world.state().items == [ITEMS[0]]
    assert world.state().counts == {"view": 1}
    assert world.messages("popularity") == counted


async def test_all_visits_of_a_run_are_answered(world: MemoryWorld) -> None:
    """A list answers every visit of its user in the run, before a purchase too, and a redelivered visit once more."""
    await world.run(event(0, kind=VISIT), event(1, kind="purchase"), event(2, kind=VISIT))
    await world.run(event(2, kind=VISIT))
    first, again = lists(world.publisher.messages)
    assert (first.cause, first.visits, first.as_of.offset) == ("visit", ("e0", "e2"), 2)
    assert (again.cause, again.visits) == ("visit", ("e2",))
    assert world.state().items == [ITEMS[1]]


async def test_an_unknown_visitor_gets_what_is_popular(world: MemoryWorld) -> None:
    """A visit of somebody unknown, and of somebody who opted out, is answered by the popular list."""
    world.model.live.space.set_popularity(Popularity.of({ITEMS[5]: 2.0}))
    await world.run(event(0, "eve", VISIT), event(1, "bob"), event(2, "bob", OPT_OUT), event(3, "bob", VISIT))
    made = {recommendation.user_id: recommendation for recommendation in lists(world.publisher.messages)}
    for user, visit in (("eve", "e0"), ("bob", "e3")):
        assert (made[user].cause, made[user].visits, made[user].personalised) == ("visit", (visit,), False)
        assert made[user].items[0].item_id == ITEMS[5]


async def test_an_erased_visitor_gets_no_list(world: MemoryWorld) -> None:
    """A visit after an erasure leaves the tombstone as the newest record."""
    await world.run(event(0), event(1, kind=ERASE))
    await world.run(event(2, kind=VISIT))
    assert world.messages("recommendations")[-1].value is None


async def test_visitors_are_answered_first() -> None:
    """Who waits for a list is encoded before buyers."""
    world = await MemoryWorld(encode_batch=1).start()
    await world.run(event(0, "visitor"))
    await world.run(event(1, "buyer", "purchase"), event(2, "visitor", VISIT))
    assert [made.user_id for made in lists(world.publisher.messages)] == ["visitor", "visitor", "buyer"]


async def test_erasing_leaves_a_tombstone(world: MemoryWorld) -> None:
    """An erasure empties state and features, and the newest record of the user is a tombstone."""
    await world.run(event(0))
    await world.run(event(1, kind=ERASE), event(2))
    assert world.state().consent is Consent.ERASED
    assert world.state().items == []
    assert set((await world.features.read("ann")).values()) == {None}
    last = world.messages("recommendations")[-1]
    assert (last.key, last.value) == (b"ann", None)


BAD: dict[BadReason, Record] = {
    BadReason.EMPTY: Record(10, NOW, b"k", None),
    BadReason.TOO_LARGE: Record(11, NOW, b"k", b"x" * (MAX_EVENT_BYTES + 1)),
    BadReason.NOT_JSON: Record(12, NOW, b"k", b"\xff{"),
    BadReason.INVALID: Record(13, NOW, None, b"{}", [("ce_id", b"1")]),
    BadReason.UNKNOWN_TYPE: record(14, event(1, kind="like")),
    BadReason.MISSING_ITEM: record(15, Event(event_id="e", user_id="u", type="view", ts=NOW)),
    BadReason.KEY_MISMATCH: replace(record(16, event(1)), key=b"somebody else"),
    BadReason.AHEAD_OF_TIME: replace(record(18, event(1, ts=NOW + 10**12)), timestamp=NOW),
    BadReason.UNREADABLE: Record(17, NOW, None, Unreadable("batch 17 to 19: garbage", 20)),
}


@pytest.mark.parametrize("reason", list(BadReason))
async def test_bad_records_become_dead_letters(world: MemoryWorld, reason: BadReason) -> None:
    """A dead letter keeps key, bytes and headers, with reason, origin and digest, and good records go on."""
    bad = BAD[reason]
    before = sample("freshet_dead_letters_total", reason=reason)
    await world.process([record(1, event(0)), bad, record(20, event(1))])
    [letter] = world.messages("events.dlq")
    unreadable = isinstance(bad.value, Unreadable)
    value = None if unreadable else bad.value
    assert (letter.key, letter.value) == (bad.key, value)
    headers = dict(letter.headers)
    assert headers.pop("detail")
    assert headers.pop("origin_end", None) == (b"20" if unreadable else None)
    assert headers == {
        **dict(bad.headers),
        "reason": reason.encode(),
        "origin_topic": b"events",
        "origin_partition": str(PARTITION).encode(),
        "origin_offset": str(bad.offset).encode(),
        "sha256": digest(value),
    }
    assert sample("freshet_dead_letters_total", reason=reason) == before + 1
    assert world.state().folded == 2


async def test_a_run_of_bad_records_alone_has_no_other_effect(world: MemoryWorld) -> None:
    """A run of bad records publishes dead letters and nothing else."""
    await world.process(list(BAD.values()))
    assert len(world.messages("events.dlq")) == len(BadReason) == len(world.publisher.messages)
    assert not world.store.states


async def test_redelivery_publishes_again_and_changes_nothing(world: MemoryWorld) -> None:
    """A redelivered run leaves the same state and features and publishes an equal list."""
    records = [record(0, event(0)), record(1, event(1)), record(2, event(2, "bob", OPT_OUT))]
    await world.process(records)
    states, features = dict(world.store.states), await world.features.read("ann")
    first = lists(world.publisher.messages)
    skipped = sample("freshet_events_skipped_total", reason="redelivered")
    world.publisher.messages.clear()
    await world.process(records)
    assert world.store.states == states
    again = await world.features.read("ann")
    assert again.keys() == features.keys()
    assert all(np.array_equal(again[name], features[name]) for name in again)
    assert lists(world.publisher.messages) == first
    assert sample("freshet_events_skipped_total", reason="redelivered") == skipped + 3


async def test_a_redelivered_list_has_the_time_of_its_newest_event(world: MemoryWorld) -> None:
    """A redelivered list has the offset and the time of its newest event."""
    records = [record(0, event(0)), record(1, event(1, kind=OPT_OUT))]
    await world.process(records)
    await world.process(records)
    first, again = lists(world.publisher.messages)
    assert first.as_of.ts == event(1).ts
    assert again.as_of == first.as_of


async def test_an_event_produced_twice_moves_the_position_alone(world: MemoryWorld) -> None:
    """A second record of an event id counts as a duplicate, and the list has its offset."""
    before = sample("freshet_events_skipped_total", reason="duplicate")
    await world.run(event(0))
    await world.run(event(0))
    assert (world.state().folded, world.state().offset) == (1, 1)
    assert sample("freshet_events_skipped_total", reason="duplicate") == before + 1
    assert lists(world.publisher.messages)[-1].as_of.offset == 1


async def test_features_are_retried_while_the_store_is_away(world: MemoryWorld) -> None:
    """A store that answers the third attempt has every row, and the attempts are counted."""
    before = sample("freshet_feature_write_retries_total")
    write, fails = world.features.write, iter((True, True))

    async def write_late(*rows: Sequence[FeatureRow]) -> None:
        if next(fails, False):
            raise Unavailable("restarting")
        await write(*rows)

    world.features.write = write_late  # type: ignore[method-assign]
    await world.run(event(0))
    assert list((await world.features.read("ann"))["recent_items"]) == [ITEMS[0]]
    assert sample("freshet_feature_write_retries_total") == before + 2


@pytest.mark.parametrize("effect", ["write", "delete"])
async def test_a_store_away_for_good_ends_the_run(
    world: MemoryWorld, effect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run raises when the attempts to write features are used up."""
    monkeypatch.setattr(feature_writer, "FEATURE_RETRIES", 1)
    tries = 0

    async def away(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise Unavailable("gone")

    monkeypatch.setattr(world.features, effect, away)
    with pytest.raises(Unavailable):
        await world.process(one_of_each())
    assert tries == 2


async def test_every_step_is_observed(world: MemoryWorld) -> None:
    """The metrics hold the seconds of each step, the batch size, the folds, the lists and the freshness."""
    steps = ("fold", "state", "encode", "rank", "features", "publish")
    names = {step: sample("freshet_step_seconds_count", step=step) for step in steps}
    kinds = {kind: sample("freshet_lists_published_total", kind=kind) for kind in ("personalised", "plain", "degraded")}
    folded = sample("freshet_events_folded_total")
    batches, events = sample("freshet_batch_events_count"), sample("freshet_batch_events_sum")
    fresh = sample("freshet_event_to_publish_seconds_sum")
    await world.process(one_of_each())
    for step, before in names.items():
        assert sample("freshet_step_seconds_count", step=step) > before, step
    assert sample("freshet_events_folded_total") == folded + 2
    assert sample("freshet_batch_events_count") == batches + 1
    assert sample("freshet_batch_events_sum") == events + 3
    assert sample("freshet_lists_published_total", kind="personalised") == kinds["personalised"] + 1
    assert sample("freshet_lists_published_total", kind="plain") == kinds["plain"] + 1
    assert sample("freshet_event_to_publish_seconds_sum") - fresh == pytest.approx(2 * 60 - 0.005 * 2 - 1)
    world.encoder.away = True
    await world.run(event(5, "cyd"))
    assert sample("freshet_lists_published_total", kind="degraded") == kinds["degraded"] + 1


async def test_popularity_counts_users_and_says_what_changed(world: MemoryWorld) -> None:
    """Each run publishes the counts that it moved, before its states are written; a run without any publishes none."""
    await world.run(event(0), event(1, item=ITEMS[0]), event(2, "bob", item=ITEMS[0]), event(3))
    [published] = world.messages("popularity")
    partial = decode_partial(published.value)
    assert published.key == f"{PARTITION}/0".encode()
    assert partial.counts == pytest.approx({ITEMS[0]: 2.0, ITEMS[3]: 1.0}, abs=1e-3)
    assert partial.offset == 3
    await world.run(event(4, item=ITEMS[0]))
    await world.run(event(5, "cyd", item=ITEMS[0]))
    _, last = world.messages("popularity")
    assert decode_partial(last.value).counts == pytest.approx({ITEMS[0]: 3.0}, abs=1e-3)


async def test_counts_are_durable_before_states(world: MemoryWorld) -> None:
    """A crash after the states and before the counts would lose them: the events would come again as known ones."""
    held = asyncio.Event()
    publish = world.publisher.publish

    async def wait(messages: Sequence[Message]) -> None:
        await held.wait()
        await publish(messages)

    world.publisher.publish = wait  # type: ignore[method-assign]
    running = asyncio.create_task(world.run(event(0)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.store.states == {}
    held.set()
    await running
    assert world.state().length == 1


def read_back(world: MemoryWorld, by: MemoryWorld) -> None:
    """Let the model of `by` read what stands on the popularity topic."""
    messages = enumerate(world.messages("popularity"))
    by.model.apply_popularity([Record(at, NOW, message.key, message.value) for at, message in messages])


async def test_popularity_goes_on_where_the_partition_was_left(world: MemoryWorld) -> None:
    """A worker that takes a partition over starts from the partition's last published counts."""
    await world.run(event(0))
    read_back(world, world)
    other = await MemoryWorld().start()
    other.model, other.offset = world.model, world.offset
    await other.start()
    await other.run(event(1, "bob", item=ITEMS[0]))
    counts = decode_partial(other.messages("popularity")[-1].value).counts
    assert counts == pytest.approx({ITEMS[0]: 2.0}, abs=1e-3)


async def test_a_partition_taken_over_is_read_to_its_end(world: MemoryWorld) -> None:
    """What the former owner has published counts, also where the reader has not come that far by itself."""
    await world.run(event(0))
    world.pipeline.release([PARTITION])
    other = MemoryWorld()

    async def catch_up() -> None:
        messages = world.messages("popularity")
        other.model.apply_popularity(
            [Record(at, NOW, message.key, message.value) for at, message in enumerate(messages)]
        )

    await other.start()
    other.pipeline._catch_up = catch_up
    other.offset = world.offset
    await other.run(event(1, "bob", item=ITEMS[0]))
    await other.run(event(2, "cyd", item=ITEMS[0]))
    counts = decode_partial(other.messages("popularity")[-1].value).counts
    assert counts == pytest.approx({ITEMS[0]: 3.0}, abs=1e-2)


async def test_a_partition_that_stays_goes_on_from_what_it_had(world: MemoryWorld) -> None:
    """A partition that a rebalance gives back keeps its counts, wherever the reader stands."""
    await world.run(event(0, item=ITEMS[0]))
    read_back(world, world)
    await world.run(event(1, "bob", item=ITEMS[0]))
    world.pipeline.release([PARTITION])
    await world.run(event(2, "cyd", item=ITEMS[0]))
    counts = decode_partial(world.messages("popularity")[-1].value).counts
    assert counts[ITEMS[0]] == pytest.approx(3.0, abs=1e-3)


async def test_redelivery_counts_nobody_twice(world: MemoryWorld) -> None:
    """Popularity is not moved by a run read again."""
    records = [record(0, event(0)), record(1, event(1, "bob", item=ITEMS[0]))]
    for _ in range(3):
        await world.process(records)
    [published] = world.messages("popularity")
    assert decode_partial(published.value).counts[ITEMS[0]] == pytest.approx(2.0, abs=1e-3)


async def test_a_pipeline_without_a_model_raises(world: MemoryWorld) -> None:
    """`process` raises before a model is live."""
    world.model.live = None
    with pytest.raises(RuntimeError):
        await world.run(event(0))
    with pytest.raises(RuntimeError):
        await world.run(event(1, kind=OPT_OUT))


async def test_an_event_of_a_time_to_come_makes_nothing_of_all_others(world: MemoryWorld) -> None:
    """An event dated ahead is a dead letter and does not change the counts of other events."""
    late = replace(record(1, event(1, "bob", item=ITEMS[1], ts=NOW + 10**12)), timestamp=NOW)
    await world.process([record(0, event(0, item=ITEMS[0])), late, record(2, event(2, "cyd", item=ITEMS[2]))])
    partial = decode_partial(world.messages("popularity")[-1].value)
    assert partial.counts == pytest.approx({ITEMS[0]: 1.0, ITEMS[2]: 1.0}, abs=1e-3)
    assert partial.ts < NOW + 10**6
    [letter] = world.messages("events.dlq")
    assert dict(letter.headers)["reason"] == b"ahead_of_time"


async def test_a_user_who_withdraws_again_and_again_counts_once(world: MemoryWorld) -> None:
    """A user who withdraws twenty times counts once, with an open state as well."""
    kinds = ("view", OPT_OUT, OPT_IN)
    cycle = [event(number, kind=kinds[number % 3], item=ITEMS[0]) for number in range(60)]
    await world.run(*cycle[:30])
    for repeated in cycle[30:]:
        await world.run(repeated)
    assert decode_partial(world.messages("popularity")[-1].value).counts == pytest.approx({ITEMS[0]: 1.0}, abs=1e-3)
