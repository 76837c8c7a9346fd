"""What a bundle's graphs declare and hold, read without running them.

ONNX is protocol buffers (onnx.proto, IR version 3 and later). The few fields that
matter here are read from the bytes, so that whoever is asked to serve a bundle can
refuse the bundle first. A protocol buffer may hold a message in parts, which a parser
merges. This reader refuses such parts, and every form of a constant that it does not
read: functions, training graphs, sparse tensors, tensors in files of their own. What is
checked here is therefore all that ONNX Runtime sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshet.bundle.bundle import Bundle, BundleError
from freshet.bundle.weights import floats
from freshet.core.features import (
    ITEM_TOWER_INPUTS,
    ITEM_TOWER_OUTPUTS,
    USER_ENCODER_INPUTS,
    USER_ENCODER_OUTPUTS,
    TensorSpec,
    sized,
)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# field numbers of onnx.proto
_MODEL_GRAPH = 7
_MODEL_REFUSED = {20: "training graphs", 25: "functions"}
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 1, 5, 11, 12
_GRAPH_SPARSE = 15
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = frozenset({_ATTRIBUTE_TENSOR, 10}), frozenset({_ATTRIBUTE_GRAPH, 11})
_ATTRIBUTE_SPARSE = frozenset({22, 23})
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 2, 8, 9, 13, 14
_TENSOR_PACKED = frozenset({4, 10})
_TENSOR_HALVES = 5
"""Where 16-bit floats stand as integers."""
_ELEMENT_TYPES = {1: "FP32", 6: "INT32", 7: "INT64", 8: "BYTES", 10: "FP16", 11: "FP64", 16: "BF16"}
_FLOATS = {1: "F32", 10: "F16", 11: "F64", 16: "BF16"}
_DEEPEST = 8
"""Graphs within graphs; an exported version has none."""
_VARINT_BYTES = 10
Field = tuple[int, int | memoryview]


def check_graphs(bundle: Bundle) -> None:
    """See that the bundle's graphs take and give the right tensors, and hold no NaN. Raises `BundleError`."""
    manifest = bundle.manifest
    for file, inputs, outputs in (
        ("model.onnx", USER_ENCODER_INPUTS, USER_ENCODER_OUTPUTS),
        ("item_tower.onnx", ITEM_TOWER_INPUTS, ITEM_TOWER_OUTPUTS),
    ):
        takes, gives = (
            sized(specs, length=manifest.length, dim=manifest.dim, items=len(bundle.item_ids))
            for specs in (inputs, outputs)
        )
        _check_onnx(bundle.path / file, takes, gives)


def operators(path: Path) -> set[str]:
    """The operators that an ONNX file's graph uses, inner graphs left out. Raises `ValueError`, `IndexError`."""
    nodes = (_bytes(value) for number, value in _fields(_graph(path)) if number == _GRAPH_NODE)
    return {bytes(_single(node, _NODE_OPERATOR)).decode() for node in nodes}


def constants(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every floating-point constant of an ONNX file by name. Raises `ValueError`, `IndexError`."""
    return _tensors(_graph(path))


def _graph(path: Path) -> memoryview:
    model = memoryview(path.read_bytes())
    for number, _ in _fields(model):
        if number in _MODEL_REFUSED:
            raise ValueError(f"it holds {_MODEL_REFUSED[number]}")
    return _single(model, _MODEL_GRAPH)


def _check_onnx(path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    try:
        graph = _graph(path)
        fields = list(_fields(graph))
        takes = [_tensor_spec(value) for number, value in fields if number == _GRAPH_INPUT]
        gives = [_tensor_spec(value) for number, value in fields if number == _GRAPH_OUTPUT]
        bad = next((name for name, values in _tensors(graph) if np.isnan(values).any()), None)
    except (ValueError, IndexError) as error:
        raise BundleError(f"{path} cannot be read as ONNX: {error}") from None
    for side, declared, wanted in (("takes", takes, inputs), ("gives", gives, outputs)):
        if sorted(declared, key=_name) != sorted(wanted, key=_name):
            raise BundleError(f"{path} {side} {_said(declared)}, not {_said(wanted)}")
    if bad is not None:
        raise BundleError(f"{path}: weight {bad} holds NaN")


def _tensors(graph: memoryview, depth: int = 0) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every floating-point constant of a graph: its initialisers, its nodes' attributes, its inner graphs'."""
    if depth > _DEEPEST:
        raise ValueError(f"its graphs stand within each other more than {_DEEPEST} deep")
    for number, value in _fields(graph):
        if number == _GRAPH_SPARSE:
            raise ValueError("it holds sparse tensors")
        if number == _GRAPH_INITIALIZER:
            yield from _values(_bytes(value))
        elif number == _GRAPH_NODE:
            for field, attribute in _fields(_bytes(value)):
                if field == _NODE_ATTRIBUTE:
                    yield from _attribute_tensors(_bytes(attribute), depth)


def _attribute_tensors(attribute: memoryview, depth: int) -> Iterator[tuple[str, NDArray[Any]]]:
    fields = list(_fields(attribute))
    if any(number in _ATTRIBUTE_SPARSE for number, _ in fields):
        raise ValueError("it holds sparse tensors")
    for once in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH):
        _refuse_parts(fields, once)
    for number, value in fields:
        if number in _ATTRIBUTE_TENSORS:
            yield from _values(_bytes(value))
        elif number in _ATTRIBUTE_GRAPHS:
            yield from _tensors(_bytes(value), depth + 1)


