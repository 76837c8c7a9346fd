"""A seeded producer of batches that no client library would make, on every topic that Freshet reads."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from freshet.core.state import empty_state

from tests.record_batches import CODECS, Header, batch, record

TOPICS = ("events", "items", "models", "popularity", "changelog", "recommendations", "events.dlq")
WEIGHTS = (8, 4, 2, 2, 3, 1, 1)
TS = 890_000_000_000
BOMB = 40_000_000
"""Bytes that a batch expands to which no reader takes: more than `MAX_BATCH_BYTES`."""


class Batch(NamedTuple):
    """What goes to the first partition of a topic, and a summary of it in a few words."""

    topic: str
    data: bytes
    summary: str


def batches(seed: int) -> Iterator[Batch]:
    """Batches without end; the same for the same seed, but for the record times, which the broker's retention reads."""
    rng = random.Random(seed)
    while True:
        topic = rng.choices(TOPICS, WEIGHTS)[0]
        if rng.random() < 0.02:
            codec = rng.choice([1, 4])
            yield Batch(topic, batch(record(0, b"user", bytes(BOMB)), 1, codec, timestamp=_now()), "a bomb")
            continue
        count = rng.choice([1, 1, 1, 2, 5, 20])
        made = [_record(rng, topic) for _ in range(count)]
        payload = b"".join(record(number, key, value, headers) for number, (key, value, headers) in enumerate(made))
        summary = f"{count} records: " + ", ".join(
            repr(value[:60]) if value else repr(value) for _, value, _ in made[:3]
        )
        data = batch(payload, count, rng.choice(list(CODECS.values())), timestamp=_timestamp(rng))
        if rng.random() < 0.1:
            data, summary = _damaged(rng, data), f"{summary}, damaged"
        yield Batch(topic, data, summary)


def _now() -> int:
    return int(time.time() * 1000)


def _timestamp(rng: random.Random) -> int:
    return rng.choice([_now(), _now(), _now(), -1, _now() - 3_600_000])


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """A byte changed anywhere; the broker refuses most of these, and what it takes must be read."""
    changed = bytearray(data)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _record(rng: random.Random, topic: str) -> tuple[bytes | None, bytes | None, list[Header]]:
    key, value = _VALUES[topic](rng)
    if rng.random() < 0.15:
        key = rng.choice([None, b"", b"\xff\xfe", b"k" * 3000, "ü".encode("latin-1")])
    for change in rng.sample(_CHANGES, rng.choice([0, 1, 1, 1, 2])):
        value = change(rng, value)
    return key, value, _headers(rng)


def _headers(rng: random.Random) -> list[Header]:
    names = [b"", b"\xff\xfe", b"n" * 1000, b"ce_id", b"ce_type", b"ce_specversion", b"ce_time", b"reason"]
    names += [b"origin_offset", b"origin_topic", b"origin_partition", b"content-type", b"truncated"]
    values = [
        None,
        b"",
        b"\xff",
        b"1.0",
        b"view",
        b"-1",
        b"application/cloudevents+json",
        b"x" * 2000,
        b"99999999999999",
    ]
    return [(rng.choice(names), rng.choice(values)) for _ in range(rng.choice([0, 0, 0, 1, 3, 12]))]


def _event(rng: random.Random) -> tuple[bytes, bytes]:
    user = f"user-{rng.randrange(8)}"
    kind = rng.choice(["view", "click", "purchase", "hover", "user.opt_out", "user.opt_in", "user.erase"])
    fields = {"event_id": f"r{rng.randrange(10**9)}", "user_id": user, "type": kind, "ts": TS + rng.randrange(10**9)}
    if rng.random() < 0.9:
        fields["item_id"] = rng.choice(["1", "50", "ü" * 200, "\x1f", "new-1"])
    return user.encode(), _json(rng, fields | {"amount": rng.choice([1, 2.5, None])})


def _item(rng: random.Random) -> tuple[bytes, bytes]:
    item = rng.choice(["1", "2", "new-1", "new-2", "ü"])
    text = rng.choice(["Alien", "", "word " * 20_000, "\U0001f600" * 500, "\0", "</script>"])
    return item.encode(), _json(rng, {"item_id": item, "title": text, "price": rng.choice([1, -1, 1e300])})


