"""Record batches made byte by byte, as no client library would make them."""

from __future__ import annotations

import io
import socket
import struct
import zlib
from collections.abc import Mapping, Sequence

import cramjam
from aiokafka.record.util import calc_crc32c, encode_varint

Header = tuple[bytes, bytes | None]

CODECS: Mapping[str, int] = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_COMPRESS = {
    0: bytes,
    1: lambda data: bytes(cramjam.gzip.compress(data)),
    2: lambda data: bytes(cramjam.snappy.compress_raw(data)),
    3: lambda data: _lz4(data),  # noqa: PLW0108 - defined below
    4: lambda data: bytes(cramjam.zstd.compress(data)),
}


def record(
    number: int, key: bytes | None, value: bytes | None, headers: Sequence[Header] = (), header_count: int | None = None
) -> bytes:
    """One record of a batch; `header_count` is what it says of its headers, True or not."""
    body = bytearray([0])
    _varint(body, 0)
    _varint(body, number)
    for field in (key, value):
        _field(body, field)
    _varint(body, len(headers) if header_count is None else header_count)
    for name, raw in headers:
        _field(body, name)
        _field(body, raw)
    whole = bytearray()
    _varint(whole, len(body))
    return bytes(whole + body)


def batch(
    payload: bytes,
    count: int,
    codec: int = 0,
    *,
    base: int = 0,
    timestamp: int = 0,
    packed: bytes | None = None,
    magic: int = 2,
    delta: int | None = None,
) -> bytes:
    """A batch of `count` records with a right checksum; `packed` stands in for the compressed payload."""
    packed = _COMPRESS[codec](payload) if packed is None else packed
    last = count - 1 if delta is None else delta
    rest = struct.pack(">hiqqqhii", codec, last, timestamp, timestamp, -1, -1, -1, count) + packed
    crc = calc_crc32c(rest)
    return struct.pack(">qiibI", base, len(rest) + 9, -1, magic, crc) + rest


def records(values: Sequence[tuple[bytes | None, bytes | None]], headers: Sequence[Header] = ()) -> bytes:
    """The payload of a batch: keys and values, all with the same headers."""
    return b"".join(record(number, key, value, headers) for number, (key, value) in enumerate(values))


def legacy_message(offset: int, key: bytes | None, value: bytes | None, *, magic: int, codec: int = 0) -> bytes:
    """A message of format 0 or 1, its value compressed by a codec."""
    value = _COMPRESS[codec](value) if codec and value is not None else value
    body = struct.pack(">bb", magic, codec) + (struct.pack(">q", 5) if magic else b"")
    for raw in (key, value):
        body += struct.pack(">i", -1 if raw is None else len(raw)) + (raw or b"")
    return struct.pack(">qiI", offset, len(body) + 4, zlib.crc32(body)) + body


def _lz4(data: bytes) -> bytes:
    """Blocks on their own, which the broker asks for."""
    compressor = cramjam.lz4.Compressor(content_checksum=False, block_linked=False)
    compressor.compress(data)
    return bytes(compressor.finish())


def _varint(into: bytearray, value: int) -> None:
    written = io.BytesIO()
    encode_varint(value, lambda byte: written.write(bytes([byte])))
    into += written.getvalue()


def _field(into: bytearray, raw: bytes | None) -> None:
    _varint(into, -1 if raw is None else len(raw))
    into += raw or b""


def produce(bootstrap: str, topic: str, partition: int, data: bytes) -> int:
    """Send batches to a partition as they are; returns the broker's error code, 0 for none (Produce, version 7)."""
    host, _, port = bootstrap.partition(":")
    name = topic.encode()
    body = struct.pack(">hhih", 0, 7, 1, -1)  # Produce, version 7, correlation 1, no client id
    body += struct.pack(">hhii", -1, -1, 30_000, 1)  # no transaction, all replicas, ms, topics
    body += struct.pack(">h", len(name)) + name + struct.pack(">iii", 1, partition, len(data)) + data
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(struct.pack(">i", len(body)) + body)
        answer = connection.makefile("rb")
        (size,) = struct.unpack(">i", answer.read(4))
        at = 4 + 4 + 2 + len(name) + 4 + 4  # correlation, topics, name, partitions, partition
        (code,) = struct.unpack_from(">h", answer.read(size), at)
    return int(code)
