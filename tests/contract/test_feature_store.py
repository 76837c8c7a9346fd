"""The contract of `freshet.ports.FeatureStore`, over every backend, and what Feast's own readers see of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from feast import FeatureStore as Feast
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Int64List, StringList, Value
from freshet.adapters.feast import EMBEDDING_VIEW, FeastStore, apply, open_feature_store, redis_options
from freshet.adapters.feast_rows import redis_client
from freshet.core.events import Event
from freshet.core.features import EMBEDDING_FEATURES, LIST_FEATURES, behaviour_features, behaviour_row, list_row
from freshet.core.state import HISTORY, UserState, empty_state, fold
from freshet.ports import FeatureRow, FeatureStore, Unavailable
from freshet.settings import Settings, SettingsError
from redis import Redis, RedisError

from deploy.local import redis as redis_server
from deploy.local.parts import executable
from deploy.local.ports import choose_ports
from deploy.local.process import Process, kill, spawn, wait_until_ready
from tests.contract.tls import self_signed
from tests.memory_ports import MemoryFeatureStore

ROOT = Path(__file__).parents[2]
BEHAVIOURS = {"view": 1.0, "click": 2.0, "add-to-cart": 3.0, "it's": 4.0}
T0_MS = 1_700_000_000_000
T0_US = T0_MS * 1000
SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US


class RunningRedis(NamedTuple):
    """A Redis that nobody else uses."""

    process: Process
    port: int

    @property
    def url(self) -> str:
        """As the setting wants it."""
        return f"redis://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    """A real Redis; without redis-server a laptop skips and CI fails."""
    if shutil.which("redis-server") is None:
        why = "redis-server is not on PATH"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    ports = choose_ports(redis_server.PORTS, asked={}, preferred={})
    process = redis_server.start(tmp_path_factory.mktemp("redis"), ports)
    try:
        yield RunningRedis(process, ports["redis"])
    finally:
        kill(process)


def feast_settings(folder: Path, online_store: str) -> Settings:
    return Settings(
        feature_repo=str(ROOT / "feature_repo"),
        feast_dir=str(folder),
        online_store=online_store,
        behaviours=BEHAVIOURS,
    )


def open_feast(request: pytest.FixtureRequest, online_store: str) -> FeastStore:
    folder = request.getfixturevalue("tmp_path_factory").mktemp("feast")
    return open_feature_store(feast_settings(folder, online_store))


OPENERS: dict[str, Callable[[pytest.FixtureRequest], Any]] = {
    "memory": lambda _: MemoryFeatureStore(list(BEHAVIOURS)),
    "sqlite": lambda request: open_feast(request, "sqlite"),
    "redis": lambda request: open_feast(request, request.getfixturevalue("redis").url),
}
"""Every backend."""
FEAST = ["sqlite", "redis"]


def _opened(request: pytest.FixtureRequest) -> Iterator[Any]:
    store = OPENERS[request.param](request)
    yield store
    if hasattr(store, "close"):
        store.close()


store = pytest.fixture(scope="module", params=OPENERS)(_opened)
feast_store = pytest.fixture(scope="module", params=FEAST)(_opened)


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """A user that no other test writes."""
    return f"{request.node.name}-u"


def outsider(store: FeastStore) -> Feast:
    """Another program's Feast client: it knows the written `feature_store.yaml` alone."""
    return Feast(fs_yaml_file=store.file)


def folded(user_id: str, events: int = 3 * HISTORY) -> UserState:
    """A state with every kind of event, a full history, and amounts that a float32 holds exactly."""
    state = empty_state(0)
    kinds = list(BEHAVIOURS)
    for number in range(events):
        kind = kinds[number % len(kinds)]
        amount = number * 0.25 if number % 3 == 0 else None
        event = Event(f"e{number}", user_id, kind, T0_MS + number * 977, f"item {number % 70} é", amount)
        fold(state, event, 0, number)
    return state


def expected(state: UserState) -> dict[str, Any]:
    return {
        "recent_items": state.items,
        "recent_types": state.types,
        "recent_times": list(state.times),
        **{f"{kind}_count": state.counts.get(kind, 0) for kind in BEHAVIOURS},
        **{f"{kind}_spend": state.spend.get(kind, 0.0) for kind in BEHAVIOURS},
        "last_event_time": state.last_ts,
    }


