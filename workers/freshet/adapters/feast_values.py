"""Feast's serialised values (`feast.types.Value`), written and read without Feast.

Source: Feast 0.67's `protos/feast/types/Value.proto`. Importing Feast takes seconds, and its own way a value several
times as long. The contract suite holds the bytes equal to Feast's own.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_MORE = 0x80
"""The bit of a varint's byte that says another one follows."""


def varint(value: int) -> bytes:
    """Protobuf's bytes of a number that is not negative."""
    out = bytearray()
    while value >= _MORE:
        out.append(value & 0x7F | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


_LISTS = {
    "StringList": (FieldDescriptorProto.TYPE_STRING, 12),
    "Int64List": (FieldDescriptorProto.TYPE_INT64, 14),
    "FloatList": (FieldDescriptorProto.TYPE_FLOAT, 16),
}
"""Feast's list messages, each with one repeated field: the type of the field, and the message's number in `Value`."""


def _messages() -> dict[str, type[Any]]:
    """Feast's `Value` and its list messages by name, as far as features of ours use them."""
    file = FileDescriptorProto(name="freshet/value.proto", package="freshet", syntax="proto3")
    value = file.message_type.add(name="Value")
    value.oneof_decl.add(name="val")
    for name, kind, number in (
        ("string_val", FieldDescriptorProto.TYPE_STRING, 2),
        ("int64_val", FieldDescriptorProto.TYPE_INT64, 4),
        ("float_val", FieldDescriptorProto.TYPE_FLOAT, 6),
    ):
        value.field.add(name=name, number=number, type=kind, oneof_index=0)
    for message, (kind, number) in _LISTS.items():
        file.message_type.add(name=message).field.add(
            name="val", number=1, type=kind, label=FieldDescriptorProto.LABEL_REPEATED
        )
        listed, name = FieldDescriptorProto.TYPE_MESSAGE, message.lower()
        value.field.add(name=name, number=number, type=listed, type_name=f".freshet.{message}", oneof_index=0)
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"freshet.{name}")) for name in ("Value", *_LISTS)}


_MESSAGES = _messages()
_Value, _StringList, _Int64List = (_MESSAGES[name] for name in ("Value", "StringList", "Int64List"))

# field number << 3 | wire type, of feast.types.Value
_STRING, _INT64, _FLOAT = b"\x12", b"\x20", b"\x35"
_STRINGS, _INT64S, _FLOATS = b"\x62", b"\x72", b"\x82\x01"
_PACKED = b"\x0a"
"""The tag of a list message's only field, packed."""


def _encode_strings(column: Sequence[str]) -> list[bytes]:
    bodies = [value.encode() for value in column]
    return [_STRING + varint(len(body)) + body for body in bodies]


@lru_cache(maxsize=65_536)
def _encode_int64(value: int) -> bytes:
    return _INT64 + varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)


def _encode_float32(value: float) -> bytes:
    return _FLOAT + struct.pack("<f", value)


def _encode_string_lists(column: Sequence[Sequence[str]]) -> list[bytes]:
    bodies = [_StringList(val=values).SerializeToString() for values in column]
    return [_STRINGS + varint(len(body)) + body for body in bodies]


def _encode_int64_lists(column: Sequence[Sequence[int]]) -> list[bytes]:
    """Times in ms fill six bytes as varints from 1971 to 2109, so a whole column of them is packed at once."""
    arrays = [values if isinstance(values, array) else array("q", values) for values in column]
    numbers = np.frombuffer(b"".join(arrays), np.int64)
    if numbers.size == 0 or numbers.min() < 1 << 35 or numbers.max() >= 1 << 42:
        bodies = [_Int64List(val=values.tolist()).SerializeToString() for values in arrays]
        return [_INT64S + varint(len(body)) + body for body in bodies]
    packed = np.empty((numbers.size, 6), np.uint8)
    for byte in range(6):
        packed[:, byte] = numbers >> (7 * byte) & 0x7F | _MORE
    packed[:, 5] ^= _MORE
    payload = packed.tobytes()
    encoded, start = [], 0
    for values in arrays:
        end = start + 6 * len(values)
        encoded.append(_packed(_INT64S, payload[start:end]))
        start = end
    return encoded


def _encode_float32_lists(column: Sequence[Sequence[float]]) -> list[bytes]:
    return [_packed(_FLOATS, np.asarray(values, "<f4").tobytes()) for values in column]


def _packed(tag: bytes, payload: bytes) -> bytes:
    body = _packed_head(len(payload)) if payload else b""
    return tag + varint(len(body) + len(payload)) + body + payload


@lru_cache(maxsize=4096)
def _packed_head(length: int) -> bytes:
    return _PACKED + varint(length)


ENCODERS: dict[str, Callable[[Sequence[Any]], list[bytes]]] = {
    "string": _encode_strings,
    "int64": lambda column: list(map(_encode_int64, column)),
    "float32": lambda column: list(map(_encode_float32, column)),
    "list[string]": _encode_string_lists,
    "list[int64]": _encode_int64_lists,
    "list[float32]": _encode_float32_lists,
}
"""Serialised Feast `Value`s of a column, by feature kind; the bytes are protobuf's own."""


def decode(raw: bytes) -> Any:
    """What a serialised `Value` holds: a scalar or a list; None for a value that is not set."""
    value = _Value.FromString(raw)
    name = value.WhichOneof("val")
    if name is None:
        return None
    held = getattr(value, name)
    return held if name.endswith("_val") else list(held.val)
