"""The trained weights of a bundle, read without torch: safetensors is a JSON header before raw tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.bundle.bundle import WEIGHTS, Bundle, BundleError
from freshet.core.decoding import Undecodable, decode
from freshet.core.features import FIRST_ITEM, GAP_BUCKETS, TEXT_DIM

_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
_SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "residual.weight": ("items", "dim"),
    "special.weight": (FIRST_ITEM, "dim"),
    "type_embedding.weight": ("types and none", "dim"),
    "gap_embedding.weight": (GAP_BUCKETS, "dim"),
    "tower.project.weight": ("dim", TEXT_DIM),
    "tower.project.bias": ("dim",),
    "input_norm.weight": ("dim",),
    "input_norm.bias": ("dim",),
    "output_norm.weight": ("dim",),
    "output_norm.bias": ("dim",),
    "type_head.weight": ("types", "dim"),
    "type_head.bias": ("types",),
    "blocks.*.attention_norm.weight": ("dim",),
    "blocks.*.attention_norm.bias": ("dim",),
    "blocks.*.query.weight": ("dim", "dim"),
    "blocks.*.query.bias": ("dim",),
    "blocks.*.key_value.weight": ("two dims", "dim"),
    "blocks.*.key_value.bias": ("two dims",),
    "blocks.*.out.weight": ("dim", "dim"),
    "blocks.*.out.bias": ("dim",),
    "blocks.*.distance_bias": ("heads", "length"),
    "blocks.*.feed_norm.weight": ("dim",),
    "blocks.*.feed_norm.bias": ("dim",),
    "blocks.*.feed_in.bias": ("feed_forward",),
    "blocks.*.feed_in.weight": ("feed_forward", "dim"),
    "blocks.*.feed_out.weight": ("dim", "feed_forward"),
    "blocks.*.feed_out.bias": ("dim",),
}
"""The trained tensors (`training/freshet_training/model.py`), with a name for each axis that versions differ in."""


class _Stored(msgspec.Struct):
    """A tensor in the header; its bytes are counted from the header's end."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


_header = msgspec.json.Decoder(dict[str, Any])


def check_weights(bundle: Bundle) -> None:
    """See that every trained weight is there, finite, and of the shape that the manifest implies.

    Raises `BundleError`.
    """
    path, manifest = bundle.path / WEIGHTS, bundle.manifest
    try:
        weights = dict(_safetensors(path))
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path} cannot be read as safetensors: {error}") from None
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise BundleError(f"{path}: weight {name} holds NaN or infinity: train it again")
    sizes: dict[int | str, int | str] = {
        "items": len(bundle.item_ids),
        "dim": manifest.dim,
        "two dims": 2 * manifest.dim,
        "length": manifest.length,
        "types": len(manifest.types),
        "types and none": len(manifest.types) + 1,
    }
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")} or {"0"}
    wanted = {pattern.replace("*", block): axes for pattern, axes in _SHAPES.items() for block in sorted(blocks)}
    for name, axes in wanted.items():
        if name not in weights:
            raise BundleError(f"{path} lacks weight {name}: train it again")
        shape, expected = weights[name].shape, [sizes.get(axis, axis) for axis in axes]
        if len(shape) != len(expected) or any(
            isinstance(size, int) and size != given for given, size in zip(shape, expected, strict=True)
        ):
            said = " × ".join(map(str, expected))
            raise BundleError(f"{path}: weight {name} is {' × '.join(map(str, shape))}, not {said}: train it again")


def _safetensors(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every tensor of a safetensors file by name. Raises `ValueError`, `KeyError`."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = decode(_header, raw[8:start])
    if isinstance(header, Undecodable):
        raise ValueError(header.why)  # noqa: TRY004 - it is the file that is wrong
    header.pop("__metadata__", None)
    for name, stored in msgspec.convert(header, dict[str, _Stored]).items():
        begin, end = stored.data_offsets
        if stored.dtype not in {*_DTYPES, "BF16"}:
            raise ValueError(f"weight {name} is {stored.dtype}, not of a floating type of 16 bits or more")
        yield name, floats(raw[start + begin : start + end], stored.dtype).reshape(stored.shape)


def floats(raw: bytes | memoryview, dtype: str) -> NDArray[Any]:
    """Raw little-endian floats of F16, BF16, F32 or F64; BF16, which numpy lacks, is the upper half of a float32."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, _DTYPES[dtype])
