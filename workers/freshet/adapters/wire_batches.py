"""Record batches of the Kafka protocol, read so that nothing in a record can raise out of a fetch.

`WireBatches` takes the place of `MemoryRecords` in aiokafka and in kafka-python. A batch is decompressed up to a
bound, and aiokafka's C parser reads the records. Where the C parser refuses a record, as for a header name that is
not UTF-8, a tolerant parser reads the batch. What neither can read is quarantined: one record with an `Unreadable`
value stands for all the offsets that are lost, and the fetch goes on with the next batch.

Format: https://kafka.apache.org/documentation/#recordbatch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import cramjam
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import decode_varint

from freshet.core.events import Unreadable

MAX_BATCH_BYTES = 32 * 1024 * 1024
"""A batch that decompresses to more is quarantined; the usual broker takes a compressed MiB."""
EXPANDED_BYTES = 8 * 1024 * 1024
"""A fetch ends after so much has been decompressed: the rest is fetched again when this has been processed."""

_LENGTH = struct.Struct(">qi")
_HEADER = struct.Struct(">qiibIhiqqqhii")
_MAGIC_AT = 16
_ATTRIBUTES_AT = 21
_LEGACY_ATTRIBUTES_AT = 17
_CODEC, _TRANSACTIONAL, _CONTROL = 0x07, 0x10, 0x20
_MAGIC = 2
_COMMIT_MARKER = b"\0\0\0\1"
_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEADER = 16


class CorruptBatchError(Exception):
    """A batch cannot be read; the message says why."""


class ParsedRecord(NamedTuple):
    """A record with the fields that aiokafka and kafka-python ask for; `timestamp` in ms since the Unix epoch."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: int | None = None
    size_in_bytes: int = 0


class Marker(NamedTuple):
    """The record of a control batch: the end of a transaction."""

    key: bytes

    @property
    def abort(self) -> bool:
        """Whether the transaction was aborted."""
        return self.key[2:4] == b"\0\0"


class WireBatch:
    """One batch of format 2, with the interface that both clients' `PartitionRecords` use."""

    magic = _MAGIC

    def __init__(self, raw: memoryview, wrong: str = "") -> None:
        """`wrong` says what is known to be wrong with the batch."""
        self._raw = raw
        self.expanded = 0
        fields = _HEADER.unpack_from(raw.tobytes()[: _HEADER.size].ljust(_HEADER.size, b"\0"))
        self.base_offset, _, self.leader_epoch, magic, _, attributes, delta, _, self._timestamp = fields[:9]
        self.producer_id = fields[9]
        self.last_offset = self.base_offset + max(0, delta)
        self.next_offset = self.last_offset + 1
        self.codec = attributes & _CODEC
        self._wrong = wrong or _wrong(raw, magic)
        self.is_transactional = not self._wrong and bool(attributes & _TRANSACTIONAL)
        self.is_control_batch = not self._wrong and bool(attributes & _CONTROL)

    def has_producer_id(self) -> bool:
        """Whether the producer was idempotent or transactional."""
        return bool(self.producer_id >= 0)

    def validate_crc(self) -> bool:
        """True: a batch with a wrong checksum is quarantined."""
        return True

    def __next__(self) -> Marker:
        """The marker of a control batch; one that cannot be read commits."""
        [marker] = islice(self, 1)
        return Marker(marker.key if marker.key and len(marker.key) >= len(_COMMIT_MARKER) else _COMMIT_MARKER)

    def __iter__(self) -> Iterator[Any]:
        """The records. What cannot be read is one record at the end, with an `Unreadable` value."""
        following = self.base_offset
        try:
            for record in self._records():
                if not following <= record.offset <= self.last_offset:
                    why = f"offset {record.offset} is out of order"
                    break
                yield record
                following = record.offset + 1
            else:
                return
        except Exception as error:
            why = _why(error)
        value = Unreadable(f"batch {self.base_offset} to {self.last_offset}: {why}"[:500], self.next_offset)
        yield ParsedRecord(min(following, self.last_offset), max(0, self._timestamp), 0, None, value, [])

    def _records(self) -> Iterator[Any]:
        if self._wrong:
            raise CorruptBatchError(self._wrong)
        raw: bytearray | memoryview = self._raw
        if self.codec:
            raw = decompressed(self._raw, self.codec)
            self.expanded = len(raw)
        count = 0
        try:
            for record in DefaultRecordBatch(raw):
                yield record
                count += 1
        except Exception:  # the C parser's own, and UnicodeDecodeError
            yield from islice(_tolerant_records(bytes(raw)), count, None)


