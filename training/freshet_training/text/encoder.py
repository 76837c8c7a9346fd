"""Step 3, the texts: text embeddings by the ONNX file that Triton serves.

The int8 model quantises its activations per tensor at run time. The vector of a text therefore depends on
what else is in the tensor: padding or another text of the batch moves the vector to a cosine as low as 0.98.
So each text is run alone and unpadded, here and in the served model. On a CPU this is also the faster way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from freshet.bundle.onnx_session import open_session
from freshet.core.features import TEXT_DIM
from freshet.errors import FreshetError
from numpy.typing import NDArray
from tokenizers import Tokenizer

MAX_TOKENS = 128


class TextError(FreshetError):
    """No text encoder is there to read the items' texts with."""


class TextEncoder:
    """all-MiniLM-L6-v2 (int8, ONNX) in this process; `folder` holds `model.onnx` and `tokenizer.json`."""

    def __init__(self, folder: Path) -> None:
        """Raises `TextError` where a file is missing."""
        for needed in ("model.onnx", "tokenizer.json"):
            if not (folder / needed).is_file():
                raise TextError(f"no text encoder: {folder / needed} does not exist: --text-encoder names its folder")
        self._session = open_session(folder / "model.onnx")
        self.digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        """The sha256 of the model: tells text encoders apart."""
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str] | Iterable[str]) -> NDArray[np.float32]:
        """Text embeddings `[len(texts), TEXT_DIM]`: the mean over a text's tokens, L2-normalised."""
        vectors = [self._vector(text) for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, TEXT_DIM), np.float32)

    def _vector(self, text: str) -> NDArray[np.float32]:
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)  # [1, tokens]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        hidden = self._session.run(None, feeds)[0][0]  # [tokens, TEXT_DIM]
        mean: NDArray[np.float32] = hidden.mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)
