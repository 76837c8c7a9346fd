"""What the benchmark's figures rest on: its streams, its meter, its way of running a comparator."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import pytest
from freshet.core.events import DEFAULT_BEHAVIOURS, encode_event

from tests.bench import harness, stream

ITEMS = stream.movielens_like()


@pytest.mark.parametrize("distribution", stream.DISTRIBUTIONS)
def test_a_stream_is_seeded_valid_and_numbered_per_user(distribution: str) -> None:
    """The same seed gives the same valid events, with ids counted by user and rising times."""
    arguments = {"users": 37, "events": 10_000, "items": ITEMS, "distribution": distribution}
    events = list(stream.generate(**arguments, seed=3))
    assert events == list(stream.generate(**arguments, seed=3))
    assert events != list(stream.generate(**arguments, seed=4))
    numbers: dict[str, list[str]] = defaultdict(list)
    for event in events:
        assert stream.decode(encode_event(event), event.user_id.encode()) == event
        numbers[event.user_id].append(event.event_id)
    for user, ids in numbers.items():
        assert ids == [f"{user}-{number}" for number in range(len(ids))]
    assert all(a.ts < b.ts for a, b in itertools.pairwise(events))
    assert {event.type for event in events} == set(DEFAULT_BEHAVIOURS)
    assert {event.item_id for event in events} <= set(ITEMS)


def test_the_distributions_differ_as_their_names_say() -> None:
    """`cycle` gives every user as many events, and `zipf` gives its first user far more than `uniform` does."""
    most = {}
    for distribution in stream.DISTRIBUTIONS:
        events = stream.generate(users=100, events=10_000, items=ITEMS, distribution=distribution, seed=0)
        most[distribution] = Counter(event.user_id for event in events).most_common(1)[0][1]
    assert most["cycle"] == 100
    assert most["uniform"] < 200
    assert most["zipf"] > 1000


def test_the_meter_leaves_out_the_warm_up_and_what_comes_after_the_stop() -> None:
    """The meter counts the units between the last warm-up unit and `stop`."""
    meter = harness.Meter(warmup=3)
    for _ in range(10):
        meter.tick()
    meter.stop()
    meter.tick()
    figures = meter.figures("events")
    assert figures["events"] == 6
    assert figures["events_per_s"] > 0


def absent(*, kafka: str) -> harness.Figures:
    """A comparator whose module cannot be run."""
    raise NotImplementedError(kafka)


def test_a_comparator_that_fails_raises_and_a_wrong_keyword_is_refused() -> None:
    """A failed comparator is an error with the process's last output."""
    absent.__module__ = "tests.bench.absent"
    run = harness.launcher(absent)
    with pytest.raises(TypeError, match="kafka"):
        run(brokers="127.0.0.1:1")
    with pytest.raises(harness.ComparatorError, match="No module named"):
        run(kafka="127.0.0.1:1")
