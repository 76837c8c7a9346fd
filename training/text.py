"""Step 3, the texts: text embeddings by the very ONNX file that Triton serves.

The int8 model quantises its activations per tensor at run time, so a text's
vector depends on what else is in the tensor: padding or a batch mate moves it
to a cosine as low as 0.98. Each text is therefore run alone and unpadded, here
and in the served model, which is also the faster way on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from workers.core.features import TEXT_DIM

MAX_TOKENS = 128


class TextEncoder:
    """all-MiniLM-L6-v2 (int8, ONNX) in process: `folder` holds `model.onnx` and `tokenizer.json`."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str] | Iterable[str]) -> NDArray[np.float32]:
        """Text embeddings `[len(texts), TEXT_DIM]`: mean over the tokens, L2-normalised."""
        vectors = [self._encode_one(text) for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, TEXT_DIM), np.float32)

    def _encode_one(self, text: str) -> NDArray[np.float32]:
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)  # [1, tokens]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        hidden = self._session.run(None, feeds)[0][0]  # [tokens, TEXT_DIM]
        mean: NDArray[np.float32] = hidden.mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)
