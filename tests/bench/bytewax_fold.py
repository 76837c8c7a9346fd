"""Fold-only ingest with Bytewax: `stateful_map` over its Kafka source, state in memory.

The fold and the decoder are the core's own. Recovery is left off, as Bytewax
has it by default, so nothing is durable: an advantage given to it.
"""
# ruff: noqa: PLC0415 - `run` is imported where the peer itself need not be

from __future__ import annotations

from importlib.metadata import version

from freshet.core.events import Event
from freshet.core.state import UserState, empty_state, fold

from tests.bench import harness
from tests.bench.stream import decode, require_events


def measure(*, kafka: str, topic: str, events: int) -> harness.Figures:
    """Fold all of `topic`, which holds `events` events, into per-user state."""
    import bytewax.operators as op
    from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
    from bytewax.dataflow import Dataflow
    from bytewax.outputs import DynamicSink, StatelessSinkPartition
    from bytewax.testing import run_main

    meter = harness.Meter()
    require_events(kafka, topic, events)

    class Count(StatelessSinkPartition[tuple[str, None]]):
        def write_batch(self, items: list[tuple[str, None]]) -> None:
            meter.tick(len(items))
            meter.stop()

    class CountSink(DynamicSink[tuple[str, None]]):
        def build(self, _step_id: str, _worker: int, _workers: int) -> Count:
            return Count()

    def keyed(record: KafkaSourceMessage) -> tuple[str, tuple[Event, int, int]]:
        event = decode(record.value, record.key)
        return event.user_id, (event, record.partition, record.offset)

    def fold_one(user: UserState | None, sourced: tuple[Event, int, int]) -> tuple[UserState, None]:
        event, partition, offset = sourced
        user = empty_state(partition) if user is None else user
        fold(user, event, partition, offset)
        return user, None

    flow = Dataflow("bench")
    records = op.input("events", flow, KafkaSource([kafka], [topic], tail=False))
    folded = op.stateful_map("fold", op.map("decode", records, keyed), fold_one)
    op.output("count", folded, CountSink())
    run_main(flow)
    if meter.count != events:
        raise harness.ComparatorError(f"{topic} holds {meter.count} events, not {events}")
    return {
        "system": f"bytewax {version('bytewax')}",
        **meter.figures("events"),
        "left_out": ["durable state"],
    }


run = harness.launcher(measure)

if __name__ == "__main__":
    harness.command_line(measure)
