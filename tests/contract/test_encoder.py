"""The contract of an `Encoder`: in process and through Triton the outputs have the same bits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from freshet.adapters.onnx import OnnxEncoder
from freshet.adapters.triton import TritonEncoder
from freshet.bundle.bundle import load_bundle
from freshet.core.catalogue import CatalogueItem, encode_item
from freshet.core.features import TOP_K, Tensors, featurise
from freshet.ports import Encoder, Record, Unavailable
from freshet.serving.live_versions import LiveVersions
from freshet.settings import Settings

from deploy import local
from deploy.local import Stack
from deploy.local.parts import ROOT, TEXT_ENCODER
from tests.properties.strategies import make_state

pytestmark = pytest.mark.integration
REPOSITORY = ROOT / "triton_models"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Triton with the shipped models."""
    stack = local.start(tmp_path_factory.mktemp("triton"), kafka=False)
    yield stack
    local.stop(stack)


@pytest.fixture
async def in_process() -> AsyncIterator[OnnxEncoder]:
    """ONNX Runtime here."""
    encoder = OnnxEncoder(REPOSITORY, TEXT_ENCODER)
    yield encoder
    encoder.close()


@pytest.fixture
async def served(triton: Stack) -> AsyncIterator[TritonEncoder]:
    """Triton."""
    encoder = TritonEncoder(triton.triton, 10.0)
    yield encoder
    await encoder.close()


def users(count: int) -> Tensors:
    """Users with histories of every length."""
    bundle = load_bundle(REPOSITORY / "user_encoder" / "1")
    rng = np.random.default_rng(5)
    states = [
        make_state([bundle.item_ids[row] for row in rng.integers(0, len(bundle.item_ids), length)], range(length))
        for length in (1 + number % 50 for number in range(count))
    ]
    return featurise(states, bundle.item_index, bundle.type_index, bundle.manifest.length)


async def test_both_give_the_same_bits(in_process: Encoder, served: Encoder) -> None:
    """Both encoders give outputs and item vectors with the same bits."""
    tensors = users(64)
    for tensor, served_tensor in zip(await in_process.encode(tensors, 1), await served.encode(tensors, 1), strict=True):
        np.testing.assert_array_equal(tensor, served_tensor)
    texts = ["Toy Story", "Heat. Crime", "étrange ☂"]
    vectors = await in_process.item_vectors(texts, 1)
    assert vectors.shape == (3, 64)
    np.testing.assert_array_equal(vectors, await served.item_vectors(texts, 1))


async def test_a_row_does_not_depend_on_its_batch(in_process: Encoder) -> None:
    """A user's outputs have the same bits alone and in a batch."""
    tensors = users(70)
    together = await in_process.encode(tensors, 1)
    assert together.topk_index.shape == (70, TOP_K)
    for start, size in ((0, 1), (3, 2), (10, 33), (69, 1)):
        part = await in_process.encode({name: values[start : start + size] for name, values in tensors.items()}, 1)
        for part_row, whole_row in zip(part, together, strict=True):
            np.testing.assert_array_equal(part_row, whole_row[start : start + size])


async def test_a_version_that_is_not_there_is_unavailable(in_process: Encoder, tmp_path: Path) -> None:
    """A missing version and a missing text encoder are `Unavailable`."""
    with pytest.raises(Unavailable, match=r"user_encoder/99/model\.onnx does not exist"):
        await in_process.encode(users(1), 99)
    encoder = OnnxEncoder(REPOSITORY, tmp_path)
    with pytest.raises(Unavailable, match="does not exist"):
        await encoder.item_vectors(["x"], 1)
    encoder.close()


async def test_long_descriptions_hold_up_no_new_item(triton: Stack) -> None:
    """The default deadline is enough for 130 descriptions of 100 kB and the item behind them."""
    encoder = TritonEncoder(triton.triton, Settings().triton_deadline)
    model = LiveVersions(encoder, REPOSITORY)
    await model.start(1)
    names = [f"long-{number}" for number in range(130)]
    texts = {name: f"{name} {'a long description ' * 5_300}" for name in names} | {"short": "A short title"}
    model.apply_items(
        [
            Record(offset, 0, name.encode(), encode_item(CatalogueItem(name, description=text)))
            for offset, (name, text) in enumerate(texts.items())
        ]
    )
    running = asyncio.create_task(model.run())
    async with asyncio.timeout(120):
        while model.side_inputs.items_embedded < len(names):  # noqa: ASYNC110 - a model tells nobody when it changes
            await asyncio.sleep(0.05)
    running.cancel()
    assert model.side_inputs.items_skipped == ()
    assert {*texts} <= {*model.live.space.index}
    await encoder.close()