class PlainWireBatch(WireBatch):
    """A batch whose records are `ParsedRecord`s, for kafka-python."""

    def __iter__(self) -> Iterator[ParsedRecord]:
        for record in super().__iter__():
            yield ParsedRecord(
                record.offset, record.timestamp, record.timestamp_type, record.key, record.value, record.headers
            )


class LegacyWireBatch:
    """A message of format 0 or 1, which brokers before 4.0 may hold, or a compressed one with others in it."""

    is_control_batch = False
    is_transactional = False
    producer_id = None
    expanded = 0

    def __init__(self, raw: memoryview, magic: int) -> None:
        self._raw = raw
        self.magic = magic
        self.base_offset, _ = _LENGTH.unpack_from(raw)
        self.next_offset = self.base_offset + 1

    def validate_crc(self) -> bool:
        """True: a batch with a wrong checksum is quarantined."""
        return True

    def __iter__(self) -> Iterator[Any]:
        try:
            for record in _legacy_records(self._raw, self.magic):
                self.expanded += record.size_in_bytes
                yield record
        except Exception as error:
            value = Unreadable(f"batch {self.base_offset}, format {self.magic}: {_why(error)}"[:500], self.next_offset)
            yield ParsedRecord(self.base_offset, 0, 0, None, value, [])


class WireBatches:
    """The batches of a partition in a fetch, in offset order; stands for aiokafka's `MemoryRecords`."""

    batch_type: type[WireBatch] = WireBatch

    def __init__(self, data: bytes | bytearray | memoryview | None) -> None:
        self._data = memoryview(data or b"")
        self._at = 0
        self._expanded = 0
        self._handed: WireBatch | LegacyWireBatch | None = None
        self._next = self._cut()

    def size_in_bytes(self) -> int:
        """Bytes of the fetch."""
        return len(self._data)

    def has_next(self) -> bool:
        """Whether another batch follows."""
        if self._handed is not None:
            self._expanded, self._handed = self._expanded + self._handed.expanded, None
        return self._next is not None and self._expanded < EXPANDED_BYTES

    def next_batch(self) -> WireBatch | LegacyWireBatch | None:
        """The next batch; None after the last."""
        if not self.has_next():
            return None
        self._handed, self._next = self._next, self._cut()
        return self._handed

    def _cut(self) -> WireBatch | LegacyWireBatch | None:
        rest = self._data[self._at :]
        if len(rest) < _LENGTH.size:
            return None
        _, length = _LENGTH.unpack_from(rest)
        end = _LENGTH.size + length
        if end > len(rest) and self._at:
            return None  # the fetch ended within the batch
        if end <= _MAGIC_AT or end > len(rest):
            self._at = len(self._data)
            return self.batch_type(rest, f"a length of {length} bytes is impossible")
        self._at += end
        raw = rest[:end]
        if raw[_MAGIC_AT] < _MAGIC:
            return LegacyWireBatch(raw, raw[_MAGIC_AT])
        return self.batch_type(raw)


class PlainWireBatches(WireBatches):
    """The same for kafka-python's `MemoryRecords`."""

    batch_type = PlainWireBatch


