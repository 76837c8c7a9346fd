"""The real Triton gives what torch gave: the shipped models, served over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from freshet.bundle.bundle import Bundle
from freshet.core import features
from freshet.core.features import Tensors, TensorSpec
from tritonclient.grpc import InferenceServerClient, InferenceServerException, InferInput

from deploy import local
from tests.integration.conftest import parts, start_stack  # noqa: F401 - fixtures

pytestmark = pytest.mark.integration

TOLERANCE = 1e-4


class Served:
    """One call a model; the batch axis of every tensor is free."""

    def __init__(self, client: InferenceServerClient) -> None:
        self._client = client

    def encode(self, feeds: Tensors) -> Tensors:
        """The user encoder's outputs."""
        return self._infer("user_encoder", features.USER_ENCODER_INPUTS, features.USER_ENCODER_OUTPUTS, feeds)

    def place(self, text_embedding: np.ndarray) -> np.ndarray:
        """Item vectors of text embeddings."""
        feeds = {"text_embedding": text_embedding}
        return self._infer("item_tower", features.ITEM_TOWER_INPUTS, features.ITEM_TOWER_OUTPUTS, feeds)["item_vector"]

    def read(self, *texts: bytes) -> np.ndarray:
        """Text embeddings."""
        feeds = {"text": np.array([[text] for text in texts], np.object_)}
        outputs = self._infer("text_encoder", features.TEXT_ENCODER_INPUTS, features.TEXT_ENCODER_OUTPUTS, feeds)
        return outputs["text_embedding"]

    def _infer(
        self, model: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], feeds: Tensors
    ) -> Tensors:
        tensors = []
        for spec in inputs:
            tensor = InferInput(spec.name, list(feeds[spec.name].shape), spec.dtype)
            tensor.set_data_from_numpy(feeds[spec.name])
            tensors.append(tensor)
        answer = self._client.infer(model, tensors, model_version="1", client_timeout=60)
        return {spec.name: answer.as_numpy(spec.name) for spec in outputs}


@pytest.fixture(scope="module")
def served(
    start_stack: Callable[..., local.Stack],  # noqa: F811 - the fixture
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    stack = start_stack(tmp_path_factory.mktemp("triton"), kafka=False)
    with InferenceServerClient(stack.triton_grpc) as client:
        yield Served(client)


@pytest.fixture(scope="module")
def golden(shipped: Bundle) -> Tensors:
    with np.load(shipped.path / "golden.npz", allow_pickle=False) as stored:
        return dict(stored)


def rows(golden: Tensors, number: int) -> tuple[Tensors, np.ndarray]:
    picked = np.random.default_rng(number).integers(0, len(golden["embedding"]), number)
    return {spec.name: golden[spec.name][picked] for spec in features.USER_ENCODER_INPUTS}, picked


@pytest.mark.parametrize("batch", [1, 64, 256])
def test_user_encoder_is_torch_s(served: Served, golden: Tensors, batch: int) -> None:
    """Scores and vectors equal the golden ones at the smallest, usual and largest batch."""
    feeds, picked = rows(golden, batch)
    outputs = served.encode(feeds)
    for name in ("topk_score", "embedding"):
        np.testing.assert_allclose(outputs[name], golden[name][picked], atol=TOLERANCE)
    assert (outputs["topk_index"] == golden["topk_index"][picked]).mean() > 0.99
    assert outputs["topk_index"].dtype == np.int32


def test_item_tower_is_torch_s(served: Served, golden: Tensors) -> None:
    """Item vectors equal the golden ones."""
    np.testing.assert_allclose(served.place(golden["text_embedding"]), golden["item_vector"], atol=TOLERANCE)


def test_a_text_s_vector_is_its_own(served: Served) -> None:
    """A text embedding is a unit vector with the same bits in every batch, padding and call."""
    texts = ["Toy Story. Animation", "été à Paris", "", "long " * 400]
    together = served.read(*(text.encode() for text in texts))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for row, text in enumerate(texts):
        assert (served.read(text.encode())[0] == together[row]).all()


def test_training_reads_the_same_texts(served: Served, golden: Tensors) -> None:
    """The served model gives the text embeddings of training."""
    film, recipe = served.read(b"GoldenEye. Action Adventure Thriller", b"Two eggs, flour and a pinch of salt")
    closeness = golden["text_embedding"] @ np.stack([film, recipe]).T
    assert closeness[:, 0].mean() > closeness[:, 1].mean()


def test_a_bad_request_fails_alone(served: Served, golden: Tensors) -> None:
    """Only the bad request of a batch gets an error, and the others get their outputs."""

    def ask(number: int) -> bool:
        feeds, picked = rows(golden, 1)
        bad = number % 10 == 0
        if bad:
            feeds["item_index"] = feeds["item_index"].copy()
            feeds["item_index"][0, -1] = 10_000_000
        try:
            outputs = served.encode(feeds)
        except InferenceServerException:
            return bad
        return not bad and bool(np.allclose(outputs["embedding"], golden["embedding"][picked], atol=TOLERANCE))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(200)))


@pytest.mark.parametrize("index", [-1, 10_000_000])
def test_an_index_outside_the_table_is_an_error(served: Served, golden: Tensors, index: int) -> None:
    """An index outside the table is an error."""
    feeds, _ = rows(golden, 1)
    feeds["item_index"][0, -1] = index
    with pytest.raises(InferenceServerException):
        served.encode(feeds)


def test_what_is_not_finite_is_an_error(served: Served) -> None:
    """A text embedding with NaN is an error."""
    with pytest.raises(InferenceServerException, match="not finite"):
        served.place(np.full((1, features.TEXT_DIM), np.nan, np.float32))


def test_text_that_is_not_utf8_is_an_error(served: Served) -> None:
    """A text that is not UTF-8 is an error, and the model answers the next request."""
    with pytest.raises(InferenceServerException, match="utf-8"):
        served.read(b"\xff\xfe")
    assert served.read(b"fine").shape == (1, features.TEXT_DIM)
