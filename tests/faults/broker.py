"""A broker that is away, slow, denies or loses; topics that change under a worker."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, ResourceType
from kafka.admin import KafkaAdminClient
from kafka.structs import TopicPartition

from deploy import local
from deploy.local import kafka
from deploy.local.ports import choose_ports
from tests.faults.arena import Arena, Trial, ends, last_words
from tests.faults.catalogue import fault
from tests.faults.proxy import Proxy
from tests.integration.deployment import Worker, until
from tests.integration.test_worker import stream

PER_SECOND = 100
ROUND_TRIP_SECONDS = 0.5
FAR_LIST_SECONDS = 1.6


class ProxiedStack:
    """The ports of the broker's second listener, and of the proxy that it is advertised as."""

    ports: dict[str, int] = {}  # noqa: RUF012 - the stack's, once it has started


def start_stack(folder: Path) -> local.Stack:
    """A stack with Redis, whose broker has a second listener that is reached through a proxy."""
    ProxiedStack.ports = ports = choose_ports(["listener", "proxy"], asked={}, preferred={})
    plain = kafka._properties

    def proxied(data: Path, own: dict[str, int]) -> str:
        lines = []
        for line in plain(data, own).splitlines():
            name, _, value = line.partition("=")
            if name == "listeners":
                value += f",PROXIED://127.0.0.1:{ports['listener']}"
            elif name == "advertised.listeners":
                value += f",PROXIED://127.0.0.1:{ports['proxy']}"
            elif name == "listener.security.protocol.map":
                value += ",PROXIED:PLAINTEXT"
            lines.append(f"{name}={value}\n")
        return "".join(lines)

    kafka._properties = proxied
    return local.start(folder, redis=True)


@contextmanager
def through_proxy() -> Iterator[Proxy]:
    """A proxy before the broker."""
    proxy = Proxy(ProxiedStack.ports["proxy"], ProxiedStack.ports["listener"])
    try:
        yield proxy
    finally:
        proxy.close()


def proxied_trial(arena: Arena) -> Trial:
    """A trial whose workers reach the broker through the proxy alone."""
    return arena.trial(FRESHET_KAFKA=f"127.0.0.1:{ProxiedStack.ports['proxy']}")


def keep_running(trial: Trial, worker: Worker) -> Worker:
    """As a supervisor: start a worker again that has ended."""
    return worker if worker.process.poll() is None else trial.restarted(worker)


@fault("F13", "the broker killed, away for 30 s")
def broker_killed(arena: Arena) -> Sequence[str]:
    """What a worker could not commit, it does again."""
    trial = arena.trial()
    worker = trial.worker()
    arena.afterwards(lambda: None if local.is_running(arena.stack) else local.start_part(arena.stack, "kafka"))
    with trial.traffic(arena.seed, PER_SECOND):
        arena.pause(2.0, 3.0)
        local.kill_part(arena.stack, "kafka")
        time.sleep(30)
        ready = worker.get("/readyz")[0]
        local.start_part(arena.stack, "kafka")
        arena.pause(2.0, 3.0)
        worker = keep_running(trial, worker)
    said = ["/readyz says 200 with the broker away"] if ready == 200 else []
    return said + list(trial.verdict(patience=120))


@fault("F14", "the broker frozen for 20 s")
def broker_frozen(arena: Arena) -> Sequence[str]:
    """Nothing answers, no connection ends."""
    trial = arena.trial()
    worker = trial.worker()
    broker = arena.stack.processes["kafka"].pid
    arena.afterwards(lambda: os.kill(broker, signal.SIGCONT))
    with trial.traffic(arena.seed, PER_SECOND):
        arena.pause(2.0, 3.0)
        os.kill(broker, signal.SIGSTOP)
        time.sleep(20)
        ready = worker.get("/readyz")[0]
        os.kill(broker, signal.SIGCONT)
        arena.pause(2.0, 3.0)
        worker = keep_running(trial, worker)
    said = ["/readyz says 200 with the broker frozen"] if ready == 200 else []
    return said + list(trial.verdict(patience=120))


@fault("F15", "the network swallows everything for 45 s")
def blackhole(arena: Arena) -> Sequence[str]:
    """Between the worker and the broker alone: the group takes its partitions away meanwhile."""
    trial = proxied_trial(arena)
    with through_proxy() as proxy:
        worker = trial.worker()
        with trial.traffic(arena.seed, PER_SECOND):
            arena.pause(2.0, 3.0)
            proxy.blocked = True
            time.sleep(45)
            proxy.blocked = False
            arena.pause(2.0, 3.0)
            worker = keep_running(trial, worker)
        return trial.verdict(patience=120)


