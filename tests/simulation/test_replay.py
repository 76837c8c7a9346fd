"""A replay gives the same lists whatever the batches and partitions, and nothing from the future."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import msgspec
import pytest
from freshet.core.events import OPT_IN, OPT_OUT, VISIT, Event
from freshet.core.popularity import WHOLE, decode_partial
from freshet.replay.checkpoint import ReplayCheckpoint, read_checkpoint, write_checkpoint
from freshet.replay.clock import Clock
from freshet.replay.engine import Replay
from freshet.replay.merge import steps
from freshet.replay.pace import run
from freshet.replay.recount import recounted
from freshet.replay.states import MemoryStates
from freshet_training.examples import states_before

from deploy import local
from tests.simulation.memory_replays import (
    NEW_ITEM,
    SETTINGS,
    START,
    Kept,
    ListLog,
    catalogue,
    open_replay,
    records,
    replayed,
    stream,
)
from tests.simulation.memory_world import NOW, PARTITION, MemoryWorld, event, record

pytestmark = pytest.mark.skipif(bool(local.missing_parts()), reason="needs the text encoder: run `make setup`")


FOUND = ("hr", "ndcg")
"""Metrics of whether and where the next item stood in the list."""


def digest(replay: Replay) -> str:
    """The digest of all lists."""
    return str(replay.digests["version 1"])


@pytest.mark.parametrize("batch", [1, 7, 10_000])
async def test_batches_do_not_matter(batch: int) -> None:
    """Every batch size gives the same lists."""
    log = records(stream())
    assert digest(await replayed(log, batch=batch)) == digest(await replayed(log))


async def test_partitions_do_not_matter() -> None:
    """A partition and four partitions give the same lists, with a growing catalogue included."""
    items = catalogue(START + 3_000_000)
    single, four = [await replayed(records(stream(), count), items=items) for count in (1, 4)]
    assert digest(single) == digest(four)
    assert single.counts == four.counts


@pytest.mark.parametrize("batch", [1, 64, 10_000])
async def test_folding_alone_gives_the_same_states(batch: int) -> None:
    """Folding without lists gives the same states, for any number of a user's events at once."""
    with_lists = await replayed(records(stream()))
    alone = Replay(SETTINGS, [], with_lists._encoder, MemoryStates(), Clock(86_400.0, ()), Kept())
    await run(alone, records(stream()), SETTINGS, batch=batch)
    assert alone._states.saved() == with_lists._states.saved()
    assert alone.counts["folded"] == with_lists.counts["folded"] > 300


async def test_another_log_has_another_digest() -> None:
    """A log with an event less, another item or another order has another digest."""
    events = stream()
    whole = digest(await replayed(records(events)))
    assert digest(await replayed(records(events[:-1]))) != whole
    assert digest(await replayed(records(events), items=catalogue())) != whole
    changed = [*events[:50], Event("e50", events[50].user_id, "view", events[50].ts, "299"), *events[51:]]
    assert digest(await replayed(records(changed))) != whole


async def test_a_list_follows_each_moment() -> None:
    """Events of a user at the same time make a single list, and a later event makes another."""
    events = [
        Event("e1", "user-1", "view", START, "1"),
        Event("e2", "user-2", "view", START, "2"),
        Event("e3", "user-1", "click", START, "3"),
        Event("e4", "user-1", "view", START + 1, "4"),
    ]
    kept = Kept()
    await replayed(records(events), kept)
    assert [(user, ts) for user, ts, _ in kept.made] == [("user-1", START), ("user-2", START), ("user-1", START + 1)]
    assert all(not {"1", "3"} & set(items) for user, _, items in kept.made if user == "user-1")


async def test_a_visit_before_an_event_gives_the_list_of_reading() -> None:
    """Where each event follows a visit, the published lists are judged as lists made at the moment of reading are."""
    visited = []
    for number, act in enumerate(stream()):
        visited.append(Event(f"v{number}", act.user_id, VISIT, act.ts + 1))
        visited.append(msgspec.structs.replace(act, ts=act.ts + 2))
    events = sorted(visited, key=lambda entry: entry.ts)
    replay = await replayed(records(events), judged=True)
    judges = {schedule.name: judge.evaluation() for schedule, judge in replay._models[0].judges.items()}
    published, reading = (judges[name].slices["all"]["all"] for name in ("as published", "at every event"))
    assert published.events == reading.events > 100
    assert [published.metrics[name] for name in FOUND] == [reading.metrics[name] for name in FOUND]
    without = await replayed(records(stream()), judged=True)
    [late] = [judge.evaluation() for schedule, judge in without._models[0].judges.items() if schedule.period is None]
    assert [late.slices["all"]["all"].metrics[name] for name in FOUND] != [reading.metrics[name] for name in FOUND]


async def test_a_visit_is_no_training_row() -> None:
    """Visits, with an item or without, leave the training rows as they are."""
    kept, visited = Kept(wants_training_rows=True), Kept(wants_training_rows=True)
    visits = [Event(f"v{number}", act.user_id, VISIT, act.ts, "7") for number, act in enumerate(stream())]
    await replayed(records(stream()), kept)
    await replayed(records(sorted([*stream(), *visits], key=lambda entry: entry.ts)), visited)
    assert kept.rows
    assert visited.rows == kept.rows


async def test_a_new_item_is_in_lists_from_its_time_on() -> None:
    """A new item is in lists from its time on and not before."""
    kept, without = Kept(), Kept()
    late = START + 2_000_000
    await replayed(records(stream()), kept, items=catalogue(late))
    await replayed(records(stream()), without)
    before = [entry for entry in kept.made if entry[1] < late - 90_000]
    assert before == [entry for entry in without.made if entry[1] < late - 90_000]
    assert all(NEW_ITEM.item_id not in items for _, _, items in before)
    assert any(NEW_ITEM.item_id in items for _, _, items in kept.made)


