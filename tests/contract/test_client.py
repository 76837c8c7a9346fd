"""`freshet.Events` and `freshet.Lists` against a real broker."""

import threading
import time
from collections.abc import Callable

import freshet
import msgspec
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewTopic
from freshet.client import events as client_events
from freshet.client import reader
from kafka.partitioner.default import murmur2

from tests.contract.topics import make_topic

pytestmark = pytest.mark.integration

PARTITIONS = 3
EVENT = freshet.Event("e1", "ada", "purchase", 1_700_000_000_000, item_id="50")


@pytest.fixture
def settings(broker: str, unique: Callable[[str], str]) -> freshet.Settings:
    """Settings whose topics are new."""
    found = freshet.Settings(kafka=broker, events_topic=unique("events"), recommendations_topic=unique("lists"))
    for topic in (found.events_topic, found.recommendations_topic):
        make_topic(broker, NewTopic(topic, PARTITIONS))
    return found


def made(user: str, number: int = 0) -> freshet.Recommendation:
    """List `number` of a user."""
    items = [freshet.Item("i1", 0.5, "model")]
    as_of = freshet.AsOf(0, number, 1_700_000_000_000)
    side_inputs, timings = freshet.SideInputs(0, 0, 0), freshet.Timings(*[1_700_000_000_000] * 5)
    return freshet.Recommendation(f"r{number}", user, items, 4, as_of, side_inputs, timings, False, True)


def publish(settings: freshet.Settings, *records: tuple[str, bytes | None]) -> None:
    """Put records on the recommendations topic, placed as the worker places them."""
    producer = Producer({"bootstrap.servers": settings.kafka, "partitioner": "murmur2_random"})
    for user, value in records:
        producer.produce(settings.recommendations_topic, value, user.encode())
    assert producer.flush(30) == 0


def publish_lists(settings: freshet.Settings, *lists: freshet.Recommendation) -> None:
    publish(settings, *((each.user_id, freshet.encode_recommendation(each)) for each in lists))


def read(settings: freshet.Settings, topic: str, count: int) -> list[tuple[int, bytes, bytes]]:
    """Partition, key and value of what a topic holds."""
    consumer = Consumer({"bootstrap.servers": settings.kafka, "group.id": "test"})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    messages = consumer.consume(count, timeout=30)
    consumer.close()
    return [(message.partition(), message.key(), message.value()) for message in messages]


def test_events_arrive_keyed_and_placed_as_javas_producers_place_them(settings: freshet.Settings) -> None:
    """Every event is on the broker at the end of the block, in the partition of Java's producers."""
    sent = [msgspec.structs.replace(EVENT, event_id=f"e{n}", user_id=f"u{n % 9}") for n in range(200)]
    with freshet.Events(settings) as events:
        for event in sent:
            events.send(event)
    found = read(settings, settings.events_topic, len(sent))
    assert sorted(value for *_, value in found) == sorted(freshet.encode_event(event) for event in sent)
    assert all(freshet.decode_event(value, key) in sent for _, key, value in found)
    assert all(partition == (murmur2(key) & 0x7FFFFFFF) % PARTITIONS for partition, key, _ in found)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (msgspec.structs.replace(EVENT, type="like"), "event 'e1': unknown_type: 'like' is none of"),
        (msgspec.structs.replace(EVENT, item_id=None), "missing_item"),
        (msgspec.structs.replace(EVENT, ts=1_700_000_000), "invalid: .*ts"),
        (msgspec.structs.replace(EVENT, ts=4_000_000_000_000), "ahead_of_time"),
        (msgspec.structs.replace(EVENT, user_id=5), "invalid: .*user_id"),
        (msgspec.structs.replace(EVENT, user_id="\ud800"), "cannot be written as JSON"),
        (msgspec.structs.replace(EVENT, context={"x": object()}), "cannot be written as JSON"),
        (msgspec.structs.replace(EVENT, context={"x": "y" * 70_000}), "too_large"),
        (msgspec.structs.replace(EVENT, amount=float("nan")), "not a finite number"),
        ({"event_id": "e1"}, "dict is no event: make a freshet.Event of it"),
    ],
)
def test_an_invalid_event_is_refused_and_those_before_it_arrive(
    settings: freshet.Settings, event: freshet.Event, message: str
) -> None:
    """An invalid event is refused with its dead letter's reason, and earlier events arrive."""
    with freshet.Events(settings) as events:
        events.send(EVENT)
        with pytest.raises(freshet.InvalidEventError, match=message):
            events.send(event)
    assert [value for *_, value in read(settings, settings.events_topic, 1)] == [freshet.encode_event(EVENT)]


def test_an_error_in_the_block_is_the_one_that_is_seen(settings: freshet.Settings) -> None:
    """An error in the block is raised unchanged, and events sent before it arrive."""
    with pytest.raises(ZeroDivisionError), freshet.Events(settings) as events:  # noqa: PT012 - the block is the test
        events.send(EVENT)
        raise ZeroDivisionError
    assert len(read(settings, settings.events_topic, 1)) == 1


def test_the_behaviours_of_the_settings_are_taken(settings: freshet.Settings) -> None:
    """The settings' behaviours decide which types are valid."""
    with freshet.Events(msgspec.structs.replace(settings, behaviours={"like": 1.0})) as events:
        events.send(msgspec.structs.replace(EVENT, type="like"))
    assert len(read(settings, settings.events_topic, 1)) == 1


