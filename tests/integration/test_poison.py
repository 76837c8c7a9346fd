"""Records of every kind on the topics: the worker, the verbs and the archiver go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Producer
from freshet.archive.reader import ArchiveLog
from freshet.core.events import Event, encode_event
from freshet.logs.kafka import KafkaLog, behind
from freshet.ports import WHOLE
from freshet.settings import load_settings

from deploy.local import Stack
from tests.integration.deployment import Deployment, until
from tests.record_batches import CODECS, batch, produce, record, records

pytestmark = pytest.mark.integration

TS = 890_000_000_000


@pytest.fixture
def deployment(stack: Stack, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Deployment]:
    """A deployment with one partition of events."""
    deployment = Deployment(stack, tmp_path, unique("poison"), 1)
    yield deployment
    deployment.close()


def event(number: int, user: str) -> tuple[bytes, bytes]:
    """Key and value of a view."""
    made = Event(f"e{number}", user, "view", TS + number, str(number % 100 + 1))
    return user.encode(), encode_event(made)


def send(deployment: Deployment, data: bytes, topic: str = "events") -> None:
    """Produce a batch to partition 0 of a topic; the broker takes it once the partition has a leader."""
    taken = partial(produce, deployment.stack.bootstrap, deployment.topics[topic], 0, data)
    until(lambda: taken() == 0, "the broker takes the batch")


def listed(deployment: Deployment, user: str) -> Callable[[], bool]:
    """Whether the user has a list."""
    return lambda: user in deployment.lists()


def now() -> int:
    """The time in ms, which the broker's retention goes by."""
    return int(time.time() * 1000)


def test_batches_of_every_codec_and_header_are_folded(deployment: Deployment) -> None:
    """Records of every codec and header are folded, read by the verbs and archived."""
    odd = [(b"\xff\xfe", b"x"), (b"", None), (b"n" * 1000, b"\xff")]
    for number, codec in enumerate(CODECS.values()):
        pairs = [event(10 * number + n, f"user-{codec}") for n in range(5)]
        send(deployment, batch(records(pairs), 5, codec, timestamp=now()))
        item = b'{"item_id": "%d", "title": "item of codec %d"}' % (number + 1, codec)
        send(deployment, batch(records([(b"%d" % (number + 1), item)], odd), 1, codec, timestamp=now()), "items")
    send(deployment, batch(records([event(100, "odd")], odd), 1, timestamp=now()))
    worker = deployment.worker()
    until(listed(deployment, "odd"), "the last user has a list", worker)
    states = deployment.states()
    assert {user: state.folded for user, state in states.items()} == {
        **{f"user-{codec}": 5 for codec in CODECS.values()},
        "odd": 1,
    }
    assert len(deployment.freshet("inspect", "user-4")["lists"]) == 1
    log = KafkaLog(deployment.topics["events"], load_settings(environ=deployment.settings))
    read = [found for run in log.read(0) for found in run]
    assert [found.offset for found in read] == list(range(26))
    kept = ArchiveLog(deployment.archived({"events": 26}) / deployment.topics["events"], WHOLE)
    for kept_record, read_record in zip((found for run in kept.read(0) for found in run), read, strict=True):
        assert (kept_record.offset, kept_record.value) == (read_record.offset, read_record.value)
        assert list(kept_record.headers) == list(read_record.headers)
    assert worker.terminate() == 0


def test_oversized_records_and_bombs_become_dead_letters(deployment: Deployment) -> None:
    """Oversized values and batches become dead letters."""
    key = b"user-1"
    send(deployment, batch(record(0, key, b"x" * 1_020_000), 1, timestamp=now()))
    send(deployment, batch(record(0, key, b"y" * 3_000_000), 1, CODECS["gzip"], timestamp=now()))
    send(deployment, batch(record(0, key, bytes(300_000_000)), 1, CODECS["gzip"], timestamp=now()))
    send(deployment, batch(record(0, key, b"z", [(b"h", None)] * 100_000), 1, timestamp=now()))
    send(deployment, batch(records([event(1, "user-2")]), 1, timestamp=now()))
    worker = deployment.worker()
    until(listed(deployment, "user-2"), "the stream goes on", worker)
    letters = [dict(letter.headers) for letter in deployment.records("events.dlq")]
    assert [(letter["origin_offset"], letter["reason"], letter.get("origin_size")) for letter in letters] == [
        (b"0", b"too_large", b"1020000"),
        (b"1", b"too_large", b"3000000"),
        (b"2", b"unreadable", None),
        (b"3", b"not_json", b"1"),
    ]
    assert letters[2]["origin_end"] == b"3"
    replayed = deployment.freshet("dlq", "replay", "--dry-run")
    assert (replayed["replayed"], replayed["truncated_left_out"]) == (0, 4)
    assert worker.terminate() == 0


def test_an_aborted_transaction_is_never_folded(deployment: Deployment) -> None:
    """Events of a committed transaction are folded, and events of an aborted one are not."""
    producer = Producer({"bootstrap.servers": deployment.stack.bootstrap, "transactional.id": deployment.group})
    producer.init_transactions()
    for user, end in (("aborted", producer.abort_transaction), ("committed", producer.commit_transaction)):
        producer.begin_transaction()
        for number in range(5):
            key, value = event(number, user)
            producer.produce(deployment.topics["events"], value, key, partition=0)
        producer.flush()
        end()
    worker = deployment.worker()
    until(listed(deployment, "committed"), "the committed user has a list", worker)
    assert {user: state.folded for user, state in deployment.states().items()} == {"committed": 5}
    assert set(deployment.lists()) == {"committed"}
    until(
        lambda: behind(load_settings(environ=deployment.settings), deployment.topics["events"]) == 0,
        "markers are no backlog",
    )
    assert worker.terminate() == 0
