"""The encoder in process, with ONNX Runtime: for replays that need no server.

The sessions are opened as Triton's Python backend opens them (one thread each, basic
optimisations), and ONNX Runtime gives a row the same bits whatever else is in its batch, so the
outputs are Triton's to the last bit (`tests/contract/test_encoder.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from freshet.bundle.onnx_session import Optimise, open_session
from freshet.core.features import (
    ITEM_TOWER_INPUTS,
    ITEM_TOWER_OUTPUTS,
    TEXT_DIM,
    USER_ENCODER_INPUTS,
    USER_ENCODER_OUTPUTS,
    Tensors,
)
from freshet.core.rollout import MODEL
from freshet.ports import Encoded, Unavailable

MAX_TOKENS = 128
"""Tokens of an item text that are read, as in `triton_models/text_encoder`."""

ROWS = 16
"""Users that the network is run for together, as in `triton_models/user_encoder/runtime`, which says why."""


class OnnxEncoder:
    """An `Encoder` over the bundles of a model repository.

    `text_encoder` is a folder with `model.onnx` and `tokenizer.json`; texts are
    encoded once and remembered, for several versions place the same items.
    """

    def __init__(self, repository: Path, text_encoder: Path) -> None:
        self._repository = repository
        self._text_encoder = text_encoder
        self._encoders: dict[int, Any] = {}
        self._towers: dict[int, Any] = {}
        self._texts: tuple[Any, Tokenizer] | None = None
        self._text_embeddings: dict[str, NDArray[np.float32]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnx")

    async def encode(self, tensors: Tensors, version: int) -> Encoded:
        """Encode a batch of users with the pinned version. Raises `Unavailable`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, tensors, version)

    async def item_vectors(self, texts: Sequence[str], version: int) -> NDArray[np.float32]:
        """Vectors `[len(texts), D]` for item texts in the pinned version's space. Raises `Unavailable`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._item_vectors, texts, version)

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown()

    def _encode(self, tensors: Tensors, version: int) -> Encoded:
        session = self._encoders.get(version)
        if session is None:
            path = self._repository / MODEL / str(version) / "model.onnx"
            session = self._encoders[version] = _open(path)
        feeds = {spec.name: tensors[spec.name] for spec in USER_ENCODER_INPUTS}
        outputs = [spec.name for spec in USER_ENCODER_OUTPUTS]
        rows = len(next(iter(feeds.values())))
        parts = [
            session.run(outputs, {name: tensor[start : start + ROWS] for name, tensor in feeds.items()})
            for start in range(0, rows, ROWS)
        ]
        encoded = Encoded(*map(np.concatenate, zip(*parts, strict=True)))
        if not (np.isfinite(encoded.embedding).all() and np.isfinite(encoded.topk_score).all()):
            raise Unavailable(f"{MODEL} version {version} returned NaN or infinity")
        return encoded

    def _item_vectors(self, texts: Sequence[str], version: int) -> NDArray[np.float32]:
        tower = self._towers.get(version)
        if tower is None:
            path = self._repository / MODEL / str(version) / "item_tower.onnx"
            tower = self._towers[version] = _open(path)
        embeddings = np.stack([self._text_embedding(text) for text in texts])
        [vectors] = tower.run([ITEM_TOWER_OUTPUTS[0].name], {ITEM_TOWER_INPUTS[0].name: embeddings})
        return np.asarray(vectors)

    def _text_embedding(self, text: str) -> NDArray[np.float32]:
        known = self._text_embeddings.get(text)
        if known is None:
            known = self._text_embeddings[text] = self._embed(text)
        return known

    def _embed(self, text: str) -> NDArray[np.float32]:
        """Mean over the tokens, L2-normalised; one text at a time and unpadded, as Triton's backend does."""
        if self._texts is None:
            session = _open(self._text_encoder / "model.onnx", Optimise.ORT_ENABLE_ALL)
            tokenizer = Tokenizer.from_file(str(self._text_encoder / "tokenizer.json"))
            tokenizer.enable_truncation(MAX_TOKENS)
            tokenizer.no_padding()
            self._texts = session, tokenizer
        session, tokenizer = self._texts
        ids = np.array([tokenizer.encode(text).ids], np.int64)  # [1, tokens]
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        feeds = {given.name: feeds[given.name] for given in session.get_inputs()}  # not every encoder has token types
        mean = session.run(None, feeds)[0][0].mean(axis=0)  # [TEXT_DIM]
        assert mean.shape == (TEXT_DIM,)
        vector: NDArray[np.float32] = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
        return vector


def _open(path: Path, optimise: Any = Optimise.ORT_ENABLE_BASIC) -> Any:
    if not path.is_file():
        raise Unavailable(f"{path} does not exist")
    return open_session(path, optimise=optimise)
