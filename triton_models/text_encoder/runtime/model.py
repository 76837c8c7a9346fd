"""Serve a sentence encoder (`model.onnx`, `tokenizer.json`) with ONNX Runtime inside Triton's Python backend.

Each text runs alone and unpadded: the int8 model quantises activations over the
whole tensor, so padding or a batch mate would move a text's vector (to a cosine
of 0.98), and one at a time is also faster on a CPU. `training/freshet_training/text/encoder.py` does the same.
"""
# ruff: noqa: INP001 - Triton loads this file by its path

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

MAX_TOKENS = 128


class TritonPythonModel:
    """`text` BYTES [b, 1] → `text_embedding` FP32 [b, 384], mean over the tokens, L2-normalised."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the tokenizer and the session; Triton keeps the previous version when this raises."""
        folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [given.name for given in self._session.get_inputs()]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def execute(self, requests: list) -> list:
        """One response a request; text that is not UTF-8 is that request's error."""
        return [self._respond(pb_utils.get_input_tensor_by_name(request, "text").as_numpy()) for request in requests]

    def _respond(self, texts: np.ndarray) -> pb_utils.InferenceResponse:
        try:
            vectors = np.stack([self._encode(raw.decode()) for raw in texts[:, 0]])
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse([pb_utils.Tensor("text_embedding", vectors)])

    def _encode(self, text: str) -> np.ndarray:
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)  # [1, tokens]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        feeds = {name: feeds[name] for name in self._inputs}  # not every encoder has token types
        mean = self._session.run(None, feeds)[0][0].mean(axis=0)  # [384]
        return (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
