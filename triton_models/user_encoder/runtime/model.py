"""Serve a version's `model.onnx` with ONNX Runtime inside Triton's Python backend.

One file for every version and for each model that is plain ONNX (`item_tower`
links to it): tensor names and types come from the model's `config.pbtxt`. All
requests of one call run as one batch. A request that cannot be run, or whose
outputs are not finite, gets an error of its own; the others get their outputs.

The network is run for `ROWS` rows at a time, for more of them do not stay in the
processor's cache, and with ONNX Runtime's basic optimisations, for its fused layers
are slower here: a user of the shipped version takes 154 µs so, 190 µs in one run of 64
with all optimisations (one core, medians; tests/bench/LOG.md).
"""
# ruff: noqa: INP001 - Triton loads this file by its path

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

ROWS = 16


class TritonPythonModel:
    """One version of one model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session; Triton keeps the previous version when this raises."""
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list) -> list:
        """Run all requests as one batch and hand each its rows."""
        columns = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            for request in requests
        ]
        if len(requests) == 1:
            return [self._run_alone(columns[0])]
        try:
            outputs = self._run([np.concatenate(parts) for parts in zip(*columns, strict=True)])
        except Exception:
            return [self._run_alone(column) for column in columns]
        ends = np.cumsum([len(column[0]) for column in columns])[:-1]
        return [self._response(parts) for parts in zip(*(np.split(output, ends) for output in outputs), strict=True)]

    def _run_alone(self, column: list[np.ndarray]) -> pb_utils.InferenceResponse:
        try:
            return self._response(self._run(column))
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _run(self, column: list[np.ndarray]) -> list[np.ndarray]:
        for name, value in zip(self._inputs, column, strict=True):
            if value.dtype.kind == "i" and value.size and value.min() < 0:  # ONNX Gather would wrap around
                raise ValueError(f"{name} holds a negative index")
        parts = [
            self._session.run(
                self._outputs,
                {name: value[start : start + ROWS] for name, value in zip(self._inputs, column, strict=True)},
            )
            for start in range(0, len(column[0]), ROWS)
        ]
        outputs = parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]
        if not all(np.isfinite(output.sum()) for output in outputs if output.dtype.kind == "f"):
            raise ValueError("an output is not finite")
        return outputs

    def _response(self, outputs: list[np.ndarray]) -> pb_utils.InferenceResponse:
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in zip(self._outputs, outputs, strict=True)]
        )