async def test_bad_events_are_dead_letters_as_live() -> None:
    """Bad events are dead letters with origin and reason and change nothing else."""
    kept = Kept()
    replay = await replayed(records(stream(), bad=[b"{", b'{"type": "view"}']), kept)
    reasons = [dict(letter.headers)["reason"] for letter in kept.letters]
    assert reasons == [b"not_json", b"invalid"]
    assert dict(kept.letters[0].headers)["origin_offset"] == str(len(records(stream()).records[0])).encode()
    assert digest(replay) == digest(await replayed(records(stream())))


@pytest.mark.parametrize("partitions", [1, 4])
async def test_going_on_from_a_checkpoint_is_as_if_never_cut_off(partitions: int, tmp_path: Path) -> None:
    """A replay from a checkpoint has the lists, digests and evaluation of a replay without a break."""
    log = records(stream(), partitions)
    whole = await replayed(log, judged=True)
    first = await open_replay(Kept(), judged=True)
    await first.feed(list(islice(steps(log, {}, SETTINGS), 150)))
    await first.drain()
    write_checkpoint(tmp_path / "file", ReplayCheckpoint("", 1, {}, first.saved(), first._states.saved()))
    checkpoint = read_checkpoint(tmp_path / "file")
    second = await open_replay(Kept(), judged=True)
    restored = MemoryStates()
    restored.restore(checkpoint.states)
    second._states = restored
    await second.restore(checkpoint.replay)
    await second.feed(list(steps(log, second.positions, SETTINGS)))
    await second.finish()
    assert digest(second) == digest(whole)
    assert second.counts == whole.counts
    again, once = ([judge.evaluation() for judge in replay._models[0].judges.values()] for replay in (second, whole))
    assert all(evaluation.slices["all"]["all"].events > 100 for evaluation in once)
    assert again == once


def leaks(events: list[Event], rows: list[tuple[list[str], list[int], Event]]) -> int:
    """Rows that know of anything not strictly before their event's moment, by an independent reading of the log."""
    found = 0
    for items, times, target in rows:
        position = next(number for number, event in enumerate(events) if event.event_id == target.event_id)
        known = [e for e in events[:position] if e.user_id == target.user_id and e.ts < target.ts and e.item_id]
        expected = list(dict.fromkeys((e.event_id, e.item_id, e.ts) for e in known))
        forgotten = [e.ts for e in events[:position] if e.user_id == target.user_id and e.type.startswith("user.opt_o")]
        forgotten += [e.ts for e in events[:position] if e.user_id == target.user_id and e.type == "user.erase"]
        allowed = [(item, ts) for _, item, ts in expected if ts >= max(forgotten, default=0)]
        found += not set(zip(items, times, strict=True)) <= set(allowed)
    return found


async def test_training_rows_hold_nothing_of_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training row has the state before its moment, and a planted leak is found."""
    events = stream()
    kept = Kept(wants_training_rows=True)
    await replayed(records(events), kept)
    assert len(kept.rows) > 200
    assert leaks(events, kept.rows) == 0

    leaky = Kept(wants_training_rows=True)
    monkeypatch.setattr("freshet.replay.engine._copied", lambda state: state)  # the state as folds go on with it
    await replayed(records(events), leaky)
    assert leaks(events, leaky.rows) > 100


async def test_training_rows_are_what_the_trainer_learns_from() -> None:
    """Training rows are the trainer's states and events, apart from the order of equal times."""
    events = stream()
    kept = Kept(wants_training_rows=True)
    await replayed(records(events), kept)
    replays = {event.event_id: (items, times) for items, times, event in kept.rows}
    trainers = {
        event.event_id: (list(state.items), list(state.times))
        for event, state, _ in states_before(events, {}, SETTINGS.history)
        if event.ts > state.last_ts
    }
    assert len(trainers) > 200
    assert {event_id: replays[event_id] for event_id in trainers} == trainers


async def test_users_who_left_are_remembered() -> None:
    """The replay keeps the time of each user's last opt-out or erasure."""
    events = [
        Event("e1", "user-1", "view", START, "1"),
        Event("e2", "user-1", "user.opt_out", START + 1),
        Event("e3", "user-2", "view", START + 2, "1"),
    ]
    replay = await replayed(records(events))
    assert replay.forgotten == {"user-1": START + 1}


async def test_counted_anew_is_what_the_worker_published() -> None:
    """Recounted popularity equals the worker's published counts, on a log with every special event."""
    settings = msgspec.structs.replace(SETTINGS, behaviours={**SETTINGS.behaviours, "dislike": 0.0})
    world = MemoryWorld()
    world.settings = settings
    await world.start()
    given = [
        *(event(number, f"u{number % 7}", item=f"film-{number % 5}") for number in range(40)),
        event(40, "u1", kind="dislike", item="film-9"),
        event(41, "u1", kind=OPT_OUT),
        event(42, "u1", kind=OPT_IN),
        event(43, "u1", item="film-0"),
        event(3, "u8", item="film-1", event_id="late"),
    ]
    log = [record(offset, sent) for offset, sent in enumerate(given)]
    log.append(msgspec.structs.replace(record(45, event(45, "u9", ts=NOW + 10**12)), timestamp=NOW))
    await world.process(log)
    published = decode_partial(world.messages("popularity")[-1].value)
    assert recounted(ListLog({PARTITION: log}), settings) == [msgspec.structs.replace(published, ring_slot=WHOLE)]
    assert set(published.counts) == {f"film-{number}" for number in range(5)}
