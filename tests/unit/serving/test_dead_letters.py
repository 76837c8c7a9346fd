"""Dead letters fit the broker's bound, and a message that the broker refuses ends nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from freshet.core.events import BadEvent, BadReason
from freshet.ports import Message, Record, TooLargeError
from freshet.serving.dead_letters import HEADS, MAX_LETTER_BYTES, dead_letter, publish_dead_letters, publish_or_tell
from freshet.settings import Settings
from prometheus_client import REGISTRY

BAD = BadEvent(BadReason.TOO_LARGE, "why")


class Limited:
    """A publisher to a broker that takes messages up to a size."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.messages: list[Message] = []

    async def publish(self, messages: Sequence[Message]) -> None:
        """Keep what fits."""
        refused = [message for message in messages if size(message) > self._limit]
        self.messages += [message for message in messages if size(message) <= self._limit]
        if refused:
            raise TooLargeError(refused, "too large")


def size(message: Message) -> int:
    """Bytes of key, value and headers."""
    headers = sum(len(name.encode()) + len(value or b"") for name, value in message.headers)
    return len(message.key or b"") + len(message.value or b"") + headers


def letter(value: bytes | None, key: bytes | None = b"k", headers: Sequence[tuple[str, bytes | None]] = ()) -> Message:
    """The dead letter of a record at offset 7."""
    return dead_letter(Settings(), 3, Record(7, 0, key, value, headers), BAD)


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"k", b"x" * 3_000_000, []),
        (b"k" * 3_000_000, b"x", []),
        (None, None, [("n" * 3_000_000, b"")]),
        (b"k", b"x", [("a", None)] * 300_000),
        (b"k" * 400_000, b"x" * 400_000, [("n", b"x" * 400_000)]),
    ],
)
def test_an_oversized_record_keeps_its_heads(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    """The dead letter of an oversized record keeps its first bytes, its digest, its size and its origin."""
    made = letter(value, key, headers)
    assert size(made) < 4 * HEADS[0]
    found = dict(made.headers)
    assert found["truncated"] == b"true"
    assert found["origin_size"] == str(len(value or b"")).encode()
    assert found["sha256"] == hashlib.sha256(value or b"").hexdigest().encode()
    assert (found["origin_partition"], found["origin_offset"]) == (b"3", b"7")
    assert (value or b"").startswith(made.value or b"")
    assert (key or b"").startswith(made.key or b"")


def test_a_record_within_the_bound_stays_whole() -> None:
    """The dead letter of a record within the bound keeps every byte, with the record's own headers first."""
    made = letter(b"x" * (MAX_LETTER_BYTES - 1000), b"k", [("own", b"\xff"), ("none", None)])
    assert (made.key, len(made.value or b"")) == (b"k", MAX_LETTER_BYTES - 1000)
    assert list(made.headers[:2]) == [("own", b"\xff"), ("none", None)]
    assert "truncated" not in dict(made.headers)


@pytest.mark.parametrize("limit", [50_000, 2_000, 400])
async def test_a_letter_shrinks_until_the_broker_takes_it(limit: int) -> None:
    """A refused letter shrinks until it fits and keeps the original size, and other letters are published once."""
    publisher = Limited(limit)
    await publish_dead_letters(publisher, [letter(b"x" * 100_000, b"k" * 500), letter(b"small")])
    assert len(publisher.messages) == 2
    [cut] = [message for message in publisher.messages if "truncated" in dict(message.headers)]
    assert dict(cut.headers)["origin_size"] == b"100000"
    assert dict(cut.headers)["origin_offset"] == b"7"


async def test_what_the_broker_refuses_is_counted() -> None:
    """A message that the broker refuses is counted by topic, and the others are published."""
    publisher = Limited(10)
    before = REGISTRY.get_sample_value("freshet_refused_records_total", {"topic": "lists"}) or 0.0
    await publish_or_tell(publisher, [Message("lists", b"a", b"x" * 20), Message("lists", b"b", b"y")])
    assert [message.key for message in publisher.messages] == [b"b"]
    assert REGISTRY.get_sample_value("freshet_refused_records_total", {"topic": "lists"}) == before + 1
