"""Fold-only ingest with Quix Streams: state on RocksDB with a changelog topic, its defaults.

The fold, the decoder and the stored bytes are the core's own, so only the
machinery around them differs. The time runs from the first event to the end of
the last checkpoint: state flushed, changelog acknowledged, offsets committed.
"""
# ruff: noqa: PLC0415 - `run` is imported where the peer itself need not be

from __future__ import annotations

import tempfile
import uuid
from importlib.metadata import version

from freshet.core.state import decode_state, empty_state, encode_state, fold

from tests.bench import harness
from tests.bench.stream import decode, require_events


def measure(*, kafka: str, topic: str, events: int) -> harness.Figures:
    """Fold `events` events, which `topic` holds, into per-user state."""
    from quixstreams import Application, State, message_context

    meter = harness.Meter()
    require_events(kafka, topic, events)

    def fold_one(value: bytes, key: bytes, _timestamp: int, _headers: object, state: State) -> None:
        event = decode(value, key)
        record = message_context()
        held = state.get_bytes("state")
        user = empty_state(record.partition) if held is None else decode_state(held)
        fold(user, event, record.partition, record.offset)
        state.set_bytes("state", encode_state(user))
        meter.tick()

    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as state_dir:
        app = Application(
            broker_address=kafka,
            consumer_group=f"bench-quix-{uuid.uuid4().hex[:8]}",
            auto_offset_reset="earliest",
            state_dir=state_dir,
            loglevel="WARNING",
        )
        source = app.topic(topic, value_deserializer="bytes", key_deserializer="bytes")
        app.dataframe(source).update(fold_one, stateful=True, metadata=True)
        app.run(count=events, collect=False)
        meter.stop()
    return {"system": f"quixstreams {version('quixstreams')}", **meter.figures("events")}


run = harness.launcher(measure)

if __name__ == "__main__":
    harness.command_line(measure)