@fault("F16", "500 ms to the broker and back: a list within 1.6 s of its event, at the median")
def far_broker(arena: Arena) -> Sequence[str]:
    """From the broker's time of an event to that of its list."""
    trial = proxied_trial(arena)
    with through_proxy() as proxy:
        trial.worker()
        proxy.delay = ROUND_TRIP_SECONDS / 2
        with trial.traffic(arena.seed, 20, users=1000):
            time.sleep(20)
        said = list(trial.verdict(patience=90))
    events = {(record.partition, record.offset): record.timestamp for record in trial.records("events")}
    took = []
    for record in trial.records("recommendations"):
        as_of = json.loads(record.value)["as_of"]
        took.append((record.timestamp - events[as_of["partition"], as_of["offset"]]) / 1000)
    median = statistics.median(took[len(took) // 3 :])
    print(f"       p50 {median:.2f} s", flush=True)
    return said + ([f"an event takes {median:.2f} s to its list"] if median > FAR_LIST_SECONDS else [])


@fault("F18", "the lists' topic is gone: nothing is committed, and all comes once it is back")
def output_denied(arena: Arena) -> Sequence[str]:
    """Deliveries fail, so a worker that does not wait for them commits what is nowhere."""
    return output_topic_gone(arena, "recommendations", "")


@fault("F40", "the dead letters' topic is gone")
def dead_letters_denied(arena: Arena) -> Sequence[str]:
    """Bad input cannot be told: nothing is committed until it can."""
    return output_topic_gone(arena, "events.dlq", "")


def output_topic_gone(arena: Arena, topic: str, error: str) -> Sequence[str]:
    """Delete an output topic under a worker, send events and bad records, and make the topic again."""
    trial = arena.trial()
    worker = trial.worker(error=error)
    trial.send(stream(arena.seed, 100))
    until(lambda: worker.metric("freshet_events_folded_total") >= 100, "the first events are folded", worker)
    time.sleep(2)
    admin = AdminClient({"bootstrap.servers": arena.stack.bootstrap})
    config = admin.describe_configs([ConfigResource(ResourceType.TOPIC, trial.topics[topic])])
    [described] = config.values()
    policy = described.result()["cleanup.policy"].value
    before = trial.records(topic)
    admin.delete_topics([trial.topics[topic]])[trial.topics[topic]].result()
    trial.raw(b"{", b"user-1")
    trial.send(stream(arena.seed, 100, start=1000))
    status = ends(worker, 90)
    admin.create_topics([NewTopic(trial.topics[topic], 2, config={"cleanup.policy": policy})])[
        trial.topics[topic]
    ].result()
    for record in before:
        trial.producer.send(
            trial.topics[topic], record.value, record.key, list(record.headers), partition=record.partition
        )
    trial.producer.flush()
    if status is None:
        worker.kill()
    trial.workers.remove(worker)
    trial.worker()
    return trial.verdict(patience=30 if error else 90)


@fault("F12", "partitions added", refusal="not ready, and no start: the states are kept in fewer")
def partitions_added(arena: Arena) -> Sequence[str]:
    """A running worker is not ready; one that starts ends with a sentence."""
    trial = arena.trial()
    worker = trial.worker()
    trial.send(stream(arena.seed, 50))
    trial.settle()
    topic = trial.topics["events"]
    admin = AdminClient({"bootstrap.servers": arena.stack.bootstrap})
    admin.create_partitions([NewPartitions(topic, 4)])[topic].result()
    until(
        lambda: "has 4 partitions, of which 2 are read" in worker.get("/readyz")[1], "the worker is not ready", worker
    )
    worker.terminate()
    trial.workers.remove(worker)
    again = trial.worker(ready=False)
    status, words = ends(again, 60), last_words(again)
    trial.workers.remove(again)
    return [] if status == 1 and "are kept in 2" in words else [f"status {status}: {words}"]


@fault("F19", "retention passes the committed offset", quick=True, refusal="told: metric, log, /readyz and check")
def retention_passes(arena: Arena) -> Sequence[str]:
    """What was lost is counted, and what is left is folded."""
    trial = arena.trial()
    worker = trial.worker()
    trial.send(stream(arena.seed, 50))
    trial.settle()
    worker.terminate()
    trial.send(stream(arena.seed, 100, start=1000))
    ends_of = {0: 0, 1: 0}
    for record in trial.records("events"):
        ends_of[record.partition] = record.offset + 1
    admin = KafkaAdminClient(bootstrap_servers=arena.stack.bootstrap)
    gap = {TopicPartition(trial.topics["events"], number): end - 5 for number, end in ends_of.items()}
    admin.delete_records(gap)
    admin.close()
    trial.workers.remove(worker)
    checked = trial.verb("check")
    worker = trial.worker(ready=False)
    until(lambda: worker.metric("freshet_lost_events_total") > 0, "lost events are counted", worker)
    said = [] if "were deleted by retention" in checked else [f"check says {checked[:200]}"]
    return said + ([] if "deleted by retention" in worker.log.read_text() else ["the log says nothing"])


@fault(
    "F20", "the events topic deleted and made again", quick=True, refusal="no start: its offsets are not the states'"
)
def topic_made_again(arena: Arena) -> Sequence[str]:
    """A worker that starts ends with a sentence."""
    trial = arena.trial()
    worker = trial.worker()
    trial.send(stream(arena.seed, 50))
    trial.settle()
    worker.terminate()
    trial.workers.remove(worker)
    topic = trial.topics["events"]
    admin = AdminClient({"bootstrap.servers": arena.stack.bootstrap})
    admin.delete_topics([topic])[topic].result()
    time.sleep(1)
    admin.create_topics([NewTopic(topic, 2)])[topic].result()
    again = trial.worker(ready=False)
    status, words = ends(again, 60), last_words(again)
    trial.workers.remove(again)
    return [] if status == 1 and "was deleted and made again" in words else [f"status {status}: {words}"]
