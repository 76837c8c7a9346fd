"""The whole path written the usual way with stock Faust: one event at a time.

An agent over the events topic, a table on RocksDB with its changelog, one
Triton call, one Feast write and one `topic.send` per event; Faust's defaults
but for the web server. Ranking and features are `job`'s.
"""
# ruff: noqa: PLC0415 - Faust reads the command line when it is imported

from __future__ import annotations

import os
import signal
import sys
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
    import faust
    from tritonclient.grpc.aio import InferenceServerClient

    vocabulary = job.Vocabulary(bundle)
    write_features = job.feature_writer(feature_repo, feature_view)
    meter = harness.Meter(warmup)
    partitions = require_events(kafka, events_topic, events)
    ensure_topic(kafka, output_topic, partitions)

    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as datadir:
        app = faust.App(
            f"bench-faust-{uuid.uuid4().hex[:8]}",
            broker=f"kafka://{kafka}",
            store="rocksdb://",
            datadir=datadir,
            topic_partitions=partitions,
            web_enabled=False,
        )
        raw = {"key_serializer": "raw", "value_serializer": "raw"}
        source = app.topic(events_topic, key_type=bytes, value_type=bytes, **raw)
        output = app.topic(output_topic, key_type=bytes, value_type=bytes, **raw)
        table = app.Table(
            "state",
            key_type=bytes,
            value_type=bytes,
            options={"driver": "rocksdict"},
        )

        @app.agent(source)
        async def refresh(records: faust.StreamT) -> None:
            client = InferenceServerClient(triton)
            async for record in records.events():
                message = record.message
                event = decode(record.value, message.key)
                held = table.get(message.key)
                state = empty_state(message.partition) if held is None else decode_state(held)
                fold(state, event, message.partition, message.offset)
                table[message.key] = encode_state(state)
                answer = await client.infer(**job.encoder_request([state], vocabulary, version))
                write_features(event.user_id, state)
                value = job.recommend(
                    user_id=event.user_id,
                    state=state,
                    answer=answer,
                    vocabulary=vocabulary,
                    version=version,
                    broker_ms=int(message.timestamp * 1000),
                )
                await output.send(key=message.key, value=value)
                if meter.tick() == events:
                    meter.stop()
                    os.kill(os.getpid(), signal.SIGTERM)

        worker = faust.Worker(app, loglevel="WARN", redirect_stdouts=False, stdout=sys.stderr)
        try:
            worker.execute_from_commandline()
        except SystemExit as ended:
            if ended.code:
                raise
    return {
        "system": f"faust-streaming {installed('faust-streaming')}, per event",
        **meter.figures("users"),
        "left_out": job.left_out(feature_repo),
    }


run = harness.launcher(measure)

if __name__ == "__main__":
    harness.command_line(measure)