def _values(tensor: memoryview) -> Iterator[tuple[str, NDArray[Any]]]:
    fields = list(_fields(tensor))
    for once in (_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW):
        _refuse_parts(fields, once)
    named = dict(fields)
    name = bytes(_bytes(named.get(_TENSOR_NAME, memoryview(b"?")))).decode(errors="replace")
    if _TENSOR_EXTERNAL in named or named.get(_TENSOR_LOCATION):
        raise ValueError(f"{name} lies in a file of its own")
    dtype = _FLOATS.get(_number(named.get(_TENSOR_TYPE, 0)))
    if dtype is None:
        return
    if _TENSOR_RAW in named:
        yield name, floats(_bytes(named[_TENSOR_RAW]), dtype)
    elif dtype in {"F16", "BF16"}:
        halves = [half for number, value in fields if number == _TENSOR_HALVES for half in _varints(_bytes(value))]
        yield name, floats(np.array(halves, "<u2").tobytes(), dtype)
    else:
        packed = b"".join(bytes(_bytes(value)) for number, value in fields if number in _TENSOR_PACKED)
        yield name, floats(packed, dtype)


def _tensor_spec(value: int | memoryview) -> TensorSpec:
    """A graph's input or output, without its batch axis."""
    info = _bytes(value)
    name = bytes(_single(info, 1)).decode()
    tensor = _single(_single(info, 2), 1)
    kind = next((_number(part) for number, part in _fields(tensor) if number == 1), 0)
    sizes = [
        next((_number(size) for field, size in _fields(_bytes(dim)) if field == 1), 0)
        for number, dim in _fields(_single(tensor, 2))
        if number == 1
    ]
    return TensorSpec(name, _ELEMENT_TYPES.get(kind, f"type {kind}"), tuple(sizes[1:]))


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of one message: number, and an integer or the bytes. Raises `ValueError`, `IndexError`."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in {_FIXED32, _FIXED64}:
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError("it is cut short")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for count in range(_VARINT_BYTES):
        byte = data[at + count]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:  # noqa: PLR2004 - no continuation bit
            return value, at + count + 1
    raise ValueError(f"a number at byte {at} takes more than {_VARINT_BYTES} bytes")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _single(message: memoryview, wanted: int) -> memoryview:
    """The bytes of a field that a message must hold once."""
    fields = list(_fields(message))
    _refuse_parts(fields, wanted)
    for number, value in fields:
        if number == wanted:
            return _bytes(value)
    raise ValueError(f"field {wanted} is missing")


def _refuse_parts(fields: Sequence[Field], wanted: int) -> None:
    if sum(number == wanted for number, _ in fields) > 1:
        raise ValueError(f"field {wanted} stands more than once where a parser would merge its parts")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")  # noqa: TRY004 - of the file, not of the program
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("a message stands where a number should")  # noqa: TRY004 - of the file, not of the program
    return value


def _name(spec: TensorSpec) -> str:
    return spec.name


def _said(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs) or "nothing"