def behaviour(user_id: str, timestamp_us: int, state: UserState | None = None) -> FeatureRow:
    return FeatureRow(user_id, timestamp_us, behaviour_row(state or folded(user_id, 5), BEHAVIOURS))


def embedding(user_id: str, timestamp_us: int, version: int = 1) -> FeatureRow:
    vector = np.random.default_rng(version).standard_normal(64 + version % 2).astype(np.float32)
    return FeatureRow(user_id, timestamp_us, (vector, version))


def made_of(user_id: str, timestamp_us: int, state: UserState | None = None) -> FeatureRow:
    scores = np.random.default_rng(1).standard_normal(100).astype(np.float32)
    return FeatureRow(user_id, timestamp_us, list_row(state or folded(user_id, 5), T0_MS, list(range(100)), scores))


NO_LIST = {feature.name: None for feature in LIST_FEATURES}


def plain(features: dict[str, Any]) -> dict[str, Any]:
    """Arrays as lists, so that features compare."""
    return {
        name: value if value is None or np.isscalar(value) else list(np.asarray(value).tolist())
        for name, value in features.items()
    }


async def test_what_is_written_is_the_fold(store: FeatureStore, user: str) -> None:
    """Every field of the state and every bit of the vector are read back."""
    state, vector = folded(user), embedding(user, T0_US, version=7)
    parts = made_of(user, state.feature_ts, state)
    await store.write([behaviour(user, state.feature_ts, state)], [vector], [parts])
    read = plain(await store.read(user))
    names = [feature.name for feature in LIST_FEATURES]
    assert read == {
        **expected(state),
        "embedding": vector.values[0].tolist(),
        "model_version": 7,
        **plain(dict(zip(names, parts.values, strict=True))),
    }
    assert len(read["recent_items"]) == HISTORY
    assert len(read["seen_items"]) == 70
    assert read["as_of"] == [0, 3 * HISTORY - 1, T0_MS]


async def test_fields_are_the_cores(store: FeatureStore, user: str) -> None:
    """A backend has exactly the core's features, and an absent feature is None."""
    names = {feature.name for feature in (*behaviour_features(BEHAVIOURS), *EMBEDDING_FEATURES, *LIST_FEATURES)}
    assert await store.read(user) == dict.fromkeys(names)


async def test_views_are_independent(store: FeatureStore, user: str) -> None:
    """A user may have a single view without the others."""
    await store.write([behaviour(user, T0_US)])
    read = await store.read(user)
    assert read["embedding"] is None
    assert read["model_version"] is None
    assert read["last_event_time"] is not None


async def test_profile_without_events(store: FeatureStore, user: str) -> None:
    """A user who opted in again without an event has empty lists, which are not absent."""
    await store.write([behaviour(user, T0_US, empty_state(0))])
    read = plain(await store.read(user))
    assert read == {**expected(empty_state(0)), "embedding": None, "model_version": None, **NO_LIST}


async def test_later_write_wins(store: FeatureStore, user: str) -> None:
    """The newer state is read, within a batch as well."""
    for events in (5, 6):
        await store.write([behaviour(user, T0_US + events * SECOND_US, folded(user, events))])
    assert plain(await store.read(user))["last_event_time"] == folded(user, 6).last_ts
    await store.write((), [embedding(user, T0_US, 1), embedding(user, T0_US + 1, 2)])
    assert (await store.read(user))["model_version"] == 2


async def test_a_microsecond_later_lands(store: FeatureStore, user: str) -> None:
    """A state that is a microsecond newer replaces the older state."""
    for version in (1, 2, 3):
        await store.write((), [embedding(user, T0_US + version, version)])
        assert (await store.read(user))["model_version"] == version


async def test_equal_timestamp_lands(store: FeatureStore, user: str) -> None:
    """A write of equal timestamp replaces the vector."""
    for version in (1, 2):
        await store.write((), [embedding(user, T0_US, version)])
    read = await store.read(user)
    assert read["model_version"] == 2
    assert plain(read)["embedding"] == embedding(user, T0_US, 2).values[0].tolist()


async def test_delete_removes_all_views_of_these_users(store: FeatureStore, user: str) -> None:
    """A delete removes every view of the named users, and may name nobody or absent users."""
    users = [f"{user}{number}" for number in range(3)]
    await store.write(
        [behaviour(user_id, T0_US) for user_id in users],
        [embedding(user_id, T0_US) for user_id in users],
        [made_of(user_id, T0_US) for user_id in users],
    )
    for gone in (users[:2], users[:2], []):
        await store.delete(gone)
    for erased_id in users[:2]:
        assert set((await store.read(erased_id)).values()) == {None}
    kept = plain(await store.read(users[2]))
    assert None not in kept.values()


