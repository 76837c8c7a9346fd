"""Record batches: what a broker may hold is read or quarantined, whatever the bytes, as both clients ask for it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cramjam
import pytest
from aiokafka.consumer import fetcher as aiokafka_fetcher
from freshet.adapters import wire_batches
from freshet.adapters.kafka_python import WireRecords
from freshet.adapters.wire_batches import (
    EXPANDED_BYTES,
    MAX_BATCH_BYTES,
    WireBatches,
    codec_faults,
    decompressed,
)
from freshet.core.events import Unreadable
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords
from kafka.structs import TopicPartition

from tests.record_batches import CODECS, batch, legacy_message, record, records

VALUES = [(b"k%d" % number, b"v%d" % number) for number in range(3)]
TP = TopicPartition("events", 0)


def by_aiokafka(data: bytes, start: int = 0) -> tuple[list[Any], int]:
    """What aiokafka's consumer makes of a fetch, and where the next fetch begins."""
    parts = aiokafka_fetcher.PartitionRecords(
        TP, WireBatches(data), None, start, None, None, True, aiokafka_fetcher.READ_COMMITTED
    )
    return list(parts), parts.next_fetch_offset


def by_kafka_python(data: bytes, start: int = 0) -> tuple[list[Any], int]:
    """What kafka-python's consumer makes of a fetch, and where the next fetch begins."""
    level = IsolationLevel.READ_COMMITTED
    parts = WireRecords(start, TP, MemoryRecords(data), check_crcs=False, isolation_level=level)
    return parts.take(), parts.next_fetch_offset


CLIENTS = pytest.mark.parametrize("read", [by_aiokafka, by_kafka_python])


def fields(found: Sequence[Any]) -> list[tuple[int, bytes | None, bytes | None]]:
    """Offset, key and value of each record."""
    return [(record.offset, record.key, record.value) for record in found]


@CLIENTS
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_read(read: Any, codec: str) -> None:
    """The reader takes batches of every codec from one fetch."""
    payload = records(VALUES, [(b"h", b"x"), (b"n", None)])
    data = b"".join(batch(payload, 3, CODECS[codec], base=base, timestamp=5) for base in (10, 13))
    found, following = read(data, 11)
    assert fields(found) == [(10 + n, *VALUES[n % 3]) for n in range(1, 6)]
    assert all(list(record.headers) == [("h", b"x"), ("n", None)] and record.timestamp == 5 for record in found)
    assert following == 16


@CLIENTS
def test_the_java_clients_snappy_is_read(read: Any) -> None:
    """The reader takes the Java client's snappy blocks, which follow a header of 16 bytes."""
    payload = records(VALUES)
    blocks = [bytes(cramjam.snappy.compress_raw(part)) for part in (payload[:7], payload[7:])]
    packed = b"\x82SNAPPY\0" + b"\0\0\0\1" * 2 + b"".join(len(part).to_bytes(4, "big") + part for part in blocks)
    assert fields(read(batch(b"", 3, 2, packed=packed))[0]) == [(n, *VALUES[n]) for n in range(3)]


@CLIENTS
def test_header_names_that_are_not_utf_8_are_escaped(read: Any) -> None:
    """A header name that is not UTF-8 is escaped, and the record and its neighbours are read."""
    odd = record(1, b"k", b"v", [(b"\xff\xfe", b"x"), ("ü".encode(), b"\xff"), (b"", None)])
    found, following = read(batch(record(0, *VALUES[0]) + odd + record(2, *VALUES[2]), 3))
    assert fields(found) == [(0, *VALUES[0]), (1, b"k", b"v"), (2, *VALUES[2])]
    assert list(found[1].headers) == [("\\xff\\xfe", b"x"), ("ü", b"\xff"), ("", None)]
    assert following == 3


BROKEN = {
    "garbage gzip": batch(b"", 3, 1, packed=b"garbage"),
    "garbage snappy": batch(b"", 3, 2, packed=b"garbage"),
    "garbage lz4": batch(b"", 3, 3, packed=b"garbage"),
    "garbage zstd": batch(b"", 3, 4, packed=b"garbage"),
    "unknown codec": batch(b"", 3, 7, packed=b"garbage"),
    "no payload": batch(b"", 3),
    "unknown format": batch(records(VALUES), 3, magic=9),
    "negative count": batch(records(VALUES), -1, delta=2),
    "wrong checksum": batch(records(VALUES), 3)[:-1] + b"?",
    "negative length": batch(b"\x05" + records(VALUES), 3),
    "negative block": batch(b"", 3, 2, packed=b"\x82SNAPPY\0" + b"\0\0\0\1" * 2 + b"\xff\xff\xff\xff"),
    "offset out of the batch": batch(record(2**40, b"k", b"v"), 1, delta=2),
    "too large": batch(bytes(MAX_BATCH_BYTES + 1), 3, 1),
}


@CLIENTS
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_batch_is_quarantined(read: Any, kind: str) -> None:
    """A broken batch becomes a single record with the reason and the end offset, and its neighbours are read."""
    good = batch(records(VALUES), 3, base=7)
    broken = bytes(4) + (4).to_bytes(4, "big") + BROKEN[kind][8:]
    found, following = read(batch(records(VALUES), 3, base=1) + broken + good)
    lost = [record for record in found if isinstance(record.value, Unreadable)]
    assert [(record.offset, record.key, record.value.end) for record in lost] == [(4, None, 7)]
    assert lost[0].value.startswith(b"batch 4 to 6: ")
    assert [record.offset for record in found if record not in lost] == [1, 2, 3, 7, 8, 9]
    assert following == 10


