"""A feature store that is empty, slow, locked, or has rows that are newer."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Sequence

import redis
from feast import FeatureStore
from freshet.core.events import Event

from tests.faults.arena import Arena, Trial
from tests.faults.catalogue import fault
from tests.integration.deployment import until
from tests.integration.test_worker import stream

PER_SECOND = 60
FEATURES = ["user_behaviour:recent_items", "user_behaviour:view_count"]


def on_redis(arena: Arena) -> Trial:
    """A trial with features on Redis, which is emptied before: it is the arena's own."""
    client(arena).flushall()
    return arena.trial(FRESHET_ONLINE_STORE=f"redis://{arena.stack.redis}")


def client(arena: Arena) -> redis.Redis:
    """A client of the arena's Redis."""
    host, _, port = arena.stack.redis.partition(":")
    return redis.Redis(host=host, port=int(port))


def wrong_features(trial: Trial) -> list[str]:
    """Users whose features, as an outsider reads them through Feast, are not the fold."""
    store = FeatureStore(fs_yaml_file=trial.folder / "feast" / "feature_store.yaml")
    users, _ = trial.expected()
    names = sorted(user for user, expected in users.items() if expected.folded)
    rows = store.get_online_features(FEATURES, [{"user_id": name} for name in names]).to_dict()
    wrong = []
    for row, name in enumerate(names):
        expected = users[name]
        found = rows["recent_items"][row], rows["view_count"][row]
        if found != (expected.items[-50:], expected.counts["view"]):
            wrong.append(f"{name}'s features are {str(found)[:80]}")
    return wrong[:3] + ([f"and {len(wrong) - 3} more"] if len(wrong) > 3 else [])


@fault("F28", "Redis emptied: features come back from the states", quick=True)
def redis_emptied(arena: Arena) -> Sequence[str]:
    """By the worker itself, for users without new events too; and by `freshet features push`."""
    trial = on_redis(arena)
    trial.worker()
    trial.send(stream(arena.seed, 200))
    trial.settle()
    said = []
    client(arena).flushall()
    try:
        until(lambda: not wrong_features(trial), "the worker brings the features back", *trial.workers, patience=45)
    except AssertionError:
        said += [f"by the worker: {complaint}" for complaint in wrong_features(trial)]
    client(arena).flushall()
    printed = trial.verb("features", "push")
    if wrong := wrong_features(trial):
        said += [f"`freshet features push` ({printed.strip()[-200:]}): {complaint}" for complaint in wrong]
    return said + list(trial.verdict(repeats=0))


@fault("F29", "Redis frozen for 10 s")
def redis_frozen(arena: Arena) -> Sequence[str]:
    """Lists wait, nothing is lost, features are the fold after."""
    trial = on_redis(arena)
    worker = trial.worker()
    server = arena.stack.processes["redis"].pid
    arena.afterwards(lambda: os.kill(server, signal.SIGCONT))
    with trial.traffic(arena.seed, PER_SECOND):
        time.sleep(2)
        os.kill(server, signal.SIGSTOP)
        time.sleep(10)
        ready = worker.get("/readyz")[0]
        os.kill(server, signal.SIGCONT)
        time.sleep(2)
    said = ["/readyz says 200 with Redis frozen"] if ready == 200 else []
    return said + list(trial.verdict()) + wrong_features(trial)


@fault("F30", "Feast's SQLite file locked for 15 s")
def sqlite_locked(arena: Arena) -> Sequence[str]:
    """By another process that writes."""
    trial = arena.trial()
    trial.worker()
    with trial.traffic(arena.seed, PER_SECOND):
        time.sleep(2)
        lock = sqlite3.connect(next((trial.folder / "feast").glob("*online*.db")), isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        time.sleep(15)
        lock.execute("ROLLBACK")
        lock.close()
    return list(trial.verdict()) + wrong_features(trial)


@fault("F31", "events of equal and of older times: features neither go back nor drop any")
def equal_times(arena: Arena) -> Sequence[str]:
    """On Redis, where Feast drops a row that is not newer."""
    trial = on_redis(arena)
    trial.worker()
    for number in range(60):
        ts = 890_000_000_000 - 1000 * (number % 3)
        trial.send([Event(f"e-{number}", f"user-{number % 4}", "view", ts, str(number + 1))])
    return list(trial.verdict()) + wrong_features(trial)


@fault("F32", "a store restored from an old copy: features of then are replaced")
def old_copy(arena: Arena) -> Sequence[str]:
    """Rows of before, put back while the worker runs."""
    trial = on_redis(arena)
    trial.worker()
    trial.send(stream(arena.seed, 150))
    trial.settle()
    server = client(arena)
    copy = {key: server.dump(key) for key in server.scan_iter()}
    trial.send(stream(arena.seed, 150, start=1000))
    trial.settle()
    server.flushall()
    for key, value in copy.items():
        server.restore(key, 0, value)
    try:
        until(lambda: not wrong_features(trial), "the features of now are back", *trial.workers, patience=45)
    except AssertionError:
        return [f"by the worker: {complaint}" for complaint in wrong_features(trial)]
    return trial.verdict()
