"""The shipped bundle and the model repository around it, without a server."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from freshet.bundle.bundle import Bundle, sha256
from freshet.core import features
from freshet.core.attribution import leave_each_out, losses
from freshet.core.events import Event
from freshet.core.features import FIRST_ITEM, TOP_K, Tensors, TensorSpec
from freshet.core.item_space import ItemSpace
from freshet.core.ranking import RankConfig
from freshet.core.state import empty_state, fold

from tests.ranked_items import rank

TOLERANCE = 1e-4
MODELS = {
    "user_encoder": (features.USER_ENCODER_INPUTS, features.USER_ENCODER_OUTPUTS),
    "item_tower": (features.ITEM_TOWER_INPUTS, features.ITEM_TOWER_OUTPUTS),
    "text_encoder": (features.TEXT_ENCODER_INPUTS, features.TEXT_ENCODER_OUTPUTS),
}
CONFIGS = [
    *((model, "config.pbtxt") for model in MODELS),
    ("user_encoder", "configs/tensorrt.pbtxt"),
]


@pytest.fixture(scope="module")
def golden(shipped: Bundle) -> Tensors:
    with np.load(shipped.path / "golden.npz", allow_pickle=False) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def encoded(shipped: Bundle, golden: Tensors) -> Tensors:
    return run(shipped.path / "model.onnx", features.USER_ENCODER_INPUTS, features.USER_ENCODER_OUTPUTS, golden)


def run(path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], feeds: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in outputs]
    return dict(zip(names, session.run(names, {spec.name: feeds[spec.name] for spec in inputs}), strict=True))


def tensors_of(config: str, side: str) -> tuple[TensorSpec, ...]:
    """The tensor list of one side of a model configuration, as the core writes it."""
    block = re.search(rf"^{side} \[(.*?)^\]", config, re.DOTALL | re.MULTILINE)
    assert block, f"no {side} list"
    found = re.findall(r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[ ([-\d, ]+) \]', block.group(1))
    return tuple(
        TensorSpec(name, "BYTES" if dtype == "STRING" else dtype, tuple(int(n) for n in dims.split(",")))
        for name, dtype, dims in found
    )


def any_size(spec: TensorSpec) -> TensorSpec:
    """With -1 for the axes that each version has its own size of."""
    return TensorSpec(spec.name, spec.dtype, tuple(-1 if isinstance(axis, str) else axis for axis in spec.shape))


@pytest.mark.parametrize(("model", "name"), CONFIGS)
def test_configuration_has_the_core_s_tensors(repository: Path, model: str, name: str) -> None:
    """Every model configuration has exactly the core's tensors: names, types, shapes and order."""
    config = (repository / model / name).read_text()
    assert f'name: "{model}"' in config
    inputs, outputs = (tuple(map(any_size, specs)) for specs in MODELS[model])
    assert (tensors_of(config, "input"), tensors_of(config, "output")) == (inputs, outputs)


@pytest.mark.parametrize(("model", "name"), CONFIGS)
def test_two_versions_stay_loaded(repository: Path, model: str, name: str) -> None:
    """Triton keeps the two newest versions loaded."""
    assert "version_policy: { latest { num_versions: 2 } }" in (repository / model / name).read_text()


def test_tensorrt_differs_in_the_platform_alone(repository: Path) -> None:
    """The production configuration differs from the CPU one in backend and device alone."""
    cpu, gpu = (
        [line for line in (repository / "user_encoder" / name).read_text().splitlines() if not line.startswith("#")]
        for name in ("config.pbtxt", "configs/tensorrt.pbtxt")
    )
    assert set(gpu) - set(cpu) == {'platform: "tensorrt_plan"', "instance_group [ { count: 1 kind: KIND_GPU } ]"}


def test_onnx_gives_torch_s_outputs(golden: Tensors, encoded: Tensors) -> None:
    """ONNX Runtime repeats torch's outputs of the export, for every history length."""
    for name in ("topk_score", "embedding"):
        np.testing.assert_allclose(encoded[name], golden[name], atol=TOLERANCE)
    swapped = encoded["topk_index"] != golden["topk_index"]
    gaps = np.abs(encoded["topk_score"] - golden["topk_score"])[swapped]
    assert swapped.mean() < 0.01
    assert (gaps < TOLERANCE).all()


def test_candidates_are_the_best_of_the_whole_table(shipped: Bundle, encoded: Tensors) -> None:
    """The top items are sorted, real, and equal to an independent ranking of the item vectors."""
    score, index = encoded["topk_score"], encoded["topk_index"]
    assert (np.diff(score, axis=1) <= 0).all()
    assert index.min() >= FIRST_ITEM
    assert index.max() < FIRST_ITEM + len(shipped.item_ids)
    assert all(len(set(row)) == TOP_K for row in index.tolist())
    best = -np.sort(-(encoded["embedding"] @ shipped.item_vectors.T), axis=1)[:, :TOP_K]
    np.testing.assert_allclose(score, best, atol=TOLERANCE)