async def test_written_again_after_a_delete(store: FeatureStore, user: str) -> None:
    """A deleted user can be written again."""
    await store.write((), [embedding(user, T0_US, 1)])
    await store.delete([user])
    await store.write((), [embedding(user, T0_US + 1, 2)])
    assert (await store.read(user))["model_version"] == 2


async def test_batch_of_a_thousand(store: FeatureStore, user: str) -> None:
    """A large batch is written whole with each row under its user, and an empty batch is no error."""
    state = folded(user)
    await store.write(
        [FeatureRow(f"{user}{n}", T0_US + n, (*behaviour_row(state, BEHAVIOURS)[:-1], n)) for n in range(1000)]
    )
    await store.write((), [embedding(f"{user}{n}", T0_US + n, n) for n in range(1000)])
    await store.write([])
    await store.write((), [])
    for n in (0, 1, 63, 64, 65, 500, 999):
        read = await store.read(f"{user}{n}")
        assert (read["last_event_time"], read["model_version"]) == (n, n)


@pytest.mark.parametrize("name", ["é😀", "a:b,c=d", "with space\n", "x" * 256, "1", "'; DROP TABLE x; --", "a\0b"])
async def test_any_user_id(store: FeatureStore, user: str, name: str) -> None:
    """Any text is a user id."""
    await store.write((), [embedding(user + name, T0_US, 5)])
    assert (await store.read(user + name))["model_version"] == 5
    assert (await store.read(user))["model_version"] is None
    await store.delete([user + name])
    assert (await store.read(user + name))["model_version"] is None


async def test_outsider_reads_the_fold(feast_store: FeastStore, user: str) -> None:
    """Another program's `get_online_features` gives the fold, by reference and by the model's feature service."""
    states = {f"{user}{n}": folded(f"{user}{n}", n) for n in (1, HISTORY, 3 * HISTORY)}
    await feast_store.write([behaviour(user_id, state.feature_ts, state) for user_id, state in states.items()])
    await feast_store.write((), [embedding(user_id, T0_US, 4) for user_id in states])
    feast = outsider(feast_store)
    names = [feature.name for feature in behaviour_features(BEHAVIOURS)]
    answer = feast.get_online_features(
        [f"user_behaviour:{name}" for name in names], [{"user_id": user_id} for user_id in states]
    ).to_dict()
    for row, state in enumerate(states.values()):
        assert {name: answer[name][row] for name in names} == expected(state)
    served = feast.get_online_features(
        feast.get_feature_service("user_encoder"), [{"user_id": f"{user}{HISTORY}"}]
    ).to_dict()
    state = states[f"{user}{HISTORY}"]
    assert served == {
        "user_id": [f"{user}{HISTORY}"],
        "recent_items": [state.items],
        "recent_types": [state.types],
        "recent_times": [list(state.times)],
        "embedding": [embedding(user, T0_US, 4).values[0].tolist()],
        "model_version": [4],
    }


async def test_older_write_is_dropped(feast_store: FeastStore, user: str) -> None:
    """A write with older state is dropped, at SQLite by whole seconds."""
    await feast_store.write((), [embedding(user, T0_US + DAY_US, 2)])
    await feast_store.write((), [embedding(user, T0_US + DAY_US - SECOND_US, 1)])
    assert (await feast_store.read(user))["model_version"] == 2


@pytest.mark.parametrize("feast_store", ["redis"], indirect=True)
async def test_redis_drops_what_is_a_microsecond_older(feast_store: FeastStore, user: str) -> None:
    """Redis drops a write that is a microsecond older."""
    for newest in (T0_US, T0_US + 1, T0_US + 999_999, 150_000_000 * SECOND_US, 4_102_444_800 * SECOND_US + 5):
        await feast_store.delete([user])
        await feast_store.write((), [embedding(user, newest, 2)])
        for older in (newest - 1, newest - 300, newest - SECOND_US, newest - DAY_US):
            await feast_store.write((), [embedding(user, older, 1)])
        assert (await feast_store.read(user))["model_version"] == 2


