"""Dead letters, and outputs that the broker refuses as too large: neither may end a worker."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence

from freshet.core.events import DEAD_LETTER_HEADERS, BadEvent, Unreadable
from freshet.ports import Fetched, Message, Publisher, TooLargeError
from freshet.process import metrics
from freshet.settings import Settings

MAX_LETTER_BYTES = 900_000
"""Key, value and headers of a dead letter; librdkafka sends records up to 1,000,000 bytes."""
HEADS = (16_384, 256, 0)
"""What is kept of key, value and headers, in bytes each: the next where the broker refuses the one before."""
HEADER_BYTES = 10
"""At most what a header costs beside its name and value."""

log = logging.getLogger(__name__)


def dead_letter(settings: Settings, partition: int, record: Fetched, bad: BadEvent) -> Message:
    """The record as it came, with headers that say where it came from and what is wrong with it.

    Of a record over `MAX_LETTER_BYTES` the heads of key, value and headers are kept. An unreadable batch has no value.
    """
    metrics.DEAD_LETTERS.labels(bad.reason).inc()
    unreadable = record.value if isinstance(record.value, Unreadable) else None
    value = None if unreadable is not None else record.value
    headers = [
        *((name, raw) for name, raw in record.headers if name not in DEAD_LETTER_HEADERS),
        ("reason", bad.reason.encode()),
        ("detail", bad.detail.encode(errors="backslashreplace")[:500]),
        ("origin_topic", settings.events_topic.encode()),
        ("origin_partition", str(partition).encode()),
        ("origin_offset", str(record.offset).encode()),
        ("sha256", hashlib.sha256(value or b"").hexdigest().encode()),
    ]
    if unreadable is not None:
        headers.append(("origin_end", str(unreadable.end).encode()))
        log.error("records cannot be read", extra={"partition": partition, "offset": record.offset, "why": bad.detail})
    letter = Message(settings.dlq_topic, record.key, value, headers)
    return letter if _size(letter) <= MAX_LETTER_BYTES else truncated(letter, HEADS[0])


def truncated(letter: Message, head: int) -> Message:
    """A dead letter with at most `head` bytes of its key, its value and the record's own headers each."""
    own, ours, left = [], [], head
    for name, raw in letter.headers:
        if name in DEAD_LETTER_HEADERS:
            ours.append((name, raw))
        elif left > 0 and (left := left - _header_size(name, raw)) >= 0:
            own.append((name, raw))
    if "truncated" not in dict(ours):
        ours += [("truncated", b"true"), ("origin_size", str(len(letter.value or b"")).encode())]
    key, value = (raw[:head] if raw and head else None for raw in (letter.key, letter.value))
    return Message(letter.topic, key, value, [*own, *ours])


async def publish_dead_letters(publisher: Publisher, letters: Sequence[Message]) -> None:
    """Publish dead letters, smaller and smaller where the broker refuses them. Raises `DeliveryError`."""
    for head in HEADS:
        try:
            await publisher.publish(letters)
        except TooLargeError as error:
            letters = [truncated(letter, head) for letter in error.messages]
        else:
            return
    await publish_or_tell(publisher, letters)


async def publish_or_tell(publisher: Publisher, messages: Sequence[Message]) -> None:
    """Publish, and log and count what the broker refuses as too large. Raises `DeliveryError`."""
    try:
        await publisher.publish(messages)
    except TooLargeError as error:
        for topic, count in Counter(message.topic for message in error.messages).items():
            metrics.REFUSED.labels(topic).inc(count)
            log.error(  # noqa: TRY400 - the broker said why
                "the broker refuses records as too large: raise max.message.bytes of the topic",
                extra={"topic": topic, "records": count, "why": str(error)},
            )


def _size(letter: Message) -> int:
    headers = sum(_header_size(name, raw) for name, raw in letter.headers)
    return len(letter.key or b"") + len(letter.value or b"") + headers


def _header_size(name: str, raw: bytes | None) -> int:
    return len(name.encode()) + len(raw or b"") + HEADER_BYTES
