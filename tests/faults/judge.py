"""The judge: a process of its own that reads the topics with kafka-python, folds the events itself, and compares.

    python -m tests.faults.judge '{"bootstrap": ..., "group": ..., "topics": {...}}'

It takes samples of what is committed (invariant I6) until a line comes on its standard input. The line is JSON with
`patience` (s), and `repeats`, the most lists that may have been published twice (I4; null for any number). Then it
waits until every user's newest list is as of their last event, and prints its complaints as a JSON list. It imports
nothing of Freshet: states are read from their bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from tests.integration.independent_fold import Expected, expected_states, read_topic

SAMPLE_SECONDS = 0.5
SHOWN = 3
"""Complaints of a kind that are printed; the rest is counted."""
ORIGIN = ("origin_topic", "origin_partition", "origin_offset", "sha256", "reason")


class Sample(NamedTuple):
    """What was committed at a moment, and where the outputs ended just after it, each by partition."""

    committed: dict[int, int]
    ends: dict[str, dict[int, int]]


class State(NamedTuple):
    """The fields of a state that the log decides, out of its MessagePack array."""

    partition: int
    offset: int
    items: list[str]
    counts: dict[str, int]
    spend: dict[str, float]
    folded: int


class Judge:
    """Samples, then judges."""

    def __init__(self, bootstrap: str, group: str, topics: dict[str, str]) -> None:
        self._bootstrap = bootstrap
        self._group = group
        self._events, self._lists, self._dead = (topics[name] for name in ("events", "recommendations", "events.dlq"))
        self._changelog = f"{group}-user_state-changelog"
        self._complaints: dict[str, list[str]] = defaultdict(list)

    def sample(self, ending: threading.Event) -> list[Sample]:
        """Samples until the event is set; a broker that is away gives none."""
        samples: list[Sample] = []
        while not ending.wait(SAMPLE_SECONDS):
            try:
                samples.append(self._sample())
            except (KafkaError, OSError, AssertionError, KeyError):
                continue
        return samples

    def _sample(self) -> Sample:
        admin = KafkaAdminClient(bootstrap_servers=self._bootstrap, request_timeout_ms=3000)
        try:
            offsets = admin.list_group_offsets({self._group: None})[self._group]
        finally:
            admin.close()
        committed = {at.partition: found.offset for at, found in offsets.items() if at.topic == self._events}
        consumer = KafkaConsumer(bootstrap_servers=self._bootstrap, request_timeout_ms=3000)
        try:
            ends = {}
            for topic in (self._changelog, self._lists, self._dead):
                partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
                ends[topic] = {at.partition: end for at, end in consumer.end_offsets(partitions).items()}
        finally:
            consumer.close()
        return Sample(committed, ends)

    def judge(self, samples: list[Sample], patience: float, repeats: int | None) -> list[str]:
        """What is wrong, a sentence each."""
        deadline = time.monotonic() + patience
        while (late := self._late()) and time.monotonic() < deadline:
            time.sleep(0.5)
        self._complaints["I3"] += late
        users, bad = expected_states(self._bootstrap, self._events)
        events = read_topic(self._bootstrap, self._events)
        states, lists, letters = (
            read_topic(self._bootstrap, topic) for topic in (self._changelog, self._lists, self._dead)
        )
        self._judge_states(users, states)
        self._judge_lists(lists, repeats)
        self._judge_letters(letters, events, bad)
        for sample in samples:
            self._judge_sample(sample, events, states, lists)
        said = []
        for invariant, complaints in self._complaints.items():
            said += [f"{invariant}: {complaint}" for complaint in complaints[:SHOWN]]
            if len(complaints) > SHOWN:
                said.append(f"{invariant}: and {len(complaints) - SHOWN} more")
        return said

    def _late(self) -> list[str]:
        """Users whose newest list is not as of their last event; an erased user has a tombstone."""
        users, _ = expected_states(self._bootstrap, self._events)
        newest = {record.key.decode(): record.value for record in read_topic(self._bootstrap, self._lists)}
        late = []
        for user, expected in users.items():
            if user not in newest:
                late.append(f"{user} has no list")
            elif newest[user] is not None:
                as_of = json.loads(newest[user])["as_of"]
                if (as_of["partition"], as_of["offset"]) != expected.last:
                    late.append(f"{user}'s list is as of {as_of['partition']}@{as_of['offset']}, not {expected.last}")
        return late

    def _judge_states(self, users: dict[str, Expected], records: list[Any]) -> None:
        """I1, I2: each state is the fold of the log."""
        newest = {record.key.decode(): record.value for record in records if record.value is not None}
        for user in newest.keys() - users.keys():
            self._complaints["I2"].append(f"{user} has a state and no event")
        for user, expected in users.items():
            if user not in newest:
                self._complaints["I1"].append(f"{user} has no state")
                continue
            state = _state(newest[user])
            spend = {kind: round(sum_, 4) for kind, sum_ in state.spend.items() if sum_}
            found = (state.partition, state.offset), state.folded, state.counts, state.items, spend
            wanted_spend = {kind: round(sum_, 4) for kind, sum_ in expected.spend.items() if sum_}
            wanted = expected.last, expected.folded, dict(expected.counts), expected.items[-50:], wanted_spend
            if found != wanted:
                self._complaints["I2"].append(f"{user}: {_difference(found, wanted)}")

    def _judge_lists(self, records: list[Any], repeats: int | None) -> None:
        """I4, I5: lists come twice only within bounds, and neither `as_of` nor the version goes back."""
        made = [json.loads(record.value) for record in records if record.value is not None]
        again = sum(times - 1 for times in Counter(each["recommendation_id"] for each in made).values())
        if repeats is not None and again > repeats:
            self._complaints["I4"].append(f"{again} lists were published again, {repeats} may be")
        highest: dict[tuple[str, str], int] = {}
        for each in made:
            for mark, number in (("as_of", each["as_of"]["offset"]), ("version", each["model_version"])):
                key = each["user_id"], mark
                if number < highest.get(key, -1):
                    self._complaints["I5"].append(f"{key[0]}'s {mark} went back from {highest[key]} to {number}")
                highest[key] = max(number, highest.get(key, -1))

    def _judge_letters(self, letters: list[Any], events: list[Any], bad: int) -> None:
        """I1, I7: a dead letter for each bad record, with reason, origin and digest."""
        values = {(record.partition, record.offset): record.value for record in events}
        origins = set()
        for letter in letters:
            headers = {name: (raw or b"").decode(errors="replace") for name, raw in letter.headers}
            if missing := [name for name in ORIGIN if not headers.get(name)]:
                self._complaints["I7"].append(f"a dead letter has no {', '.join(missing)}")
                continue
            origin = int(headers["origin_partition"]), int(headers["origin_offset"])
            origins.add(origin)
            if origin in values and hashlib.sha256(values[origin] or b"").hexdigest() != headers["sha256"]:
                self._complaints["I7"].append(f"the digest of {origin} is wrong")
        if len(origins) != bad:
            self._complaints["I1"].append(f"{bad} records are no events, {len(origins)} have a dead letter")

    def _judge_sample(self, sample: Sample, events: list[Any], states: list[Any], lists: list[Any]) -> None:
        """I6: what was committed was durable: in a state of the changelog, and in a list."""
        state_of = _reached(states, sample.ends[self._changelog], lambda value: _state(value).offset)
        list_of = _reached(lists, sample.ends[self._lists], lambda value: json.loads(value)["as_of"]["offset"])
        last: dict[str, int] = {}
        for record in events:
            if record.offset < sample.committed.get(record.partition, 0) and _user(record.value) is not None:
                last[record.key.decode()] = record.offset
        for effect, reached in (("state", state_of), ("list", list_of)):
            for user, offset in last.items():
                if reached.get(user, -1) < offset:
                    self._complaints["I6"].append(f"offset {offset} of {user} was committed before its {effect}")


def _reached(records: list[Any], ends: dict[int, int], offset_of: Any) -> dict[str, int]:
    """The newest source offset that each key's records reflect, up to the ends; a tombstone reflects everything."""
    reached: dict[str, int] = {}
    for record in records:
        if record.offset < ends.get(record.partition, 0):
            offset = sys.maxsize if record.value is None else offset_of(record.value)
            reached[record.key.decode()] = max(offset, reached.get(record.key.decode(), -1))
    return reached


