"""Living lists: how soon a sold-out item has left every list, what own events pay for it, and memory a user."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from threading import Thread

import msgspec
import numpy as np
from confluent_kafka import Consumer, Producer
from freshet.settings import Settings

from deploy.local import Stack
from tests.bench import harness, stream, whole_path
from tests.bench.worker import BenchWorker, Names, reader

SHARES = (0.002, 0.02, 1.0)
"""Items that are sold out: those that stand in lists of about so many users, or in most."""
PATIENCE_SECONDS = 300.0
ASIDE_EVENTS = 100.0
"""Own events a second while items are sold out."""


class _Item(msgspec.Struct):
    item_id: str


class _Shown(msgspec.Struct):
    user_id: str
    items: list[_Item]


decode_shown = msgspec.json.Decoder(_Shown).decode


class Shelf:
    """Everybody's newest list, followed on the topic."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self.items: dict[str, list[str]] = {}

    def follow(self, seconds: float) -> list[tuple[str, int]]:
        """Take up what comes within a time: users with the record times (ms) of their new lists."""
        came = []
        for message in self._consumer.consume(10_000, seconds):
            shown = decode_shown(message.value() or b"")
            self.items[shown.user_id] = [item.item_id for item in shown.items]
            came.append((shown.user_id, message.timestamp()[1]))
        return came

    def holders(self, item: str) -> set[str]:
        """The users in whose newest list an item stands."""
        return {user for user, items in self.items.items() if item in items}


def measure(stack: Stack, prefix: str, *, users: int, rate: float, seconds: float) -> dict[str, harness.Figures]:
    """Own events without and with living lists, then items sold out among `users` users."""
    figures = {}
    for name, budget in (("living off", 0.0), ("living on", Settings().living_budget)):
        own = {"FRESHET_LIVING_BUDGET": str(budget)}
        topics = f"{prefix}-{name.replace(' ', '-')}"
        figures[f"{name}, {rate:g} events/s"] = whole_path.latency(stack, topics, rate=rate, seconds=seconds, **own)
    off, on = figures.values()
    for quantile in ("p50", "p99"):
        on[f"{quantile}_x_off"] = round(on[f"{quantile}_ms"] / off[f"{quantile}_ms"], 2)
    return figures | sold_out(stack, f"{prefix}-sold-out", users=users)


def sold_out(stack: Stack, prefix: str, *, users: int) -> dict[str, harness.Figures]:
    """Seconds from an item's record to the newer list of each user whose list held the item, beside own events."""
    names = Names(prefix)
    stream.produce(
        kafka=stack.bootstrap,
        topic=names.topic("events"),
        users=users,
        events=users,
        partitions=whole_path.PARTITIONS,
        distribution="cycle",
        item_ids=str(stack.models / "user_encoder" / "1" / "item_ids.json"),
    )
    names.create(stack.bootstrap, whole_path.PARTITIONS)
    own = {"FRESHET_LIVING_BUDGET": str(Settings().living_budget), "FRESHET_ONLINE_STORE": f"redis://{stack.redis}"}
    figures: dict[str, harness.Figures] = {}
    with (
        tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder,
        BenchWorker(names, stack, Path(folder), **own) as worker,
    ):
        worker.start()
        worker.wait_ready()
        shelf = Shelf(reader(stack.bootstrap, names.topic("recommendations")))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(shelf.items) < users:
            shelf.follow(0.5)
            if time.monotonic() > deadline:
                raise harness.ComparatorError(f"{len(shelf.items)} of {users} users have a list")
        aside = Thread(
            target=whole_path.paced,
            args=(stack, names, users, int(ASIDE_EVENTS * 60), ASIDE_EVENTS, {}),
            daemon=True,
        )
        aside.start()
        time.sleep(12.0)  # a burst's worth of time has been put aside
        for share in SHARES:
            shelf.follow(1.0)
            stands = Counter(item for items in shelf.items.values() for item in items)
            item = min(stands, key=lambda name: abs(stands[name] - share * users))
            figures[f"sold out, in {stands[item]:,} of {users:,} lists"] = _sell_out(stack, names, shelf, item)
        figures["record"] = {
            "bytes_per_user": round(worker.metric("freshet_living_record_bytes") / users, 1),
            "rss_mb": round(worker.rss_mb(), 1),
        }
        aside.join()
    return figures


def _sell_out(stack: Stack, names: Names, shelf: Shelf, item: str) -> harness.Figures:
    producer = Producer({"bootstrap.servers": stack.bootstrap})
    value = json.dumps({"item_id": item, "available": False}).encode()
    begin_ms = time.time() * 1000
    producer.produce(names.topic("items"), value, item.encode())
    producer.flush(30)
    held, waits = shelf.holders(item), {}
    deadline = time.monotonic() + PATIENCE_SECONDS
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 2.0 and time.monotonic() < deadline:
        for user, at_ms in shelf.follow(0.2):
            if item in shelf.items[user]:
                held.add(user)
                waits.pop(user, None)
            elif user in held and user not in waits:
                waits[user] = max(0.0, at_ms - begin_ms) / 1000
        if shelf.holders(item):
            quiet_since = time.monotonic()
    p50, p99 = np.percentile(list(waits.values()), [50, 99])
    return {
        "lists": len(waits),
        "left": len(shelf.holders(item)),
        "p50_s": round(float(p50), 2),
        "p99_s": round(float(p99), 2),
        "lists_per_s": round(len(waits) / max(waits.values()), 1),
    }