def _legacy_records(raw: memoryview, magic: int) -> Iterator[ParsedRecord]:
    """The record of a message, or those in a compressed one, whose offsets count from its first in format 1."""
    wrapper, codec = _legacy_record(raw, magic)
    if not LegacyRecordBatch(raw.tobytes(), magic).validate_crc():
        raise CorruptBatchError("the checksum is wrong")
    if not codec:
        yield wrapper
        return
    inner = memoryview(_decompressed(wrapper.value or b"", codec))
    found, at = [], 0
    while at + _LENGTH.size <= len(inner):
        offset, length = _LENGTH.unpack_from(inner, at)
        end = at + _LENGTH.size + length
        if end > len(inner) or end <= at + _LEGACY_ATTRIBUTES_AT:
            raise CorruptBatchError(f"a message of {length} bytes")
        record, nested = _legacy_record(inner[at:end], magic)
        if nested:
            raise CorruptBatchError("a compressed message within another")
        found.append(record._replace(offset=offset))
        at = end
    shift = wrapper.offset - found[-1].offset if magic and found else 0
    for record in found:
        yield record._replace(offset=record.offset + shift)


def _legacy_record(raw: memoryview, magic: int) -> tuple[ParsedRecord, int]:
    """A message as it stands, and the number of the codec of its value."""
    offset, _ = _LENGTH.unpack_from(raw)
    attributes, at = raw[_LEGACY_ATTRIBUTES_AT], _LEGACY_ATTRIBUTES_AT + 1
    timestamp, kind = 0, 0
    if magic:
        (timestamp,), kind, at = struct.unpack_from(">q", raw, at), attributes >> 3 & 1, at + 8
    fields: list[bytes | None] = []
    for _ in range(2):
        (length,) = struct.unpack_from(">i", raw, at)
        at += 4
        if length > len(raw) - at:
            raise CorruptBatchError(f"a field of {length} bytes")
        fields.append(raw[at : at + length].tobytes() if length >= 0 else None)
        at += max(0, length)
    record = ParsedRecord(offset, max(0, timestamp), kind, fields[0], fields[1], [], size_in_bytes=len(raw))
    return record, attributes & _CODEC


def _wrong(raw: memoryview, magic: int) -> str:
    """What is wrong with a batch of format 2 before its records are looked at; empty where nothing is."""
    if len(raw) < _HEADER.size:
        return f"{len(raw)} bytes are no batch"
    if magic != _MAGIC:
        return f"batch format {magic} is unknown"
    return "" if DefaultRecordBatch(raw).validate_crc() else "the checksum is wrong"


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, CorruptBatchError) else f"{type(error).__name__}: {error}"


def decompressed(raw: memoryview, codec: int) -> bytearray:
    """The batch as if it had been sent uncompressed. Raises `CorruptBatchError`."""
    batch = _decompressed(raw[_HEADER.size :].tobytes(), codec, raw[: _HEADER.size].tobytes())
    batch[_ATTRIBUTES_AT + 1] &= ~_CODEC & 0xFF
    return batch


def _decompressed(data: bytes, codec: int, before: bytes = b"") -> bytearray:
    """What was compressed, behind the bytes `before`. Raises `CorruptBatchError`."""
    if codec not in _CODECS:
        raise CorruptBatchError(f"compression {codec} is unknown")
    name, decompress_into = _CODECS[codec]
    whole = bytearray(len(before) + MAX_BATCH_BYTES)  # the system gives memory to the pages that are written
    whole[: len(before)] = before
    try:
        with memoryview(whole)[len(before) :] as room:
            size = decompress_into(data, room)
    except Exception as error:  # cramjam's own, struct.error
        raise CorruptBatchError(f"{name} cannot be decompressed to {MAX_BATCH_BYTES} bytes at most: {error}") from None
    del whole[len(before) + size :]
    return whole


def codec_faults() -> list[str]:
    """What keeps this process from reading compressed batches, a sentence a codec."""
    faults = []
    for codec, sample in _SAMPLES.items():
        try:
            read = bytes(_decompressed(sample, codec))
        except CorruptBatchError as error:
            faults.append(str(error))
        else:
            if read != _SAMPLE:
                faults.append(f"{_CODECS[codec][0]} reads {read!r} for {_SAMPLE!r}")
    return faults