def _user(value: bytes | None) -> str | None:
    """The user of a record that looks like one of the generator's own events."""
    try:
        return str(json.loads(value or b"")["user_id"]) if value and value.startswith(b'{"event_id":"e') else None
    except (ValueError, KeyError, TypeError):
        return None


def _state(raw: bytes) -> State:
    fields = msgspec.msgpack.decode(raw)
    items = [item for item in fields[3].split("\x1f") if item]
    return State(fields[0], fields[1], items, fields[7], fields[8], fields[11])


def _difference(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> str:
    names = "position", "folded", "counts", "items", "spend"
    pairs = zip(names, found, wanted, strict=True)
    return "; ".join(f"{name} {str(have)[:60]}, not {str(want)[:60]}" for name, have, want in pairs if have != want)


def main() -> None:
    """Sample until a line comes, then judge and print."""
    given = json.loads(sys.argv[1])
    judge, ending, samples = Judge(given["bootstrap"], given["group"], given["topics"]), threading.Event(), []
    sampler = threading.Thread(target=lambda: samples.extend(judge.sample(ending)))
    sampler.start()
    asked = json.loads(sys.stdin.readline())
    ending.set()
    sampler.join()
    print(json.dumps(judge.judge(samples, asked["patience"], asked["repeats"])))


if __name__ == "__main__":
    main()
