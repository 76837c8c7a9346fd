"""A process that stood still for too long ends before it publishes anything."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from freshet.adapters import kafka
from freshet.ports import Message
from freshet.process import watchdog
from freshet.settings import Settings


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock set by hand, no thread, and an end that is an exception."""

    def end(error: BaseException) -> None:
        raise Ended(str(error))

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(threading.Thread, "start", lambda _: None)
    monkeypatch.setattr(watchdog, "fail_fast", end)
    return now


def test_only_a_gap_beyond_the_limit_ends(clock: list[float]) -> None:
    """The watchdog ends the process only where two looks are further apart than the limit."""
    pulse = watchdog.Watchdog(9.0)
    for _ in range(5):
        clock[0] += 8.0
        pulse.check()
    clock[0] += 10.0
    with pytest.raises(Ended, match="stood still for 10 s"):
        pulse.check()


async def test_a_publisher_looks_before_it_hands_over(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that was frozen sends nothing afterwards."""
    handed_over: list[object] = []
    producer = SimpleNamespace(produce=lambda *record, **_: handed_over.append(record))
    monkeypatch.setattr(kafka, "Producer", lambda _: producer)
    publisher = kafka.KafkaPublisher(Settings(), watchdog.Watchdog(9.0).check)
    clock[0] += 10.0
    with pytest.raises(Ended):
        await publisher.publish([Message("lists", b"ann", b"old")])
    assert not handed_over
