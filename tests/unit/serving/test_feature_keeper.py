"""A lost online store is noticed by the number that a worker left in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from freshet.serving.feature_keeper import FeatureStamp

from tests.memory_ports import MemoryFeatureStore


@pytest.fixture
def store() -> MemoryFeatureStore:
    """A store in memory."""
    return MemoryFeatureStore(["view"])


async def test_an_emptied_store_and_an_old_copy_are_lost(store: MemoryFeatureStore, tmp_path: Path) -> None:
    """By a worker that runs, and by one that starts again on its folder."""
    stamp = FeatureStamp(store, "w", tmp_path / "stamp")
    assert not await stamp.lost()
    for _ in range(5):
        await stamp.renew()
        assert not await stamp.lost()
    store.stamps["w"] = 2
    assert await stamp.lost()
    store.stamps.clear()
    assert await FeatureStamp(store, "w", tmp_path / "stamp").lost()
    await stamp.renew()
    assert not await stamp.lost()


async def test_a_kill_between_the_two_numbers_is_no_loss(store: MemoryFeatureStore, tmp_path: Path) -> None:
    """The store has the newer number then."""
    stamp = FeatureStamp(store, "w", tmp_path / "stamp")
    await stamp.renew()
    store.stamps["w"] += 1
    assert not await stamp.lost()


async def test_a_new_folder_knows_of_no_loss(store: MemoryFeatureStore, tmp_path: Path) -> None:
    """Another worker's number means nothing to it."""
    store.stamps["other"] = 7
    assert not await FeatureStamp(store, "w", tmp_path / "stamp").lost()