async def test_rows_lie_as_feast_lays_them(feast_store: FeastStore, user: str) -> None:
    """A stored row has the bytes that Feast's own `online_write_batch` stores."""
    ours, theirs = f"{user}-a", f"{user}-b"
    state, timestamp_us = folded(user), T0_US + 123_456
    rows = {
        "user_behaviour": behaviour(ours, timestamp_us, state),
        "user_embedding": embedding(ours, timestamp_us),
        "user_list": made_of(ours, timestamp_us, state),
    }
    await feast_store.write(*([row] for row in rows.values()))

    feast = outsider(feast_store)
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(string_val=theirs)])
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=timestamp_us)
    for view, features in (
        ("user_behaviour", behaviour_features(BEHAVIOURS)),
        ("user_embedding", EMBEDDING_FEATURES),
        ("user_list", LIST_FEATURES),
    ):
        values = {
            feature.name: feast_value(feature.kind, value)
            for feature, value in zip(features, rows[view].values, strict=True)
        }
        table = feast.get_feature_view(view)
        feast._get_provider().online_write_batch(feast.config, table, [(key, values, moment, None)], None)
    assert stored(feast, ours) == stored(feast, theirs) != {}


def feast_value(kind: str, value: Any) -> Value:
    match kind:
        case "int64":
            return Value(int64_val=value)
        case "float32":
            return Value(float_val=value)
        case "list[string]":
            return Value(string_list_val=StringList(val=value))
        case "list[int64]":
            return Value(int64_list_val=Int64List(val=value))
        case "list[float32]":
            return Value(float_list_val=FloatList(val=value))
    raise ValueError(kind)


def stored(feast: Feast, user_id: str) -> dict[Any, Any]:
    """All that a store holds of a user, as it lies there."""
    raw = user_id.encode()
    key = struct.pack("<III", 1, 2, 7) + b"user_id" + struct.pack("<II", 2, len(raw)) + raw
    online = feast.config.online_store
    if online.type == "redis":
        host, port = online.connection_string.split(",")[0].split(":")
        with Redis(host, int(port)) as client:
            return client.hgetall(key + b"freshet")
    connection = sqlite3.connect(online.path)
    rows = {}
    for view in ("user_behaviour", "user_embedding"):
        query = f"SELECT feature_name, value, event_ts FROM freshet_{view} WHERE entity_key = ?"  # noqa: S608
        rows |= {(view, name): rest for name, *rest in connection.execute(query, [key])}
    connection.close()
    return rows


async def test_nothing_of_an_erased_user_is_left(feast_store: FeastStore, user: str) -> None:
    """After a delete the store holds nothing under the user."""
    await feast_store.write([behaviour(user, T0_US)], [embedding(user, T0_US)], [made_of(user, T0_US)])
    await feast_store.delete([user])
    assert stored(outsider(feast_store), user) == {}


async def test_applied_twice_changes_nothing(tmp_path: Path) -> None:
    """A second apply keeps the definitions' version and the stored rows."""
    settings = feast_settings(tmp_path / "new" / "folder", "sqlite")
    first = open_feature_store(settings)
    await first.write((), [embedding("u", T0_US, 3)])
    before = {view.name: view for view in outsider(first).list_feature_views()}
    apply(settings)
    with ThreadPoolExecutor(4) as threads:
        files = list(threads.map(apply, [settings] * 4))
    assert set(files) == {tmp_path / "new" / "folder" / "feature_store.yaml"}
    after = {view.name: view for view in outsider(first).list_feature_views()}
    assert after == before
    assert len(outsider(first).list_feature_view_versions("user_behaviour")) == 1
    assert (await first.read("u"))["model_version"] == 3
    first.close()


@pytest.mark.parametrize("online_store", FEAST)
async def test_a_reader_sees_all_rows_of_a_write_or_none(request: pytest.FixtureRequest, online_store: str) -> None:
    """While a worker writes a user again and again, another process reads rows of one write, never of two."""
    writer = OPENERS[online_store](request)
    address = online_store if online_store == "sqlite" else request.getfixturevalue("redis").url
    reader = FeastStore(writer.file, feast_settings(writer.file.parent, address))
    state = folded("u", 5)
    done = asyncio.Event()

    async def write() -> None:
        for number in range(300):
            state.offset, moment = number, T0_US + number * SECOND_US
            await writer.write(
                [behaviour("u", moment, state)], [embedding("u", moment, number)], [made_of("u", moment, state)]
            )
        done.set()

    async def read() -> int:
        reads = 0
        while not done.is_set():
            found = await reader.read("u")
            assert found["model_version"] == (found["as_of"][1] if found["as_of"] else None)
            reads += found["as_of"] is not None
        return reads

    _, reads = await asyncio.gather(write(), read())
    assert reads > 50
    reader.close()
    writer.close()