def test_a_score_is_a_dot_product(shipped: Bundle, encoded: Tensors) -> None:
    """The graph's score is the user vector times the item vector."""
    vectors = shipped.item_vectors[encoded["topk_index"] - FIRST_ITEM]  # [B, K, D]
    np.testing.assert_allclose((vectors @ encoded["embedding"][:, :, None])[..., 0], encoded["topk_score"], atol=1e-4)


def test_the_batch_does_not_change_a_row(shipped: Bundle, golden: Tensors, encoded: Tensors) -> None:
    """A user's outputs are the same alone and in a batch."""
    alone = {spec.name: golden[spec.name][7:8] for spec in features.USER_ENCODER_INPUTS}
    outputs = run(shipped.path / "model.onnx", features.USER_ENCODER_INPUTS, features.USER_ENCODER_OUTPUTS, alone)
    np.testing.assert_allclose(outputs["topk_score"][0], encoded["topk_score"][7], atol=1e-5)


def test_item_tower_places_texts(shipped: Bundle, golden: Tensors) -> None:
    """The item tower maps text embeddings to torch's finite vectors."""
    outputs = run(shipped.path / "item_tower.onnx", features.ITEM_TOWER_INPUTS, features.ITEM_TOWER_OUTPUTS, golden)
    assert outputs["item_vector"].shape == (len(golden["text_embedding"]), shipped.manifest.dim)
    np.testing.assert_allclose(outputs["item_vector"], golden["item_vector"], atol=TOLERANCE)


def test_a_text_alone_lands_near_its_item(shipped: Bundle, golden: Tensors) -> None:
    """The tower's vector of an item's text is nearer to the trained vector than other items' are."""
    rows = len(golden["item_vector"])  # golden texts are those of the first items
    tower = golden["item_vector"] / np.linalg.norm(golden["item_vector"], axis=1, keepdims=True)
    trained = shipped.item_vectors[:rows] / np.linalg.norm(shipped.item_vectors[:rows], axis=1, keepdims=True)
    cosine = tower @ trained.T  # [rows, rows]
    own = np.diag(cosine)
    assert own.mean() > (cosine.sum() - own.sum()) / (rows * (rows - 1))


def test_the_item_tower_s_version_is_the_bundle_s(repository: Path, shipped: Bundle) -> None:
    """Encoder and item tower have the same version number."""
    assert sha256(repository / "item_tower" / "1" / "model.onnx") == shipped.manifest.files["item_tower.onnx"]


def test_bundle_says_what_it_was_made_of(shipped: Bundle) -> None:
    """The bundle holds its data's terms, the metrics of every baseline and a model card."""
    assert "MovieLens" in shipped.manifest.licence
    assert "MODEL_CARD.md" in shipped.manifest.files
    metrics = shipped.manifest.metrics
    for baseline in ("popularity", "recent popularity", "co-occurrence"):
        assert metrics["encoder + prior"]["ndcg@10"] > metrics[baseline]["ndcg@10"]
    for key in ("ndcg@10_low", "untied_ndcg@10_low"):
        assert metrics["encoder + prior over co-occurrence"][key] > 0


def test_the_first_reason_is_nearly_what_leaving_events_out_says(shipped: Bundle) -> None:
    """Over many users the first reason's loss is most of the largest loss of any event."""
    dice = np.random.default_rng(0)
    space = ItemSpace(shipped.item_ids, shipped.item_vectors)
    near = np.argsort(-shipped.item_vectors @ shipped.item_vectors.T, axis=1)[:, 1:30]
    reached, most = [], []
    for _ in range(60):
        state, item = empty_state(0), int(dice.integers(len(near)))
        for offset in range(int(dice.integers(5, 40))):  # from one film to one near it, now and then to any
            item = int(dice.choice(near[item]) if dice.random() < 0.8 else dice.integers(len(near)))
            fold(state, Event(f"e{offset}", "ann", "purchase", 10**9 + offset, shipped.item_ids[item]), 0, offset)
        length = shipped.manifest.length
        tensors = features.featurise(leave_each_out(state, length), shipped.item_index, shipped.type_index, length)
        made = run(shipped.path / "model.onnx", features.USER_ENCODER_INPUTS, features.USER_ENCODER_OUTPUTS, tensors)
        first = {name: values[:1] for name, values in made.items()}
        config = RankConfig(10, 0.0, 0.0)
        [ranked] = rank(
            space,
            config,
            [state],
            tensors["item_index"][:1],
            first["topk_index"],
            first["topk_score"],
            first["embedding"],
        )
        lost = losses(made["embedding"], space.vectors[[space.index[item.item_id] for item in ranked]])
        for item, loss in zip(ranked, lost, strict=True):
            named = state.times.index(item.reasons[0].ts)
            reached.append(max(float(loss[named]), 0.0))
            most.append(float(loss.max()))
    assert sum(reached) > 0.8 * sum(most)  # .63 without fading, .78 by the last event whatever it is
