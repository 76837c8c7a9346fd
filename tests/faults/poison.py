"""Bad input, alone and in floods, and events that are produced twice."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from confluent_kafka import Producer
from freshet.core.events import encode_event

from tests.faults.arena import Arena
from tests.faults.catalogue import fault
from tests.integration.deployment import until
from tests.integration.test_worker import stream
from tests.record_batches import CODECS, batch, produce, records

CORPUS: Sequence[bytes | None] = (
    None,
    b"",
    b"{",
    b"\xff\xfe\0",
    b"[" * 20_000,
    b"[]",
    b"NaN",
    b'"\\ud800"',
    b'{"event_id":"x","user_id":"poison","type":"view","ts":890000000000}',
    b'{"event_id":"x","user_id":"poison","type":"hover","ts":890000000000,"item_id":"1"}',
    b'{"event_id":"x","user_id":"poison","type":"view","ts":890000000,"item_id":"1"}',
    b'{"event_id":"x","user_id":"other","type":"view","ts":890000000000,"item_id":"1"}',
    b'{"event_id":"x","user_id":"poison","type":"view","ts":1' + b"0" * 400 + b',"item_id":"1"}',
    b'{"event_id":"' + b"x" * 70_000 + b'"}',
)
FLOOD = 10_000


@fault("F0", "a smoke of every feature of the broker that is used")
def smoke(arena: Arena) -> Sequence[str]:
    """Codecs, transactions, headers, compaction's tombstones and two partitions, in one stream."""
    trial = arena.trial()
    trial.worker()
    events = stream(arena.seed, 250)
    for number, codec in enumerate(CODECS.values()):
        part = [event for event in events[number * 40 : number * 40 + 40] if event.user_id != "user-0"]
        pairs = [(event.user_id.encode(), encode_event(event)) for event in part]
        data = batch(records(pairs, [(b"n", b"x")]), len(pairs), codec, timestamp=int(time.time() * 1000))
        until(lambda data=data: produce(arena.stack.bootstrap, trial.topics["events"], number % 2, data) == 0, "taken")  # type: ignore[misc]  # noqa: B023
    trial.producer.send(trial.topics["items"], None, b"50").get(10)
    for ends in ("commit_transaction", "abort_transaction"):
        producer = Producer({"bootstrap.servers": arena.stack.bootstrap, "transactional.id": trial.group})
        producer.init_transactions()
        producer.begin_transaction()
        for number in range(5):
            aborted = json.dumps({"event_id": f"e-{ends}{number}", "user_id": ends, "type": "view", "ts": 890000000000})
            value = f'{aborted[:-1]}, "item_id": "{number + 1}"}}'.encode()
            producer.produce(trial.topics["events"], value, ends.encode(), partition=0)
        producer.flush()
        getattr(producer, ends)()
    until(lambda: "commit_transaction" in trial.lists(), "the committed user has a list", *trial.workers)
    states = trial.states()
    sent = {event.user_id for event in events[:200]} - {"user-0"}
    said = [f"{user} has no state" for user in sent - states.keys()]
    if "abort_transaction" in states:
        said.append("events of an aborted transaction were folded")
    if trial.records("events.dlq"):
        said.append("a good event became a dead letter")
    return said


@fault("F33", "the poison corpus, and 10,000 in a row: dead letters, no restart, half of the clean throughput at least")
def poison_flood(arena: Arena) -> Sequence[str]:
    """As many good events before and after are folded and timed."""
    trial = arena.trial()
    worker = trial.worker()
    flood = arena.times(FLOOD, 500)

    def drained() -> float:
        began = time.monotonic()
        until(lambda: worker.metric("freshet_lag_events") == 0, "all is read", worker)
        return time.monotonic() - began

    trial.send(stream(arena.seed, flood, users=2000))
    clean = drained()
    for number in range(flood):
        trial.raw(CORPUS[number % len(CORPUS)], b"poison")
    trial.producer.flush()
    poisoned = drained()
    trial.send(stream(arena.seed + 1, 200))
    said = list(trial.verdict(repeats=0))
    if not arena.quick and poisoned > 2 * clean + 1:
        said.append(f"{flood} poison records take {poisoned:.1f} s, as many events {clean:.1f} s")
    return said


@fault("F41", "every event produced twice, the second time within 32 of its user's")
def produced_twice(arena: Arena) -> Sequence[str]:
    """Beyond the 32 event ids that are kept of a user, duplicates are counted: README says so."""
    trial = arena.trial()
    trial.worker()
    waiting = []
    for event in stream(arena.seed, 400, users=100):
        waiting.append(event)
        if len(waiting) == 50:
            trial.send(waiting + waiting)
            waiting = []
    return trial.verdict(repeats=0)
