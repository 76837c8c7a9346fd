"""The whole path with Quix Streams: one event at a time, state on RocksDB with a changelog topic.

One stateful `apply` that folds, asks Triton and writes to Feast, and a sink
topic; Quix's defaults. Ranking and features are `job`'s.
"""
# ruff: noqa: PLC0415 - `run` is imported where the peer itself need not be

from __future__ import annotations

import tempfile
import uuid
from importlib.metadata import version as installed

from freshet.core.state import decode_state, empty_state, encode_state, fold

from tests.bench import harness, job
from tests.bench.stream import decode, ensure_topic, require_events


def measure(
    *,
    kafka: str,
    triton: str,
    events_topic: str,
    output_topic: str,
    events: int,
    feature_repo: str | None = None,
    feature_view: str = "user_behaviour",
    warmup: int = 100,
    version: int = 1,
    bundle: str | None = None,
) -> harness.Figures:
    """Refresh a list for each of `events` events of a topic; the first `warmup` are not timed.

    Without `feature_repo` nothing is written to Feast.
    """
    from quixstreams import Application, State, message_context
    from tritonclient.grpc import InferenceServerClient

    vocabulary = job.Vocabulary(bundle)
    write_features = job.feature_writer(feature_repo, feature_view)
    meter = harness.Meter(warmup)
    ensure_topic(kafka, output_topic, require_events(kafka, events_topic, events))
    client = InferenceServerClient(triton)

    def refresh(value: bytes, key: bytes, timestamp: int, _headers: object, state: State) -> bytes:
        event = decode(value, key)
        record = message_context()
        held = state.get_bytes("state")
        user = empty_state(record.partition) if held is None else decode_state(held)
        fold(user, event, record.partition, record.offset)
        state.set_bytes("state", encode_state(user))
        answer = client.infer(**job.encoder_request([user], vocabulary, version))
        write_features(event.user_id, user)
        refreshed = job.recommend(
            user_id=event.user_id,
            state=user,
            answer=answer,
            vocabulary=vocabulary,
            version=version,
            broker_ms=timestamp,
        )
        if meter.tick() == events:
            meter.stop()
        return refreshed

    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as state_dir:
        app = Application(
            broker_address=kafka,
            consumer_group=f"bench-quix-{uuid.uuid4().hex[:8]}",
            auto_offset_reset="earliest",
            state_dir=state_dir,
            loglevel="WARNING",
        )
        source = app.topic(events_topic, value_deserializer="bytes", key_deserializer="bytes")
        output = app.topic(output_topic, value_serializer="bytes", key_serializer="bytes")
        lists = app.dataframe(source).apply(refresh, stateful=True, metadata=True)
        lists.to_topic(output)
        app.run(count=events, collect=False)
    return {
        "system": f"quixstreams {installed('quixstreams')}, per event",
        **meter.figures("users"),
        "left_out": job.left_out(feature_repo),
    }


run = harness.launcher(measure)

if __name__ == "__main__":
    harness.command_line(measure)