def _rollout(rng: random.Random) -> tuple[bytes, bytes]:
    version = rng.choice([1, 2, 7, 2**62])
    stage = rng.choice(["shadow", "canary", "rolled_back", "promoted"])
    step = {
        "record": "rollout",
        "model": "user_encoder",
        "version": version,
        "stage": stage,
        "ts": rng.choice([0, _now()]),
    }
    report = {"record": "report", "model": "user_encoder", "worker": "w", "ts": -1, "live": 2**62}
    return f"user_encoder/{version}".encode(), _json(rng, rng.choice([step, step, report]))


def _popularity(rng: random.Random) -> tuple[bytes, bytes]:
    partition = rng.choice([0, 0, 1, 2**31 - 1])
    counts = {rng.choice(["1", "2", "50", "nobody"]): rng.choice([0, 1, 1e12, 1e-300]) for _ in range(3)}
    fields = {"partition": partition, "offset": rng.choice([-1, 5, 2**62]), "ts": rng.choice([0, 1, TS, 2 * TS])}
    return b"%d" % partition, _json(rng, fields | {"half_life": rng.choice([1, 1e-300, 1e300]), "counts": counts})


def _state(rng: random.Random) -> tuple[bytes, bytes]:
    """A state of a user who sends nothing, with fields of other kinds, sizes and ranges."""
    fields = list(msgspec.msgpack.decode(msgspec.msgpack.encode(empty_state(0))))
    for _ in range(rng.randrange(3)):
        other: list[Any] = [
            None,
            -1,
            2**63,
            "",
            "\x1fa",
            "x" * 100_000,
            b"1234567",
            {"view": 2**63},
            {"a": float("nan")},
            [],
        ]
        fields[rng.randrange(len(fields))] = rng.choice(other)
    return f"stored-{rng.randrange(8)}".encode(), msgspec.msgpack.encode(fields)


def _list(rng: random.Random) -> tuple[bytes, bytes]:
    fields = {"recommendation_id": "r", "user_id": "user-1", "items": [{"item_id": "1", "score": 1e400}]}
    return b"user-1", _json(rng, fields)


def _dead_letter(rng: random.Random) -> tuple[bytes, bytes]:
    return _event(rng)


_VALUES: Mapping[str, Callable[[random.Random], tuple[bytes, bytes]]] = {
    "events": _event,
    "items": _item,
    "models": _rollout,
    "popularity": _popularity,
    "changelog": _state,
    "recommendations": _list,
    "events.dlq": _dead_letter,
}

_ODD = [
    None,
    True,
    -1,
    2**63,
    2**64,
    10**40,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\x1f",
    "x" * 300,
    [],
    {},
    [[]],
    {"a": {}},
]


def _json(rng: random.Random, fields: Mapping[str, Any]) -> bytes:
    """The fields as JSON, some left out, doubled or of another kind."""
    own = dict(fields)
    if rng.random() < 0.4:
        own[rng.choice(list(own))] = rng.choice(_ODD)
    if rng.random() < 0.15:
        del own[rng.choice(list(own))]
    if rng.random() < 0.2:
        own[rng.choice(["context", "unknown", "\u0000", "session_id"])] = rng.choice(_ODD)
    text = json.dumps(own, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def _cut(rng: random.Random, value: bytes | None) -> bytes | None:
    return value and value[: rng.randrange(len(value))]


def _flipped(rng: random.Random, value: bytes | None) -> bytes | None:
    return value and _damaged(rng, value)


def _grown(rng: random.Random, value: bytes | None) -> bytes | None:
    return (value or b"") + bytes([rng.randrange(256)]) * rng.choice([1, 70_000, 900_000])


def _deep(rng: random.Random, _value: bytes | None) -> bytes:
    depth = rng.choice([90, 1200, 30_000])
    return rng.choice([b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth])


def _other(rng: random.Random, _value: bytes | None) -> bytes | None:
    packed = struct.pack(">q", rng.getrandbits(62))
    return rng.choice(
        [None, b"", b"null", b"{}", b'"\xff"', "ü".encode("latin-1"), b'"\\ud800"', rng.randbytes(50), packed]
    )


_CHANGES: list[Callable[[random.Random, bytes | None], bytes | None]] = [_cut, _flipped, _grown, _deep, _other]