async def test_workers_share_one_sqlite_file(tmp_path: Path) -> None:
    """Two workers write and read the same SQLite file at the same time."""
    settings = feast_settings(tmp_path, "sqlite")
    workers = [open_feature_store(settings) for _ in range(2)]

    async def work(number: int) -> None:
        for batch in range(20):
            rows = [embedding(f"u{number}-{n}", T0_US + batch, batch) for n in range(50)]
            await workers[number].write((), rows)

    await asyncio.gather(work(0), work(1))
    for number in range(2):
        assert (await workers[1 - number].read(f"u{number}-49"))["model_version"] == 19
    for worker in workers:
        worker.close()


async def test_behaviours_make_the_fields(tmp_path: Path) -> None:
    """The setting `behaviours` decides the fields of the behaviour view, after a change as well."""
    settings = feast_settings(tmp_path, "sqlite")
    open_feature_store(settings).close()
    renamed = open_feature_store(msgspec.structs.replace(settings, behaviours={"listen": 1.0}))
    names = {feature.name for feature in (*behaviour_features(["listen"]), *EMBEDDING_FEATURES, *LIST_FEATURES)}
    assert set(await renamed.read("u")) == names
    renamed.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"online_store": "postgres://x"}, "neither sqlite nor redis://host:port"),
        ({"online_store": "redis://:secret@host:1"}, "neither sqlite nor redis://host:port"),
        ({"online_store": "redis://host"}, "neither sqlite nor redis://host:port"),
        ({"online_store": "redis://host:1", "redis_password": "secret,2"}, "redis_password: .* comma"),
        ({"feature_repo": "/nowhere"}, "feature_repo: /nowhere"),
    ],
)
def test_wrong_settings_are_said(tmp_path: Path, change: dict[str, str], message: str) -> None:
    """A wrong setting is named, and a secret in its value is not repeated."""
    with pytest.raises(SettingsError, match=message) as raised:
        apply(msgspec.structs.replace(feast_settings(tmp_path, "sqlite"), **change))
    assert "secret" not in str(raised.value)


async def all_unavailable(store: FeastStore) -> None:
    """Every verb says `Unavailable`, and within seconds."""
    verbs: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.write([behaviour("u", T0_US)]),
        lambda: store.write((), [embedding("u", T0_US)]),
        lambda: store.delete(["u"]),
        lambda: store.read("u"),
        store.ping,
    ]
    for verb in verbs:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="Redis"):
            await verb()
        assert time.monotonic() - started < 5


async def test_unreachable_redis_is_unavailable(tmp_path: Path) -> None:
    """A store without its Redis starts and is `Unavailable`."""
    store = open_feature_store(feast_settings(tmp_path, "redis://127.0.0.1:9"))
    await all_unavailable(store)
    store.close()


async def test_paused_redis_is_unavailable_and_comes_back(redis: RunningRedis, tmp_path: Path) -> None:
    """A paused Redis is `Unavailable` in time, and the same store works afterwards."""
    store = open_feature_store(feast_settings(tmp_path, redis.url))
    await store.ping()
    os.kill(redis.process.pid, signal.SIGSTOP)
    try:
        await all_unavailable(store)
    finally:
        os.kill(redis.process.pid, signal.SIGCONT)
    await store.write((), [embedding("paused", T0_US, 9)])
    assert (await store.read("paused"))["model_version"] == 9
    store.close()


async def test_emptied_redis_is_written_again(redis: RunningRedis, tmp_path: Path) -> None:
    """A write restores rows and script of a Redis that restarted empty."""
    store = open_feature_store(feast_settings(tmp_path, redis.url))
    await store.write((), [embedding("emptied", T0_US, 1)])
    with Redis(port=redis.port) as client:
        client.flushall()
        client.script_flush()
    assert (await store.read("emptied"))["model_version"] is None
    await store.write((), [embedding("emptied", T0_US, 1)])
    assert (await store.read("emptied"))["model_version"] == 1
    store.close()


