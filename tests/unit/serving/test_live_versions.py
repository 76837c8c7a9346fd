"""Live versions swap whole, the catalogue counts at once, and bad records change nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from freshet.bundle.bundle import BundleError
from freshet.core.catalogue import MAX_TEXT, CatalogueItem, encode_item
from freshet.core.popularity import Partial, encode_partial
from freshet.core.ranking import rank_popular
from freshet.core.rollout import MODEL, Report, Rollout, Stage, encode_record
from freshet.ports import Record, Unavailable
from freshet.serving import live_versions as live_model_module
from freshet.serving.live_versions import LiveVersions
from prometheus_client import REGISTRY

from tests.simulation.memory_world import ITEMS, NOW, FakeEncoder, make_bundle, vector, write_bundle

NEWER_ITEMS = (*ITEMS, "newcomer")


def item(offset: int, name: str, title: str = "A title", *, available: bool = True) -> Record:
    """An upsert of a catalogue item."""
    return Record(offset, NOW, name.encode(), encode_item(CatalogueItem(name, title, available=available)))


def step(offset: int, version: int, stage: Stage, share: float = 1.0, model: str = MODEL) -> Record:
    """A rollout record."""
    rollout = Rollout(model, version, stage, NOW, share)
    return Record(offset, NOW, rollout.key, encode_record(rollout))


def promoted(offset: int, version: int, model: str = MODEL) -> Record:
    """The record of a promotion."""
    return step(offset, version, "promoted", model=model)


def popularity(offset: int, counts: dict[str, float], partition: int = 0) -> Record:
    """A partition's counts."""
    partial = Partial(partition=partition, offset=9, ts=NOW, half_life=1e9, counts=counts)
    return Record(offset, NOW, str(partition).encode(), encode_partial(partial))


@pytest.fixture
def encoder() -> FakeEncoder:
    """An encoder of two versions; the second knows one item more."""
    return FakeEncoder(make_bundle(1), make_bundle(2, NEWER_ITEMS))


