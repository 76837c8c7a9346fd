"""An independent judge: folds the events topic with its own code and compares.

Shares nothing with the worker's fold. Reads topics from offset 0 with
kafka-python and holds what it reads in plain dicts.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from rocksdict import AccessType, Options, Rdict

KINDS = ("view", "click", "purchase")
OFFSET_KEY = b"__faust\0offset__"


@dataclass
class Expected:
    """What a user's state must say, by the log alone."""

    items: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    spend: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    ids: set[str] = field(default_factory=set)
    last: tuple[int, int] = (-1, -1)
    silent: bool = False
    withdrawn: int = 0

    @property
    def folded(self) -> int:
        """How many events count."""
        return sum(self.counts.values())


def read_topic(bootstrap: str, topic: str) -> list[Any]:
    """Every record of a topic up to its present end, per partition in offset order."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        records: list[Any] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for fetched in consumer.poll(timeout_ms=500).values():
                records.extend(fetched)
        return sorted(records, key=lambda record: (record.partition, record.offset))
    finally:
        consumer.close()


def local_files(folder: Path) -> tuple[int, dict[bytes, bytes]]:
    """A partition's RocksDB files: the changelog offset that they are good for, -1 without one, and what they hold."""
    files = Rdict(str(folder), options=Options(raw_mode=True), access_type=AccessType.read_only())
    held = {bytes(key): bytes(value) for key, value in files.items()}
    files.close()
    return int(held.pop(OFFSET_KEY, -1)), held


def expected_states(bootstrap: str, topic: str) -> tuple[dict[str, Expected], int]:
    """Fold the log: the expected state of each user, and the number of records that are no events."""
    users: dict[str, Expected] = defaultdict(Expected)
    bad = 0
    for record in read_topic(bootstrap, topic):
        event = _event(record)
        if event is None:
            bad += 1
            continue
        user = users[event["user_id"]]
        user.last = (record.partition, record.offset)
        if event["event_id"] in user.ids:
            continue
        if event["type"] not in ("user.opt_out", "user.erase") and event["ts"] <= user.withdrawn:
            continue
        if event["type"] == "user.visit":
            if not user.silent:
                user.ids.add(event["event_id"])
            continue
        if event["type"].startswith("user."):
            user.silent = event["type"] != "user.opt_in"
            if user.silent:
                user.withdrawn = max(user.withdrawn, event["ts"])
                user.items.clear()
                user.counts.clear()
                user.spend.clear()
                user.ids.clear()
            continue
        if user.silent:
            continue
        user.ids.add(event["event_id"])
        user.items.append(event["item_id"])
        user.counts[event["type"]] += 1
        user.spend[event["type"]] += event.get("amount") or 0.0
    return users, bad


def _event(record: Any) -> dict[str, Any] | None:
    try:
        event = json.loads(record.value)
        known = event["type"] in KINDS and isinstance(event["item_id"], str)
        known = known or event["type"] in ("user.visit", "user.opt_out", "user.opt_in", "user.erase")
        good = known and isinstance(event["ts"], int) and event["ts"] >= 10**11 and event["event_id"]
        return event if good and event["user_id"].encode() == record.key else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def last_values(bootstrap: str, topic: str) -> dict[str, bytes | None]:
    """The newest value of each key of a topic."""
    return {record.key.decode(): record.value for record in read_topic(bootstrap, topic)}
