"""Side-input topics at a real broker: their shape is checked, and a hostile record delays no later record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from freshet.adapters.kafka import KafkaPublisher, client_config
from freshet.adapters.kafka_python import SideInputReader
from freshet.adapters.topics import side_input_faults
from freshet.cli import app
from freshet.cli.check import TESTS, judge
from freshet.core.catalogue import CatalogueItem, encode_item
from freshet.core.events import Event, encode_event
from freshet.core.popularity import Partial, decode_partial, encode_partial
from freshet.logs.source import read_topic
from freshet.ports import Message, Record
from freshet.serving.first_version import StartError
from freshet.serving.live_versions import LiveVersions
from freshet.serving.start import events_partitions
from freshet.settings import Settings
from typer.testing import CliRunner

from tests.contract.topics import make_topic
from tests.simulation.memory_world import ITEMS, FakeEncoder, make_bundle, write_bundle

pytestmark = pytest.mark.integration

TOPICS = ("events", "items", "recommendations", "dlq", "models", "popularity")
COMPACTED = {"cleanup.policy": "compact"}


@pytest.fixture
def settings(broker: str, unique: Callable[[str], str]) -> Settings:
    """Settings whose topics do not exist yet."""
    return Settings(kafka=broker, group=unique("group"), **{f"{name}_topic": unique(name) for name in TOPICS})


def make_topics(settings: Settings, **shapes: tuple[int, dict[str, str]]) -> None:
    """Make all topics, those named in a shape (partitions, configuration) of their own."""
    for name in TOPICS:
        compacted = COMPACTED if name in {"items", "models", "popularity"} else {}
        partitions, config = shapes.get(name, (1, compacted))
        make_topic(settings.kafka, NewTopic(getattr(settings, f"{name}_topic"), partitions, config=config))


def test_topics_as_they_should_be_are_taken(settings: Settings) -> None:
    """A worker and `freshet check` accept topics of the right shape."""
    make_topics(settings)
    assert side_input_faults(settings, AdminClient(client_config(settings))) == []
    assert events_partitions(settings) == 1
    assert judge("kafka", TESTS["kafka"], settings).ok


@pytest.mark.parametrize("name", ["items", "models", "popularity"])
def test_a_side_input_of_another_shape_is_refused(settings: Settings, name: str) -> None:
    """A side input with more partitions or with retention is refused with the remedy."""
    make_topics(settings, **{name: (3, {"cleanup.policy": "compact,delete"})})
    topic = getattr(settings, f"{name}_topic")
    with pytest.raises(StartError) as refused:
        events_partitions(settings)
    verdict = judge("kafka", TESTS["kafka"], settings)
    assert not verdict.ok
    for said in (str(refused.value), verdict.detail):
        assert f"topic {topic} has 3 partitions" in said
        assert "create it with 1 partition" in said
        assert "set cleanup.policy=compact" in said


async def test_hostile_records_keep_no_later_one_from_a_worker(settings: Settings, tmp_path: Path) -> None:
    """A withdrawal behind hostile records of the same fetch takes effect."""
    make_topics(settings)
    write_bundle(tmp_path, 1)
    model = LiveVersions(FakeEncoder(make_bundle(1)), tmp_path)
    await model.start(1)
    deep = b"[" * 1200 + b"]" * 1200
    withdrawn = CatalogueItem(ITEMS[0], "A title", available=False)
    messages = [
        Message(settings.items_topic, b"x", '{"item_id":"x","title":"é"}'.encode("latin-1")),
        Message(settings.items_topic, b"x", b'{"item_id":"x","title":%s}' % deep),
        Message(settings.items_topic, b"\xff", None),
        Message(settings.items_topic, ITEMS[0].encode(), encode_item(withdrawn)),
    ]
    publisher = KafkaPublisher(settings)
    await publisher.publish(messages)
    reader = SideInputReader(settings, settings.items_topic, model.apply_items)
    try:
        await reader.start()
        await asyncio.sleep(0)
        assert model.side_inputs.items == len(messages) - 1
        assert not model.live.space.available[model.live.space.index[ITEMS[0]]]
        assert reader.failure is None
    finally:
        await asyncio.to_thread(reader.close)
        await asyncio.to_thread(publisher.close)


async def test_who_catches_up_waits_for_no_interval(settings: Settings) -> None:
    """A reader that hands on once an hour has handed on all that the topic holds when `catch_up` returns."""
    make_topics(settings)
    applied: list[bytes | None] = []
    reader = SideInputReader(
        settings, settings.popularity_topic, lambda records: applied.extend(each.value for each in records), 3600.0
    )
    publisher = KafkaPublisher(settings)
    await publisher.publish([Message(settings.popularity_topic, b"0", b"first")])
    await reader.start()
    try:
        for value in (b"second", b"third"):
            await publisher.publish([Message(settings.popularity_topic, b"0", value)])
            await reader.catch_up()
            assert applied[-1] == value
        assert applied == [b"first", b"second", b"third"]
    finally:
        await asyncio.to_thread(reader.close)
        await asyncio.to_thread(publisher.close)


async def test_what_a_reader_cannot_hand_on_is_its_failure(settings: Settings) -> None:
    """A reader's failure ends the worker."""

    def fails(_: Sequence[Record]) -> None:
        raise msgspec.DecodeError("nobody thought of this")

    make_topics(settings)
    publisher = KafkaPublisher(settings)
    await publisher.publish([Message(settings.items_topic, b"x", b"x")])
    reader = SideInputReader(settings, settings.items_topic, fails)
    with pytest.raises(msgspec.DecodeError):
        await reader.start()
    await asyncio.to_thread(reader.close)
    await asyncio.to_thread(publisher.close)


async def test_popularity_is_made_right_again(settings: Settings) -> None:
    """`popularity` counts the events anew and replaces counts dated ahead."""
    make_topics(settings)
    now = int(time.time() * 1000)
    poisoned = Partial(partition=0, offset=9, ts=now + 10**12, half_life=1e9, counts={"b": 1.0})
    events = [Event(f"e{number}", f"u{number}", "view", now, "a") for number in range(3)]
    publisher = KafkaPublisher(settings)
    await publisher.publish(
        [Message(settings.events_topic, event.user_id.encode(), encode_event(event)) for event in events]
        + [Message(settings.popularity_topic, b"0", encode_partial(poisoned))]
    )
    await asyncio.to_thread(publisher.close)
    environment = {f"FRESHET_{name.upper()}": getattr(settings, name) for name in ("kafka", "group")}
    environment |= {f"FRESHET_{name.upper()}_TOPIC": getattr(settings, f"{name}_topic") for name in TOPICS}
    result = await asyncio.to_thread(CliRunner().invoke, app, ["popularity", "repair"], env=environment)
    assert result.exit_code == 0, result.output
    last = list(read_topic(settings, settings.popularity_topic))[-1]
    partial = decode_partial(last.value, settings.latest_ts(last.timestamp))
    assert isinstance(partial, Partial)
    assert partial.counts == pytest.approx({"a": 3.0}, abs=1e-3)
