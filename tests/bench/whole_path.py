"""The whole worker: throughput under backlog, latency at a rate, memory and restarts by user count.

Runs on a stack that is up, on topics of its own.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from threading import Thread

import msgspec
import numpy as np
from confluent_kafka import Producer
from freshet.core.events import Event, encode_event
from freshet.core.recommendation import OWN_CAUSES, AsOf, Cause

from deploy.local import Stack
from tests.bench import harness, stream
from tests.bench.worker import BenchWorker, Names, reader

PATIENCE_SECONDS = 600.0
WARM_UP_SECONDS = 25.0
"""A broker that has just been started compiles for so long, and everybody waits for it."""
PARTITIONS = 2


class _Dated(msgspec.Struct):
    as_of: AsOf
    cause: Cause


decode_dated = msgspec.json.Decoder(_Dated).decode


def throughput(
    stack: Stack, prefix: str, *, users: int, events: int, online_store: str, distribution: str
) -> harness.Figures:
    """Refreshed users and events a second over a backlog.

    `cycle` touches every user in turn, so that nearly every event costs a
    refresh; `zipf` has busy users, whose bursts cost one. Timed between the
    first and the last list, by their record timestamps.
    """
    names = Names(prefix)
    produced = stream.produce(
        kafka=stack.bootstrap,
        topic=names.topic("events"),
        users=users,
        events=events,
        partitions=PARTITIONS,
        distribution=distribution,
        item_ids=str(stack.models / "user_encoder" / "1" / "item_ids.json"),
    )
    names.create(stack.bootstrap, PARTITIONS)
    with (
        tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder,
        BenchWorker(names, stack, Path(folder), FRESHET_ONLINE_STORE=online_store) as worker,
    ):
        worker.start()
        worker.wait_ready()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while worker.metric("freshet_events_folded_total") < events or worker.metric("freshet_lag_events") > 0:
            if time.monotonic() > deadline:
                raise harness.ComparatorError("the worker did not get through the backlog")
            time.sleep(0.5)
        cpu_s, rss_mb = worker.cpu_s(), worker.rss_mb()
        worker.stop()
    times, degraded = _list_times(stack.bootstrap, names.topic("recommendations"))
    warm = len(times) // 10
    seconds = (times[-1] - times[warm]) / 1000
    share = (len(times) - warm) / len(times)
    return {
        "system": f"freshet, {online_store.partition(':')[0]}",
        "users": len(times),
        "events": produced["events"],
        "seconds": round(seconds, 2),
        "users_per_s": round((len(times) - warm) / seconds, 1),
        "events_per_s": round(events * share / seconds, 1),
        "degraded": degraded,
        "cpu_us_per_user": round(cpu_s / len(times) * 1e6, 1),
        "rss_mb": round(rss_mb, 1),
    }


def latency(
    stack: Stack, prefix: str, *, rate: float, seconds: float, users: int = 2000, **settings: str
) -> harness.Figures:
    """Milliseconds from producing an event to consuming the list made for it, at `rate` events a second.

    Measured for `seconds` after a warm-up at the same rate. Lists that were made again without their user are only
    counted.
    """
    names = Names(prefix)
    names.create(stack.bootstrap, PARTITIONS)
    lasting = WARM_UP_SECONDS + seconds
    events = int(rate * lasting)
    sent: dict[tuple[int, int], float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder,
        BenchWorker(names, stack, Path(folder), **settings) as worker,
    ):
        worker.start()
        worker.wait_ready()
        consumer = reader(stack.bootstrap, names.topic("recommendations"))
        producing = Thread(target=paced, args=(stack, names, users, events, rate, sent))
        producing.start()
        delays: list[tuple[float, float]] = []
        again = 0
        begin = time.perf_counter()
        while time.perf_counter() - begin < lasting + 15 and (producing.is_alive() or len(delays) < len(sent)):
            message = consumer.poll(0.1)
            if message is not None:
                now = time.perf_counter()
                dated = decode_dated(message.value())
                as_of = dated.as_of
                if dated.cause not in OWN_CAUSES:
                    again += 1
                    continue
                produced = sent.get((as_of.partition, as_of.offset))
                if produced is not None:
                    delays.append((now - begin, (now - produced) * 1000))
        producing.join()
        consumer.close()
    steady = [delay for moment, delay in delays if moment > WARM_UP_SECONDS]
    p50, p90, p99 = np.percentile(steady, [50, 90, 99])
    return {
        "rate_events_per_s": rate,
        "lists": len(steady),
        "again_per_s": round(again / lasting, 1),
        "p50_ms": round(float(p50), 1),
        "p90_ms": round(float(p90), 1),
        "p99_ms": round(float(p99), 1),
    }


def restarts(stack: Stack, prefix: str, *, users: int) -> harness.Figures:
    """Memory and disk with `users` users, and seconds to the first list after a SIGKILL, warm and wiped."""
    names = Names(prefix)
    stream.produce(
        kafka=stack.bootstrap,
        topic=names.topic("events"),
        users=users,
        events=users,
        partitions=PARTITIONS,
        distribution="cycle",
    )
    names.create(stack.bootstrap, PARTITIONS)
    with (
        tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder,
        BenchWorker(names, stack, Path(folder)) as worker,
    ):
        worker.start()
        worker.wait_ready()
        while worker.metric("freshet_events_folded_total") < users or worker.metric("freshet_lag_events") > 0:
            time.sleep(0.5)
        time.sleep(1.0)
        rss_mb = worker.rss_mb()
        state = Path(folder) / names.prefix
        disk = sum(file.stat().st_size for file in state.rglob("*") if file.is_file())
        figures = {"users": users, "rss_mb": round(rss_mb, 1), "state_disk_bytes_per_user": round(disk / users, 1)}
        for kind in ("warm", "wiped"):
            worker.kill()
            if kind == "wiped":
                shutil.rmtree(state)
            figures[f"restart_{kind}_s"] = round(_to_first_list(stack, names, worker, users), 2)
    return figures


def _to_first_list(stack: Stack, names: Names, worker: BenchWorker, users: int) -> float:
    """Restart the worker with one event waiting; seconds until a list for it is out."""
    topic = names.topic("recommendations")
    before = len(_list_times(stack.bootstrap, topic)[0])
    _produce_one(stack.bootstrap, names.topic("events"), users)
    consumer = reader(stack.bootstrap, topic)
    begin = time.perf_counter()
    worker.start()
    seen = 0
    while seen <= before:
        seen += len(consumer.consume(10_000, 0.05))
        if time.perf_counter() - begin > PATIENCE_SECONDS or worker.process.poll() is not None:
            raise harness.ComparatorError("no list after the restart")
    seconds = time.perf_counter() - begin
    consumer.close()
    worker.wait_ready()
    return seconds


def _produce_one(kafka: str, topic: str, users: int) -> None:
    event = Event(f"restart-{time.time_ns()}", f"u{users // 2}", "click", 1_700_000_000_000, "50")
    producer = Producer({"bootstrap.servers": kafka, "partitioner": "murmur2_random"})
    producer.produce(topic, encode_event(event), event.user_id)
    producer.flush(30)


def paced(stack: Stack, names: Names, users: int, events: int, rate: float, sent: dict[tuple[int, int], float]) -> None:
    producer = Producer({"bootstrap.servers": stack.bootstrap, "partitioner": "murmur2_random", "linger.ms": 0})
    items = stream.read_item_ids(str(stack.models / "user_encoder" / "1" / "item_ids.json"))
    ready = [(encode_event(e), e.user_id) for e in stream.generate(users=users, events=events, items=items)]
    begin = time.perf_counter()
    for number, (value, key) in enumerate(ready):
        while (left := begin + number / rate - time.perf_counter()) > 0:
            producer.poll(min(left, 0.01))
        moment = time.perf_counter()

        def note(_error: object, message: object, moment: float = moment) -> None:
            sent[message.partition(), message.offset()] = moment  # type: ignore[attr-defined]

        producer.produce(names.topic("events"), value, key, on_delivery=note)
    producer.flush(30)


def _list_times(kafka: str, topic: str) -> tuple[list[int], int]:
    """Record timestamps (ms) of all lists, ascending, and how many are degraded."""
    consumer = reader(kafka, topic)
    ends = sum(consumer.get_watermark_offsets(partition, 30)[1] for partition in consumer.assignment())
    times: list[int] = []
    degraded = 0
    while len(times) < ends:
        for message in consumer.consume(10_000, 1.0):
            times.append(message.timestamp()[1])
            degraded += b'"degraded":true' in (message.value() or b"")
    consumer.close()
    return sorted(times), degraded