def test_an_event_that_the_broker_refuses_is_said_once(broker: str, unique: Callable[[str], str]) -> None:
    """The next flush raises a failed delivery, and the flush after it does not."""
    settings = freshet.Settings(kafka=broker, events_topic=unique("narrow"))
    make_topic(broker, NewTopic(settings.events_topic, 1, config={"max.message.bytes": "300"}))
    with freshet.Events(settings) as events:
        events.send(msgspec.structs.replace(EVENT, context={"x": "y" * 5000}))
        with pytest.raises(freshet.DeliveryError, match=f"1 events did not arrive at {settings.events_topic}: "):
            events.flush()
        events.send(EVENT)
    assert len(read(settings, settings.events_topic, 1)) == 1


def test_a_full_queue_makes_the_sender_wait(settings: freshet.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue delays the sender and loses no event."""
    original = client_events.connect
    monkeypatch.setattr(
        client_events,
        "connect",
        lambda *given, **options: original(*given, **options | {"queue.buffering.max.messages": 5}),
    )
    with freshet.Events(settings) as events:
        for number in range(100):
            events.send(msgspec.structs.replace(EVENT, event_id=f"e{number}"))
    assert len(read(settings, settings.events_topic, 100)) == 100


@pytest.mark.parametrize("client", [freshet.Events, freshet.Lists])
def test_what_is_wrong_with_the_connection_is_said_with_its_remedy(
    client: Callable[[freshet.Settings], object], broker: str, unique: Callable[[str], str]
) -> None:
    """A missing broker, topic or file is an error with its remedy."""
    with pytest.raises(freshet.ConnectionFailedError, match=r"127\.0\.0\.1:1 does not answer .*FRESHET_KAFKA"):
        client(freshet.Settings(kafka="127.0.0.1:1"))
    with pytest.raises(freshet.NoTopicError, match=r"does not exist at .*: create it"):
        client(freshet.Settings(kafka=broker, events_topic=unique("no"), recommendations_topic=unique("no")))
    with pytest.raises(freshet.ConnectionFailedError, match=r"see to .*kafka_ca \(/no-such-ca\.pem\)"):
        client(freshet.Settings(kafka=broker, kafka_security="SSL", kafka_ca="/no-such-ca.pem"))


def test_lists_come_as_they_are_published(settings: freshet.Settings) -> None:
    """A loop gives lists published after its start, earlier ones where asked, and continues the last loop."""
    publish_lists(settings, made("ada", 0))
    with freshet.Lists(settings, timeout=1) as lists, freshet.Lists(settings, from_beginning=True, timeout=1) as whole:
        publish_lists(settings, made("ada", 1), made("bob", 2))
        assert sorted(lists) == [("ada", made("ada", 1)), ("bob", made("bob", 2))]
        assert len(list(whole)) == 3
        assert list(lists) == []
        publish_lists(settings, made("cyd", 3))
        assert list(lists) == [("cyd", made("cyd", 3))]


def test_the_lists_of_one_user(settings: freshet.Settings) -> None:
    """A loop over a user's lists leaves others' lists out and still ends."""
    crowd = [made(f"u{number}", number) for number in range(20)]
    publish_lists(settings, *crowd)
    with freshet.Lists(settings, user_id="u7", from_beginning=True, timeout=1) as lists:
        assert list(lists) == [("u7", crowd[7])]
        stop = threading.Event()

        def keep_publishing() -> None:
            while not stop.wait(0.1):
                publish_lists(settings, *crowd[:7])

        others = threading.Thread(target=keep_publishing)
        others.start()
        try:
            assert list(lists) == []
        finally:
            stop.set()
            others.join()


def test_an_erased_user_has_none(settings: freshet.Settings) -> None:
    """A tombstone is given to the loop, and hides earlier lists from the look-up."""
    publish_lists(settings, made("ada", 0))
    publish(settings, ("ada", None))
    with freshet.Lists(settings, from_beginning=True, timeout=1) as lists:
        assert list(lists) == [("ada", made("ada", 0)), ("ada", None)]
        assert lists.newest("ada") is None


def test_the_newest_list(settings: freshet.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up finds the newest list behind others' lists without moving the loop, and gives None without a list."""
    monkeypatch.setattr(reader, "FIRST_WINDOW", 3)
    with freshet.Lists(settings, timeout=1) as lists:
        assert lists.newest("ada") is None
        publish_lists(settings, made("ada", 0), made("ada", 1), *(made(f"u{number}") for number in range(50)))
        assert lists.newest("ada") == made("ada", 1)
        assert lists.newest("nobody") is None
        publish_lists(settings, made("ada", 2))
        assert lists.newest("ada") == made("ada", 2)
        assert len(list(lists)) == 53


def test_a_record_that_is_no_list_is_named_and_passed(settings: freshet.Settings) -> None:
    """A record that is no list is an error with its offset, and the next loop continues behind it."""
    publish(settings, ("ada", b"nonsense"), ("ada", freshet.encode_recommendation(made("ada"))))
    with freshet.Lists(settings, from_beginning=True, timeout=1) as lists:
        with pytest.raises(freshet.UnreadableListError, match=r"lists-.* \d@0 is no list"):
            list(lists)
        assert list(lists) == [("ada", made("ada"))]


def test_closing_ends_a_loop_in_another_thread(settings: freshet.Settings) -> None:
    """Closing ends a loop without timeout in another thread."""
    lists = freshet.Lists(settings)
    seen: list[object] = []
    loop = threading.Thread(target=lambda: seen.extend(lists))
    loop.start()
    publish_lists(settings, made("ada"))
    deadline = time.monotonic() + 30
    while not seen and time.monotonic() < deadline:
        time.sleep(0.05)
    lists.close()
    loop.join(30)
    assert not loop.is_alive()
    assert seen == [("ada", made("ada"))]
    lists.close()
