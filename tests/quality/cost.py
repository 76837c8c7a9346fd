"""What a user costs to serve: the exported graph in ONNX Runtime on one thread."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from freshet.bundle.onnx_session import open_session
from freshet.core.features import TEXT_DIM, USER_ENCODER_OUTPUTS
from freshet_training.export import ServedEncoder, export_graph, golden_inputs
from freshet_training.model import UserEncoder
from freshet_training.model_shape import ModelShape

BATCH = 64
ROUNDS = 60


def measure(shape: Mapping[str, float], items: int) -> dict[str, float]:
    """Milliseconds per user, the median over rounds."""
    torch.manual_seed(0)
    config = ModelShape(items, 3, **shape)  # type: ignore[arg-type]
    encoder = UserEncoder(config, torch.randn(items, TEXT_DIM)).eval()
    inputs = golden_inputs(items, 3, config.length, rows=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_graph(ServedEncoder(encoder).eval(), inputs, USER_ENCODER_OUTPUTS, file)
        session = open_session(file)
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            session.run(None, inputs)
            times.append(time.perf_counter() - started)
    return {"ms a user": float(np.median(times)) * 1000 / BATCH, "items": float(items), "length": float(config.length)}