@pytest.fixture
async def model(encoder: FakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveVersions:
    """A model with version 1 live and version 2 in the repository; it retries quickly."""
    monkeypatch.setattr(live_model_module, "RETRY_SECONDS", 0.01)
    write_bundle(tmp_path, 1)
    write_bundle(tmp_path, 2, NEWER_ITEMS)
    model = LiveVersions(encoder, tmp_path)
    await model.start(1)
    return model


@asynccontextmanager
async def running(model: LiveVersions) -> AsyncIterator[None]:
    """The model's own task, as a worker runs it; its failure is the test's."""
    task = asyncio.create_task(model.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - a model tells nobody when it changes
            await asyncio.sleep(0.002)


def bad_side_inputs(topic: str) -> float:
    """The counter."""
    return REGISTRY.get_sample_value("freshet_bad_side_inputs_total", {"topic": topic}) or 0.0


async def test_the_default_version_is_live_where_none_was_promoted(model: LiveVersions) -> None:
    """A fresh start makes the default version live."""
    assert model.current.version == 1
    assert REGISTRY.get_sample_value("freshet_model_version") == 1


async def test_the_promoted_version_is_live_from_the_start(encoder: FakeEncoder, tmp_path: Path) -> None:
    """The last rollout record before the start wins over the default version."""
    write_bundle(tmp_path, 2, NEWER_ITEMS)
    model = LiveVersions(encoder, tmp_path)
    model.apply_models([promoted(0, 1), promoted(1, 2)])
    await model.start(7)
    assert model.current.version == 2


async def test_a_promoted_version_that_is_not_there_stops_no_start(encoder: FakeEncoder, tmp_path: Path) -> None:
    """The version before begins, or the given one where there is none; the missing one follows when it is there."""
    write_bundle(tmp_path, 1)
    model = LiveVersions(encoder, tmp_path)
    model.apply_models([promoted(0, 1), promoted(1, 2)])
    await model.start()
    assert model.current.version == 1
    alone = LiveVersions(encoder, tmp_path)
    alone.apply_models([promoted(0, 2)])
    with pytest.raises(BundleError):
        await alone.start()
    await alone.start(1)
    assert alone.current.version == 1
    write_bundle(tmp_path, 2, NEWER_ITEMS)
    async with running(alone):
        await until(lambda: alone.live is not None and alone.live.version == 2)


async def test_no_version_is_no_start(encoder: FakeEncoder, tmp_path: Path) -> None:
    """A worker without a usable bundle does not start."""
    with pytest.raises(BundleError):
        await LiveVersions(encoder, tmp_path).start(1)


async def test_a_promoted_version_replaces_the_live_one_whole(model: LiveVersions) -> None:
    """Version, bundle, item table and vocabulary change in a single step, and the old objects do not change."""
    before = model.live
    async with running(model):
        model.apply_models([promoted(0, 2)])
        await until(lambda: model.live is not before)
    after = model.live
    assert before is not None
    assert after is not None
    assert (before.version, before.item_index.get("newcomer")) == (1, None)
    assert (after.version, after.item_index["newcomer"]) == (2, len(ITEMS) + 2)
    np.testing.assert_array_equal(before.space.vectors[2], vector(ITEMS[0], 1))
    np.testing.assert_array_equal(after.space.vectors[2], vector(ITEMS[0], 2))


async def test_another_models_rollout_is_not_ours(model: LiveVersions) -> None:
    """A rollout record of another model changes nothing."""
    async with running(model):
        model.apply_models([promoted(0, 2, "fraud_detector")])
        await asyncio.sleep(0.05)
    assert model.current.version == 1
    assert model.side_inputs.models == 0


async def test_a_rolled_back_version_gives_way_to_the_one_before(model: LiveVersions) -> None:
    """A rollback makes the version promoted before live again, and a second record of it changes nothing."""
    async with running(model):
        model.apply_models([promoted(0, 1), promoted(1, 2)])
        await until(lambda: model.live.version == 2)
        model.apply_models([step(2, 2, "rolled_back"), step(3, 2, "rolled_back")])
        await until(lambda: model.live.version == 1)


async def test_a_canary_has_its_share_of_the_users_for_good(model: LiveVersions) -> None:
    """A larger share keeps the users of a smaller share, and the end of the canary returns all users."""
    users = [f"user-{number}" for number in range(2000)]

    def of_version_two() -> set[str]:
        return {
            user for live, users_of_version in model.parts(users, str) for user in users_of_version if live.version == 2
        }

    async with running(model):
        model.apply_models([step(0, 2, "canary", 0.1)])
        await until(lambda: model.candidate is not None)
        small = of_version_two()
        assert 140 < len(small) < 260
        assert sorted(user for _, users_of_version in model.parts(users, str) for user in users_of_version) == sorted(
            users
        )
        model.apply_models([step(1, 2, "canary", 0.5)])
        assert small < of_version_two()
        model.apply_models([step(2, 2, "rolled_back")])
        assert of_version_two() == set()
    assert model.live.version == 1


async def test_a_canary_that_is_promoted_is_live_at_once(model: LiveVersions) -> None:
    """A promoted canary is live at once and is not loaded again."""
    async with running(model):
        model.apply_models([step(0, 2, "canary", 0.1)])
        await until(lambda: model.candidate is not None)
        ready = model.candidate.ready
        model.apply_models([promoted(1, 2)])
        assert (model.live, model.candidate) == (ready, None)


async def test_a_shadow_makes_no_list(model: LiveVersions) -> None:
    """Every user stays with the live version while a shadow is ready."""
    async with running(model):
        model.apply_models([step(0, 2, "shadow")])
        await until(lambda: model.candidate is not None)
    [(live, users)] = model.parts(["ann", "bob"], str)
    assert (live.version, users) == (1, ["ann", "bob"])


async def test_side_inputs_reach_both_versions(model: LiveVersions, encoder: FakeEncoder) -> None:
    """Catalogue, popularity and cold items reach the spaces of both versions."""
    async with running(model):
        model.apply_models([step(0, 2, "canary", 0.5)])
        await until(lambda: model.candidate is not None)
        pair = (model.live, model.candidate.ready)
        model.apply_items([item(0, "fresh", "Fresh Film"), item(1, ITEMS[0], available=False)])
        model.apply_popularity([popularity(0, {ITEMS[5]: 3.0})])
        await until(lambda: all("fresh" in live.space.index for live in pair))
    for live in pair:
        space = live.space
        np.testing.assert_array_equal(space.vectors[space.index["fresh"]], vector("Fresh Film", live.version))
        assert not space.available[space.index[ITEMS[0]]]
        assert space.prior.values[space.index[ITEMS[5]]] == pytest.approx(np.log1p(3.0))
        assert (live.side_inputs.items, live.side_inputs.items_embedded) == (1, 1)


async def test_a_worker_starts_with_the_candidate_too(encoder: FakeEncoder, tmp_path: Path) -> None:
    """A worker that starts during a canary serves the candidate from the records alone."""
    write_bundle(tmp_path, 1)
    write_bundle(tmp_path, 2, NEWER_ITEMS)
    model = LiveVersions(encoder, tmp_path)
    model.apply_models([promoted(0, 1), step(1, 2, "canary", 0.5)])
    await model.start(7)
    assert model.candidate is not None
    assert (model.live.version, model.candidate.ready.version) == (1, 2)


async def test_a_broken_candidate_keeps_no_worker_from_starting(
    model: LiveVersions, encoder: FakeEncoder, tmp_path: Path
) -> None:
    """A worker starts with a broken candidate, serves the live version and prepares later promotions."""
    (tmp_path / MODEL / "2" / "item_vectors.npy").write_bytes(b"torn")
    starting = LiveVersions(encoder, tmp_path)
    starting.apply_models([promoted(0, 1), step(1, 2, "canary", 0.5)])
    await starting.start(7)
    assert (starting.live.version, starting.candidate) == (1, None)
    encoder.bundles[3] = make_bundle(3)
    write_bundle(tmp_path, 3)
    async with running(starting):
        starting.apply_models([promoted(2, 3)])
        await until(lambda: starting.live.version == 3)


async def test_users_are_taken_over_when_the_versions_are_ready(
    model: LiveVersions, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`caught_up` waits for a promotion under way, and not forever for a promotion that fails."""
    await model.caught_up()
    monkeypatch.setattr(live_model_module, "CATCH_UP_SECONDS", 0.2)
    model.apply_models([promoted(0, 2)])
    await model.caught_up()
    assert model.live.version == 1
    async with running(model):
        monkeypatch.setattr(live_model_module, "CATCH_UP_SECONDS", 5.0)
        await model.caught_up()
        assert model.live.version == 2


async def test_reports_of_workers_change_nothing(model: LiveVersions) -> None:
    """Reports of workers change no version."""
    report = Report(MODEL, "w1", NOW, 2, 3)
    model.apply_models([Record(0, NOW, report.key, encode_record(report)), Record(1, NOW, report.key, None)])
    async with running(model):
        await asyncio.sleep(0.02)
    assert (model.live.version, model.candidate) == (1, None)


async def test_a_version_that_cannot_be_loaded_keeps_the_old_one(
    model: LiveVersions, encoder: FakeEncoder, tmp_path: Path
) -> None:
    """The old version serves, new items included, until the promoted version can be loaded."""
    (tmp_path / MODEL / "2" / "item_vectors.npy").write_bytes(b"torn")
    async with running(model):
        model.apply_models([promoted(0, 2)])
        await asyncio.sleep(0.03)
        assert model.live.version == 1
        model.apply_items([item(0, "fresh")])
        await until(lambda: "fresh" in model.live.space.index)
        assert model.live.version == 1
        encoder.bundles[3] = make_bundle(3)
        write_bundle(tmp_path, 3)
        model.apply_models([promoted(1, 3)])
        await until(lambda: model.live.version == 3)


async def test_a_new_item_gets_a_place_in_the_live_versions_space(model: LiveVersions, encoder: FakeEncoder) -> None:
    """The live version's item tower gives a new item its vector from its text."""
    async with running(model):
        model.apply_items([item(5, "fresh", "Fresh Film")])
        await until(lambda: "fresh" in model.live.space.index)
    space = model.live.space
    assert encoder.texts == [("Fresh Film", 1)]
    np.testing.assert_array_equal(space.vectors[space.index["fresh"]], vector("Fresh Film", 1))
    assert space.index["fresh"] >= space.trained
    assert model.side_inputs.items == 5
    assert model.title("fresh") == "Fresh Film"
    assert model.title("unheard of") == "unheard of"


async def test_cold_items_move_into_the_new_versions_space(model: LiveVersions) -> None:
    """After a swap every cold item has a vector of the new version's item tower."""
    async with running(model):
        model.apply_items([item(0, "fresh", "Fresh Film")])
        await until(lambda: "fresh" in model.live.space.index)
        model.apply_models([promoted(0, 2)])
        await until(lambda: model.live.version == 2)
    space = model.live.space
    np.testing.assert_array_equal(space.vectors[space.index["fresh"]], vector("Fresh Film", 2))


async def test_a_swap_while_items_are_encoded_mixes_nothing(model: LiveVersions, encoder: FakeEncoder) -> None:
    """Vectors of the old version that arrive after the swap do not enter the new space."""
    asked, answer = asyncio.Event(), asyncio.Event()
    item_vectors = encoder.item_vectors

    async def slow(texts: list[str], version: int) -> np.ndarray:
        if version == 1:
            asked.set()
            await answer.wait()
        return await item_vectors(texts, version)

    encoder.item_vectors = slow  # type: ignore[method-assign]
    async with running(model):
        model.apply_items([item(0, "fresh", "Fresh Film")])
        await asked.wait()
        model.apply_models([promoted(0, 2)])
        answer.set()
        await until(lambda: model.live.version == 2 and "fresh" in model.live.space.index)
    space = model.live.space
    np.testing.assert_array_equal(space.vectors[space.index["fresh"]], vector("Fresh Film", 2))


async def test_items_that_come_while_a_version_is_prepared_are_not_lost(
    model: LiveVersions, encoder: FakeEncoder
) -> None:
    """Items that arrive while a version is prepared have vectors after the swap."""
    asked, answer = asyncio.Event(), asyncio.Event()
    item_vectors = encoder.item_vectors

    async def slow(texts: list[str], version: int) -> np.ndarray:
        if version == 2:
            asked.set()
            await answer.wait()
        return await item_vectors(texts, version)

    async with running(model):
        model.apply_items([item(0, "fresh")])
        await until(lambda: "fresh" in model.live.space.index)
        encoder.item_vectors = slow  # type: ignore[method-assign]
        model.apply_models([promoted(0, 2)])
        await asked.wait()
        assert model.live.version == 1
        model.apply_items([item(1, "fresher"), item(2, ITEMS[0], available=False), item(3, "fresh", "New Title")])
        assert not model.live.space.available[2]
        answer.set()
        await until(lambda: model.live.version == 2)
        assert not model.live.space.available[2]
        space = model.live.space
        await until(lambda: "fresher" in space.index)
        await until(lambda: np.array_equal(space.vectors[space.index["fresh"]], vector("New Title", 2)))


async def test_an_item_described_anew_while_it_is_encoded_gets_the_newer_place(
    model: LiveVersions, encoder: FakeEncoder
) -> None:
    """An item with a newer text does not keep the vector of the older text."""
    asked, answer = asyncio.Event(), asyncio.Event()
    item_vectors = encoder.item_vectors

    async def slow(texts: list[str], version: int) -> np.ndarray:
        asked.set()
        await answer.wait()
        return await item_vectors(texts, version)

    encoder.item_vectors = slow  # type: ignore[method-assign]
    async with running(model):
        model.apply_items([item(0, "fresh", "Old Title")])
        await asked.wait()
        model.apply_items([item(1, "fresh", "New Title")])
        answer.set()
        space = model.live.space
        await until(lambda: "fresh" in space.index)
        await until(lambda: np.array_equal(space.vectors[space.index["fresh"]], vector("New Title", 1)))


async def test_two_offsets_determine_the_item_space(model: LiveVersions, encoder: FakeEncoder, tmp_path: Path) -> None:
    """A worker that begins with the whole catalogue gives items the vectors and order of a worker that saw it grow.

    Both workers stop at the same `items_embedded` offset, with a newer text of the first item waiting.
    """
    records = [item(0, "fresh", "Old Title"), item(1, "fresher"), item(2, "fresh", "New Title"), item(3, "freshest")]
    for record in records[:2]:
        model.apply_items([record])
        await model.settle()
    model.apply_items(records[2:])
    begun = LiveVersions(encoder, tmp_path)
    begun.apply_items(records)
    await begun.start(1)
    await begun.settle(1)
    assert model.side_inputs == begun.side_inputs
    assert (model.side_inputs.items, model.side_inputs.items_embedded) == (3, 1)
    assert model.live.space.ids == begun.live.space.ids
    assert begun.live.space.ids[-2:] == ["fresh", "fresher"]
    size = model.live.space.size
    np.testing.assert_array_equal(model.live.space.vectors[:size], begun.live.space.vectors[:size])


async def test_a_text_that_fails_holds_up_nothing(
    model: LiveVersions, encoder: FakeEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    """Two failing texts of 130 are reported, and the others have vectors, in a later version as well."""
    encoder.stumbles = {"poison"}
    skipped = REGISTRY.get_sample_value("freshet_skipped_texts_total") or 0.0
    names = [f"long-{number}" for number in range(130)]
    texts = {name: f"{name} {'words ' * 20_000}" for name in names} | {names[3]: "poison", names[70]: "more poison"}
    async with running(model):
        model.apply_items([item(offset, name, text) for offset, (name, text) in enumerate(texts.items())])
        model.apply_items([item(130, "newest")])
        await until(lambda: "newest" in model.live.space.index)
        assert model.side_inputs.items_skipped == (3, 70)
        model.apply_models([promoted(0, 2)])
        await until(lambda: model.live.version == 2)
        for live_names in (model.live.space.index,):
            assert {*names} - {*live_names} == {names[3], names[70]}
        assert model.side_inputs.items_skipped == (3, 70)
        model.apply_items([item(131, names[3], "A better title"), Record(132, NOW, names[4].encode(), None)])
        await until(lambda: names[3] in model.live.space.index)
    assert model.side_inputs.items_skipped == (70,)
    assert not model.live.space.available[model.live.space.index[names[4]]]
    assert (REGISTRY.get_sample_value("freshet_skipped_texts_total") or 0.0) == skipped + 4
    assert {entry.offset for entry in caplog.records if entry.message == "text skipped"} == {3, 70}
    assert max(len(text) for text, _ in encoder.texts) == MAX_TEXT


async def test_an_item_whose_newer_text_fails_leaves_the_lists(model: LiveVersions, encoder: FakeEncoder) -> None:
    """An item whose newer text fails leaves the lists until a newer text succeeds."""
    encoder.stumbles = {"poison"}
    async with running(model):
        for offset, (title, there) in enumerate([("A title", True), ("poison", False), ("Another title", True)]):
            model.apply_items([item(offset, "new", title)])
            await until(lambda offset=offset: model.side_inputs.items_embedded == offset)
            assert model.live.space.available[model.live.space.index["new"]] == there


async def test_a_host_that_is_too_slow_for_a_batch_gets_smaller_ones(model: LiveVersions, encoder: FakeEncoder) -> None:
    """The next batch is half as large where even the probe of a batch has no answer."""
    sizes: list[int] = []
    answer = encoder.item_vectors

    async def slow(texts: list[str], version: int) -> np.ndarray:
        sizes.append(len(texts))
        if (sizes[0] == 64 and len(texts) > 16) or sizes[-2:-1] in ([64], [32]):
            raise Unavailable("deadline")
        return await answer(texts, version)

    encoder.item_vectors = slow
    async with running(model):
        model.apply_items([item(number, f"new-{number}") for number in range(64)])
        await until(lambda: model.side_inputs.items_embedded == 63)
    assert sizes[:5] == [64, 1, 32, 1, 16]
    assert model.side_inputs.items_skipped == ()


async def test_a_trained_item_keeps_its_trained_vector(model: LiveVersions, encoder: FakeEncoder) -> None:
    """A waiting item keeps its trained vector in a version that was trained on it."""
    encoder.away = True
    async with running(model):
        model.apply_items([item(0, "newcomer", "Some Text")])
        await asyncio.sleep(0.02)
        model.apply_models([promoted(0, 2)])
        await until(lambda: model.live.version == 2)
        encoder.away = False
        model.apply_items([item(1, "fresh")])
        await until(lambda: "fresh" in model.live.space.index)
    space = model.live.space
    np.testing.assert_array_equal(space.vectors[space.index["newcomer"]], vector("newcomer", 2))


async def test_items_wait_for_the_encoder(model: LiveVersions, encoder: FakeEncoder) -> None:
    """Items wait while the encoder is away and get vectors when it is back."""
    encoder.away = True
    async with running(model):
        model.apply_items([item(number, f"fresh-{number}") for number in range(200)])
        await asyncio.sleep(0.03)
        assert "fresh-0" not in model.live.space.index
        encoder.away = False
        await until(lambda: all(f"fresh-{number}" in model.live.space.index for number in range(200)))
    assert REGISTRY.get_sample_value("freshet_cold_items") == 200


async def test_an_item_without_text_has_no_place(model: LiveVersions) -> None:
    """An item without text gets no vector."""
    async with running(model):
        model.apply_items([item(0, "mute", ""), item(1, "fresh")])
        await until(lambda: "fresh" in model.live.space.index)
    assert "mute" not in model.live.space.index


async def test_an_unavailable_item_leaves_at_once(model: LiveVersions) -> None:
    """An unavailable item is out of the lists when `apply_items` returns, and back when available."""
    space = model.live.space
    model.apply_items([item(0, ITEMS[3], available=False)])
    assert ITEMS[3] not in {item.item_id for item in rank_popular(space, None, 50)}
    model.apply_items([item(1, ITEMS[3])])
    assert ITEMS[3] in {item.item_id for item in rank_popular(space, None, 50)}


async def test_a_cold_item_made_unavailable_while_it_waits_stays_out(model: LiveVersions) -> None:
    """A waiting item that became unavailable stays out of lists after it gets a vector."""
    model.apply_items([item(0, "fresh"), item(1, "fresh", available=False)])
    async with running(model):
        await until(lambda: "fresh" in model.live.space.index)
    space = model.live.space
    assert not space.available[space.index["fresh"]]


async def test_a_tombstone_takes_an_item_out(model: LiveVersions) -> None:
    """A tombstone removes an item, trained or cold, until the item is upserted again."""
    space = model.live.space
    async with running(model):
        model.apply_items([item(0, "fresh")])
        await until(lambda: "fresh" in space.index)
        for name in ("fresh", ITEMS[1]):
            model.apply_items([Record(1, NOW, name.encode(), None)])
            assert not space.available[space.index[name]]
            model.apply_items([item(2, name)])
            assert space.available[space.index[name]]


async def test_availability_outlives_a_swap(model: LiveVersions) -> None:
    """An unavailable item is unavailable in the next version."""
    model.apply_items([item(0, ITEMS[2], available=False)])
    async with running(model):
        model.apply_models([promoted(0, 2)])
        await until(lambda: model.live.version == 2)
    assert not model.live.space.available[4]


async def test_popularity_is_the_sum_of_the_newest_counts(model: LiveVersions) -> None:
    """Popularity sums the last record of each partition, survives a swap and restores counts."""
    counts = ((9.0, 0), (1.0, 0), (2.0, 1))
    model.apply_popularity([popularity(at, {ITEMS[5]: count}, part) for at, (count, part) in enumerate(counts)])
    assert model.live.space.prior.values[7] == pytest.approx(np.log1p(3.0))
    assert rank_popular(model.live.space, None, 1)[0].item_id == ITEMS[5]
    assert model.published_counts(1).counts == {ITEMS[5]: 2.0}
    assert model.published_counts(2) is None
    assert model.side_inputs.popularity == 2
    async with running(model):
        model.apply_models([promoted(0, 2)])
        await until(lambda: model.live.version == 2)
    assert model.live.space.prior.values[7] == pytest.approx(np.log1p(3.0))


async def test_counts_of_a_time_to_come_are_ignored(model: LiveVersions) -> None:
    """Counts dated ahead are logged and ignored, and the counts before them stay."""
    poisoned = Partial(partition=0, offset=9, ts=NOW + 10**12, half_life=1e9, counts={ITEMS[5]: 1.0})
    before = bad_side_inputs("popularity")
    model.apply_popularity(
        [
            popularity(0, {ITEMS[0]: 3.0}),
            Record(1, NOW, b"0", encode_partial(poisoned)),
            popularity(2, {ITEMS[1]: 2.0}, 1),
        ]
    )
    assert bad_side_inputs("popularity") == before + 1
    assert model.published_counts(0).counts == {ITEMS[0]: 3.0}
    assert model.live.space.prior.values[2] == pytest.approx(np.log1p(3.0))


DEEP = b"[" * 1200 + b"]" * 1200
BAD = (
    *(b"", b"junk", b"{}", b"[]", b'{"item_id":""}', b'{"model":"user_encoder","version":0}'),
    *('{"item_id":"key","title":"é"}'.encode("latin-1"), b'{"item_id":"key","x":%s}' % DEEP, DEEP),
)


async def test_a_record_that_code_fails_at_holds_up_no_other(
    model: LiveVersions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error is counted and logged with the record's offset, and later records are applied."""

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    before = bad_side_inputs("items")
    with monkeypatch.context() as broken:
        broken.setattr(model, "_change_item", fails)
        model.apply_items([item(7, ITEMS[0])])
    model.apply_items([item(8, ITEMS[0], available=False)])
    assert bad_side_inputs("items") == before + 1
    assert ("items", 0, 7) in {
        (entry.topic, entry.partition, entry.offset) for entry in caplog.records if entry.message == "bad side input"
    }
    assert not model.live.space.available[model.live.space.index[ITEMS[0]]]


@pytest.mark.parametrize(
    ("topic", "value"),
    [(topic, value) for topic in ("items", "popularity", "models") for value in BAD],
)
async def test_bad_side_inputs_are_counted_and_change_nothing(model: LiveVersions, topic: str, value: bytes) -> None:
    """A bad side input is counted and passed, and the good record after it is applied."""
    before, apply = bad_side_inputs(topic), getattr(model, f"apply_{topic}")
    good = {"items": item(8, ITEMS[0]), "popularity": popularity(8, {ITEMS[0]: 1.0}), "models": promoted(8, 1)}
    apply([Record(7, NOW, b"key", value), good[topic]])
    assert bad_side_inputs(topic) == before + 1
    assert getattr(model.side_inputs, topic) == 8
    async with running(model):
        await asyncio.sleep(0.02)
    assert model.live.version == 1
