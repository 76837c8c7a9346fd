"""The topic to which a replay publishes its lists."""

from __future__ import annotations

from freshet.core.events import Event
from freshet.core.recommendation import (
    Timings,
    decode_recommendation,
    recommendation_id,
)
from freshet.core.state import empty_state, fold
from freshet.ports import Message
from freshet.replay.actions import Moment
from freshet.replay.clock import Clock
from freshet.replay.list_topic import ListTopic

from tests.memory_ports import MemoryPublisher
from tests.simulation.memory_replays import START
from tests.unit.replay.made_list import AS_OF, MADE


async def test_a_topic_gets_lists_as_a_worker_publishes_them() -> None:
    """Lists have the worker's key, id and position, with the event's times, and an erased user gets a tombstone."""
    publisher = MemoryPublisher()
    topic = ListTopic("mine", publisher)
    event = Event("e", "ann", "view", START, "i")
    state = empty_state(0)
    fold(state, event, 0, 5)
    moment = Moment("ann", state, event, Clock(1.0).counts, (), judged=False)
    topic.add(3, [(moment, MADE), (moment._replace(user_id="bob"), None)])
    assert publisher.messages == []
    await topic.publish()
    await topic.publish()
    first, second = publisher.messages
    assert (first.topic, first.key, second) == ("mine", b"ann", Message("mine", b"bob", None))
    made = decode_recommendation(first.value or b"")
    assert made.recommendation_id == recommendation_id("ann", AS_OF, 3, degraded=False)
    assert (made.items, made.as_of, made.model_version, made.personalised) == (MADE.items, AS_OF, 3, True)
    assert made.timings == Timings(START, START, START, START, START)
