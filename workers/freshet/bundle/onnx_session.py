"""How ONNX models are opened in process: on the CPU, with a bounded number of threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

Optimise = onnxruntime.GraphOptimizationLevel


def open_session(path: Path, *, threads: int = 1, optimise: Any = Optimise.ORT_ENABLE_ALL) -> Any:
    """Open an ONNX model; `threads` are those of one operator, operators run one after the other."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = optimise
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
