"""What a plan is built from: a version's network, checked before a builder sees it. Needs no GPU and no TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from freshet.bundle.bundle import BundleError
from freshet.bundle.onnx_graph import constants, operators
from freshet.bundle.verify import load_sound
from freshet.core.features import USER_ENCODER_INPUTS, sized
from freshet.release.tensorrt.stamp import StampError

OPERATORS = frozenset(
    {
        *("Add", "Cast", "Clip", "Concat", "Div", "Equal", "Expand", "Gather", "GatherND", "Gemm"),
        *("LayerNormalization", "MatMul", "Mul", "ReduceL2", "Relu", "Reshape", "Shape", "Slice", "Softmax"),
        *("Split", "Squeeze", "TopK", "Transpose", "Unsqueeze"),
    }
)
"""What an export may hold, each of them implemented by the parser of TensorRT 10 (onnx-tensorrt, docs/operators.md)."""
HALF_MAX = float(np.finfo(np.float16).max)


def read_network(folder: Path, *, fp16: bool) -> dict[str, tuple[int, ...]]:
    """The dims of each input of a version's network, without the batch.

    Raises:
        StampError: The folder is no bundle, or no plan can be built from its network.
    """
    try:
        bundle = load_sound(folder)
    except (BundleError, OSError) as error:
        raise StampError(str(error)) from None
    path, manifest = folder / "model.onnx", bundle.manifest
    if unknown := sorted(operators(path) - OPERATORS):
        raise StampError(f"{path} uses {', '.join(unknown)}, which TensorRT is not known to build")
    for name, values in constants(path) if fp16 else ():
        largest = float(np.abs(values).max(initial=0.0))
        if largest > HALF_MAX:
            raise StampError(f"{path}: {name} reaches {largest:g}, beyond half precision: build with --no-fp16")
    specs = sized(USER_ENCODER_INPUTS, length=manifest.length, dim=manifest.dim, items=len(bundle.item_ids))
    return {spec.name: tuple(int(axis) for axis in spec.shape) for spec in specs}