def _snappy_into(data: bytes, room: memoryview) -> int:
    """Decompress Snappy, plain or in the Java client's blocks; returns the size."""
    if not data.startswith(_XERIAL):
        return _snappy_block_into(data, room)
    at, size = _XERIAL_HEADER, 0
    while at < len(data):
        (length,) = struct.unpack_from(">i", data, at)
        if length < 0:
            raise CorruptBatchError(f"a block of {length} bytes")
        size += _snappy_block_into(data[at + 4 : at + 4 + length], room[size:])
        at += 4 + length
    return size


def _snappy_block_into(data: bytes, room: memoryview) -> int:
    size = cramjam.snappy.decompress_raw_len(data)
    if size > len(room):
        raise CorruptBatchError(f"a block of {size} bytes")
    return int(cramjam.snappy.decompress_raw_into(data, room))


_CODECS: Mapping[int, tuple[str, Callable[[bytes, memoryview], int]]] = {
    1: ("gzip", cramjam.gzip.decompress_into),
    2: ("snappy", _snappy_into),
    3: ("lz4", cramjam.lz4.decompress_into),
    4: ("zstd", cramjam.zstd.decompress_into),
}
"""Codecs by their number in a batch's attributes."""

_SAMPLE = b"freshet" * 4
_SAMPLES: Mapping[int, bytes] = {
    1: b"\x1f\x8b\x08\0\0\0\0\0\0\xffK+J-\xceH-I\xc3F\x01\0\xb4\x16B4\x1c\0\0\0",
    2: b"\x1c\x18freshetR\x07\0",
    3: b'\x04"M\x18p@\xad\x10\0\0\0|freshet\x07\0Peshet\xf0\x93\xf6R\0\0\0\0',
    4: b"(\xb5/\xfd \x1cm\0\x008freshet\x01\0\xfa\x8a\x11",
}
"""`_SAMPLE` as each codec compresses it."""


def _tolerant_records(raw: bytes) -> Iterator[ParsedRecord]:
    """The records of an uncompressed batch; bytes in header names that are not UTF-8 stand as escapes."""
    base, _, _, _, _, attributes, _, first, newest, _, _, _, count = _HEADER.unpack_from(raw)
    at = _HEADER.size
    for _ in range(count):
        length, at = decode_varint(raw, at)
        end = at + length
        if length < 0 or end > len(raw):
            raise CorruptBatchError(f"a record of {length} bytes")
        ts_delta, at = decode_varint(raw, at + 1)
        offset_delta, at = decode_varint(raw, at)
        key, at = _field(raw, at, end)
        value, at = _field(raw, at, end)
        headers, at = _headers(raw, at, end)
        if at != end:
            raise CorruptBatchError(f"{end - at} bytes follow in a record")
        timestamp, kind = (newest, 1) if attributes & 0x08 else (first + ts_delta, 0)
        yield ParsedRecord(base + offset_delta, timestamp, kind, key, value, headers, size_in_bytes=length)
    if at != len(raw):
        raise CorruptBatchError(f"{len(raw) - at} bytes follow the last record")


def _headers(raw: bytes, at: int, end: int) -> tuple[list[tuple[str, bytes | None]], int]:
    headers: list[tuple[str, bytes | None]] = []
    count, at = decode_varint(raw, at)
    for _ in range(count):
        name, at = _field(raw, at, end)
        value, at = _field(raw, at, end)
        headers.append(((name or b"").decode(errors="backslashreplace"), value))
    return headers, at


def _field(raw: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    """A nullable field and where the next begins."""
    length, at = decode_varint(raw, at)
    if length < 0:
        return None, at
    if at + length > end:
        raise CorruptBatchError(f"a field of {length} bytes")
    return raw[at : at + length], at + length