@CLIENTS
def test_what_stands_before_the_damage_is_read(read: Any) -> None:
    """The reader returns the records before the first damaged record of a batch."""
    cut = record(1, b"k", b"v" * 100)[:-60]
    found, following = read(batch(record(0, *VALUES[0]) + cut, 3))
    assert [record.offset for record in found] == [0, 1]
    assert found[0].value == b"v0"
    assert isinstance(found[1].value, Unreadable)
    assert following == 3


@CLIENTS
@pytest.mark.parametrize("seed", range(4))
def test_random_damage_raises_nothing(read: Any, seed: int) -> None:
    """Under random damage a fetch ends, offsets rise, and the next fetch begins behind the last read offset."""
    rng = random.Random(seed)
    for _ in range(150):
        codec = rng.choice(list(CODECS.values()))
        payload = bytearray(records(VALUES, [(b"name", b"x")]))
        for _ in range(rng.randrange(4)):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
        data = bytearray(batch(bytes(payload), 3, codec, base=5))
        if rng.random() < 0.5:
            data[rng.randrange(16, len(data))] = rng.randrange(256)
        found, following = read(bytes(data) + batch(records(VALUES), 3, base=2**40), 5)
        offsets = [record.offset for record in found]
        assert offsets == sorted(set(offsets))
        assert following > 5


def test_a_fetch_ends_within_its_last_batch() -> None:
    """A last batch that the end of the fetch cuts off is no damage."""
    good = batch(records(VALUES), 3)
    found, following = by_aiokafka(good + batch(records(VALUES), 3, base=3)[:-1])
    assert (len(found), following) == (3, 3)


READ_IN_BOUNDS = """
import resource, sys
from freshet.adapters import wire_batches
from freshet.adapters.kafka_python import WireRecords
from freshet.adapters.wire_batches import WireBatches
data = open(sys.argv[1], "rb").read()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
[found] = WireBatches(data).next_batch()
print(found.value.decode())
print((peak() - before) // 1024)
"""


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_memory_of_a_bomb_is_bounded(codec: str, tmp_path: Path) -> None:
    """A batch that decompresses to 200 MB is refused with a reason and takes no more memory than the bound."""
    (tmp_path / "bomb").write_bytes(batch(bytes(200_000_000), 1, CODECS[codec]))
    command = [sys.executable, "-c", READ_IN_BOUNDS, str(tmp_path / "bomb")]
    why, taken = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert why.startswith(f"batch 0 to 0: {codec} cannot be decompressed to {MAX_BATCH_BYTES} bytes at most")
    assert int(taken) <= 2 * MAX_BATCH_BYTES >> 20


@CLIENTS
def test_a_fetch_of_many_bombs_ends_early(read: Any) -> None:
    """A fetch ends once its decompressed bytes reach the bound, and the next fetch continues behind them."""
    value = bytes(EXPANDED_BYTES // 2)
    data = b"".join(batch(record(0, b"k", value), 1, 4, base=base) for base in range(10))
    offsets: list[int] = []
    following = 0
    while following < 10:
        found, following = read(data[following * (len(data) // 10) :], following)
        assert len(found) <= 2
        offsets += [record.offset for record in found]
    assert offsets == list(range(10))


@CLIENTS
@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "zstd"])
def test_messages_of_the_older_formats_are_read(read: Any, magic: int, codec: str) -> None:
    """Messages of formats 0 and 1 are read, alone and compressed together, with relative offsets in format 1."""
    if codec == "none":
        data = b"".join(legacy_message(n, *VALUES[n - 4], magic=magic) for n in (4, 5, 6))
    else:
        inner = [legacy_message(n if magic else n + 4, *VALUES[n], magic=magic) for n in range(3)]
        data = legacy_message(6, None, b"".join(inner), magic=magic, codec=CODECS[codec])
    found, following = read(data + batch(records(VALUES), 3, base=7), 5)
    assert fields(found) == [(n, *VALUES[(n - 4) % 3]) for n in range(5, 10)]
    assert following == 10


@CLIENTS
def test_a_broken_compressed_message_of_an_older_format_is_quarantined(read: Any) -> None:
    """What does not decompress, holds half a message, or one compressed again, is told, and the rest is read."""
    inner = legacy_message(0, *VALUES[0], magic=1)
    for payload in (inner[:-3], legacy_message(0, None, inner, magic=1, codec=1), bytes(MAX_BATCH_BYTES + 1)):
        broken = legacy_message(4, None, payload, magic=1, codec=1)
        found, _ = read(broken + batch(records(VALUES), 3, base=5))
        assert isinstance(found[0].value, Unreadable)
        assert [record.offset for record in found] == [4, 5, 6, 7]


def test_every_codec_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec that fails, or gives something else, is named."""
    assert codec_faults() == []
    monkeypatch.setitem(wire_batches._CODECS, 4, ("zstd", cramjam.gzip.decompress_into))
    monkeypatch.setitem(wire_batches._CODECS, 2, ("snappy", lambda _data, _room: 0))
    first, second = codec_faults()
    assert first.startswith("snappy reads b''")
    assert second.startswith("zstd cannot be decompressed")


def test_decompressed_batches_are_whole() -> None:
    """A decompressed batch has the fields of the same batch without compression."""
    payload = records(VALUES)
    plain = decompressed(memoryview(batch(payload, 3, 4, base=5, timestamp=9)), 4)
    assert plain[61:] == payload
    assert plain[21:23] == b"\0\0"
