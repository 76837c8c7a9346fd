"""Verification makes published lists again, degraded lists included."""

from __future__ import annotations

from pathlib import Path

import pytest
from freshet.core.catalogue import CatalogueItem, encode_item
from freshet.core.events import OPT_OUT
from freshet.ports import Record
from freshet.replay.rebuild import FoldedLog, Rebuilder, SideInputTopics
from freshet.replay.verify import Published, Verifier

from tests.simulation.memory_replays import ListLog
from tests.simulation.memory_world import PARTITION, MemoryWorld, event, record, write_bundle

NOTHING = SideInputTopics([], [])


async def lived(*, away: set[int], events: int = 6) -> tuple[MemoryWorld, list[Record]]:
    """A world after some events of two users, the encoder being away at some of them, and their log."""
    world = await MemoryWorld().start()
    log = []
    for number in range(events):
        world.encoder.away = number in away
        last = number == events - 1
        sent = event(number, user=f"u{number % 2}", kind=OPT_OUT if last else "view")
        log.append(record(number, sent))
        await world.run(sent)
    world.encoder.away = False
    return world, log


def verifier(world: MemoryWorld, log: list[Record], repository: Path, topics: SideInputTopics = NOTHING) -> Verifier:
    """What was published against what the log says."""
    published = Published(
        Record(offset, 0, message.key, message.value)
        for offset, message in enumerate(world.messages("recommendations"))
    )
    folded = FoldedLog(ListLog({PARTITION: log}), world.settings, published.lists)
    rebuilder = Rebuilder(world.settings, 1, world.encoder, repository, topics)
    return Verifier(world.settings, folded, published, topics, lambda _: rebuilder)


@pytest.mark.parametrize("away", [set(), {0, 1, 2}, {4}, {3, 4}])
async def test_what_was_published_is_made_again(tmp_path: Path, away: set[int]) -> None:
    """Verification makes again the published lists and the stored vectors, degraded lists included."""
    world, log = await lived(away=away)
    write_bundle(tmp_path, 1)
    check = verifier(world, log, tmp_path)
    await check.lists()
    check.last_lists()
    await check.features(world.features, world.encoder, ["u0", "u1"], tmp_path)
    found = check.result()
    assert found.examples == []
    assert (found.compared["lists"], found.compared["features"], found.compared["embeddings"]) == (6, 2, 1)


async def test_lists_made_without_a_text_that_failed_are_made_again(tmp_path: Path) -> None:
    """Verification leaves out the items whose texts failed for a list, as the list names them."""
    world = await MemoryWorld().start()
    write_bundle(tmp_path, 1)
    world.encoder.stumbles = {"poison"}
    log, items = [], []
    for number, title in enumerate(["One", "poison", "Two", "Three", "poison too", "Four"]):
        name = f"new-{number % 4}"
        items.append(Record(number, 0, name.encode(), encode_item(CatalogueItem(name, title))))
        world.model.apply_items(items[-1:])
        await world.model.settle()
        sent = event(number, user=f"u{number % 2}")
        log.append(record(number, sent))
        await world.run(sent)
    world.encoder.stumbles = set()
    check = verifier(world, log, tmp_path, SideInputTopics(items, []))
    await check.lists()
    assert check.result().examples == []
    assert check.result().compared["lists"] == 6
    lists = Published(Record(0, 0, message.key, message.value) for message in world.messages("recommendations")).lists
    assert [published.side_inputs.items_skipped for published in lists] == [(), (1,), (1,), (1,), (1, 4), (4,)]
    assert any(item.source == "cold" for made in lists for item in made.items)


async def test_a_degraded_list_of_another_history_is_found(tmp_path: Path) -> None:
    """A degraded list of another history differs in its slots."""
    world, log = await lived(away={0, 1, 2, 3, 4})
    write_bundle(tmp_path, 1)
    check = verifier(world, [*log[:2], record(2, event(7, user="u0")), *log[3:]], tmp_path)
    await check.lists()
    assert {(found.kind, found.user_id) for found in check.result().examples} == {("lists", "u0")}


async def test_the_encoder_is_not_asked_for_what_it_did_not_answer(tmp_path: Path) -> None:
    """Verification does not encode users whose lists were degraded."""
    world, log = await lived(away={0, 1, 2, 3, 4})
    write_bundle(tmp_path, 1)
    world.encoder.broken = {1}
    check = verifier(world, log, tmp_path)
    await check.lists()
    assert (check.result().compared["lists"], check.result().examples) == (6, [])