@pytest.fixture
def guarded_redis(tmp_path: Path) -> Iterator[Settings]:
    """A Redis that speaks TLS alone and asks for a name and a password: the settings that reach it."""
    [port] = choose_ports(redis_server.PORTS, asked={}, preferred={}).values()
    certificate, key = self_signed(tmp_path)
    command = [executable("redis-server"), "--bind", "127.0.0.1", "--port", "0", "--tls-port", port]
    command += ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no", "--save", ""]
    command += ["--user", "ann", "on", ">s3cret=1", "~*", "+@all", "--user", "default", "off"]
    given = {"redis_ca": str(certificate), "redis_username": "ann", "redis_password": "s3cret=1"}
    settings = msgspec.structs.replace(feast_settings(tmp_path / "feast", f"rediss://127.0.0.1:{port}"), **given)

    def answers() -> bool:
        with contextlib.suppress(RedisError):
            return bool(redis_client(redis_options(settings) or {}).ping())
        return False

    log = tmp_path / "redis.log"
    process = spawn([*map(str, command)], log=log, env=os.environ)
    try:
        wait_until_ready("Redis", process, answers, seconds=20, log=log)
        yield settings
    finally:
        kill(process)


async def test_redis_over_tls_with_a_password(guarded_redis: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store and Feast's client use Redis over TLS, keep the password out of files and name a wrong password."""
    store = open_feature_store(guarded_redis)
    await store.write((), [embedding("u", T0_US, 4)])
    assert (await store.read("u"))["model_version"] == 4
    monkeypatch.setenv("FRESHET_REDIS_PASSWORD", guarded_redis.redis_password or "")
    answer = Feast(fs_yaml_file=store.file).get_online_features([f"{EMBEDDING_VIEW}:model_version"], [{"user_id": "u"}])
    assert answer.to_dict()["model_version"] == [4]
    store.close()
    assert not [path for path in store.file.parent.iterdir() if b"s3cret" in path.read_bytes()]
    for wrong in ({"redis_password": "other"}, {"redis_ca": None}):
        store = open_feature_store(msgspec.structs.replace(guarded_redis, **wrong))
        with pytest.raises(Unavailable, match="Redis"):
            await store.ping()
        store.close()


async def test_locked_sqlite_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    """A write to a locked SQLite waits and is `Unavailable`, while reads and the event loop go on."""
    store = open_feature_store(feast_settings(tmp_path, "sqlite"))
    await store.write((), [embedding("u", T0_US, 1)])
    other = sqlite3.connect(tmp_path / "online.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for write in (lambda: store.write((), [embedding("u", T0_US + 1, 2)]), lambda: store.delete(["u"])):
        ticks, writing = 0, asyncio.ensure_future(write())
        while not writing.done():
            await asyncio.sleep(0.01)
            ticks += 1
        with pytest.raises(Unavailable, match="SQLite"):
            await writing
        assert ticks > 20
    assert (await store.read("u"))["model_version"] == 1
    other.execute("ROLLBACK")
    other.close()
    await store.write((), [embedding("u", T0_US + 1, 2)])
    assert (await store.read("u"))["model_version"] == 2
    store.close()


async def test_writes_outlive_a_killed_process(tmp_path: Path) -> None:
    """A returned write survives a kill of its process."""
    settings = feast_settings(tmp_path, "sqlite")
    await open_feature_store(settings).write((), [embedding("u", T0_US, 1)])
    as_left = shutil.copytree(tmp_path, tmp_path / "as left")
    survivor = open_feature_store(msgspec.structs.replace(settings, feast_dir=str(as_left)))
    assert (await survivor.read("u"))["model_version"] == 1
    survivor.close()


async def test_stamps_are_numbers_beside_the_features(feast_store: FeastStore) -> None:
    """They are kept by name, over another opening too, and cleared by prefix."""
    assert await feast_store.stamp("g-1") is None
    await feast_store.set_stamp("g-1", 3)
    await feast_store.set_stamp("g-1", 4)
    await feast_store.set_stamp("h-1", 2**53)
    assert (await feast_store.stamp("g-1"), await feast_store.stamp("h-1")) == (4, 2**53)
    assert await feast_store.stamps("g-") == ["g-1"]
    for _ in range(2):
        await feast_store.clear_stamps("g-")
        assert await feast_store.stamps("g-") == []
    assert (await feast_store.stamp("g-1"), await feast_store.stamp("h-1")) == (None, 2**53)
