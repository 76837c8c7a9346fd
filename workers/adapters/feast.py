"""The online feature store: Feast's definitions and reads, and writes in Feast's own row layout.

Feast serves: whoever asks `get_online_features` reads what is written here.
Its `online_write_batch` takes several times as long per user and is not used:
rows are laid out as it lays them out (the contract suite holds the two equal)
and written in one script call or transaction per chunk.

Order: a row older than the stored one is dropped and an equal one lands, so a
write may be repeated, and a worker that has lost its partition cannot put back
what its successor replaced. Redis holds that to the microsecond. Feast's SQLite
tables keep whole seconds: within one the last write wins, and order is the
caller's, who writes each user in log order. A delete leaves nothing behind that
would stop an older write.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import re
import shutil
import sqlite3
import struct
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

import mmh3
import numpy as np
import yaml  # type: ignore[import-untyped]
from feast import FeatureStore as Feast
from feast import RepoConfig
from feast.protos.feast.types.Value_pb2 import Int64List, StringList, Value, ValueType
from redis import Redis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from workers.core.features import EMBEDDING_FEATURES, Feature, behaviour_features
from workers.ports import FeatureRow, Unavailable
from workers.settings import Settings, SettingsError

TIMEOUT_SECONDS = 2.0
"""Longest wait for an answer of Redis, and for SQLite's write lock."""
CHUNK = 64
"""Users per script call: enough to be cheap, few enough not to keep Redis's other clients waiting."""

BEHAVIOUR_VIEW = "user_behaviour"
EMBEDDING_VIEW = "user_embedding"
JOIN_KEY = "user_id"

_REDIS = re.compile(r"redis://([^:/@,\s]+:\d+)/?")
T = TypeVar("T")


def apply(settings: Settings) -> Path:
    """Register the definitions and make the online tables; applying twice changes nothing.

    Returns the `feature_store.yaml` by which any Feast client finds the store:
    `FeatureStore(fs_yaml_file=…)`, or FEAST_FS_YAML_FILE_PATH. The registry is
    replaced in one step and under a lock, so workers that start together, and
    readers, find a whole one. Redis is not asked. Raises `SettingsError` where
    `feature_repo` or `online_store` is wrong, `Unavailable` while SQLite is locked.
    """
    repository = Path(settings.feature_repo).resolve()
    folder = Path(settings.feast_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(settings, repository, folder)
    registry, fresh = folder / "registry.db", folder / "registry.db.new"
    with _locked(folder / "apply.lock"), _unavailable():
        fresh.unlink(missing_ok=True)
        if registry.exists():
            shutil.copyfile(registry, fresh)
        store = Feast(config=RepoConfig(**{**config, "registry": str(fresh)}))
        store.apply(list(_define(repository, settings.behaviours)))
        fresh.replace(registry)
        file = folder / "feature_store.yaml"
        rendered = folder / "feature_store.yaml.new"
        rendered.write_text(yaml.safe_dump(config, sort_keys=False))
        rendered.replace(file)
    return file


def open_feature_store(settings: Settings) -> FeastStore:
    """Apply the definitions and open the store they describe. Raises as `apply` does."""
    file = apply(settings)
    with _unavailable():
        return FeastStore(Feast(fs_yaml_file=file), settings.behaviours)


class FeastStore:
    """A `workers.ports.FeatureStore` over Feast with Redis or SQLite.

    All I/O runs in one thread of its own, in the order of the calls. Where the
    store cannot be reached, is too slow, full or locked, a method raises `Unavailable`
    within some seconds; a write may then have taken effect in part, and repeating it is safe.
    """

    def __init__(self, feast: Feast, behaviours: Collection[str]) -> None:
        self._feast = feast
        self._behaviour = _View(BEHAVIOUR_VIEW, behaviour_features(behaviours))
        self._embedding = _View(EMBEDDING_VIEW, EMBEDDING_FEATURES)
        self._references = [
            f"{view.name}:{feature.name}" for view in (self._behaviour, self._embedding) for feature in view.features
        ]
        self._rows = _open_rows(feast, (self._behaviour, self._embedding))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="features")

    async def write_behaviour(self, rows: Sequence[FeatureRow]) -> None:
        """Write the behaviour view. Raises `Unavailable`."""
        await self._run(self._write, self._behaviour, rows)

    async def write_embedding(self, rows: Sequence[FeatureRow]) -> None:
        """Write the embedding view. Raises `Unavailable`."""
        await self._run(self._write, self._embedding, rows)

    async def delete(self, user_ids: Sequence[str]) -> None:
        """Remove every row of these users. Raises `Unavailable`."""
        await self._run(self._delete, user_ids)

    async def read(self, user_id: str) -> dict[str, Any]:
        """All features of one user as Feast serves them; None for those absent. Raises `Unavailable`."""
        return await self._run(self._read, user_id)

    async def ping(self) -> None:
        """Return if the store answers. Raises `Unavailable`."""
        await self._run(self._rows.ping)

    def close(self) -> None:
        """Finish what is under way and close the connections."""
        self._thread.shutdown()
        self._rows.close()

    async def _run(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, call, *args)

    def _guarded(self, call: Callable[..., T], *args: Any) -> T:
        with _unavailable():
            return call(*args)

    def _write(self, view: _View, rows: Sequence[FeatureRow]) -> None:
        if rows:
            keys = [self._key(row.user_id) for row in rows]
            self._rows.write(view, keys, [row.timestamp_us for row in rows], view.encode(rows))

    def _delete(self, user_ids: Sequence[str]) -> None:
        if user_ids:
            self._rows.delete([self._key(user_id) for user_id in user_ids])

    def _read(self, user_id: str) -> dict[str, Any]:
        answer = self._feast.get_online_features(self._references, [{JOIN_KEY: user_id}]).to_dict()
        return {name: values[0] for name, values in answer.items() if name != JOIN_KEY}

    def _key(self, user_id: str) -> bytes:
        """The user's entity key in Feast's serialisation, version 3."""
        user = user_id.encode()
        return _KEY_HEAD + _KEY_VALUE.pack(ValueType.STRING, len(user)) + user


_KEY_HEAD = struct.pack("<III", 1, ValueType.STRING, len(JOIN_KEY)) + JOIN_KEY.encode()
_KEY_VALUE = struct.Struct("<II")


class _View:
    """A feature view, and how its rows become serialised Feast values."""

    def __init__(self, name: str, features: Sequence[Feature]) -> None:
        self.name = name
        self.features = features

    def encode(self, rows: Sequence[FeatureRow]) -> list[list[bytes]]:
        """The rows' values, a list per feature."""
        columns = zip(*(row.values for row in rows), strict=True)
        return [ENCODERS[feature.kind](column) for feature, column in zip(self.features, columns, strict=True)]


_MORE = 0x80
"""The bit of a varint's byte that says another one follows."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= _MORE:
        out.append(value & 0x7F | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(field: str, wire_type: int) -> bytes:
    return _varint(Value.DESCRIPTOR.fields_by_name[field].number << 3 | wire_type)


_VARINT, _LENGTH, _FIXED32 = 0, 2, 5
_INT64, _FLOAT = _tag("int64_val", _VARINT), _tag("float_val", _FIXED32)
_STRINGS, _INT64S, _FLOATS = (_tag(f"{kind}_list_val", _LENGTH) for kind in ("string", "int64", "float"))
_PACKED = b"\x0a"
"""The tag of a list message's only field, packed."""


def _encode_strings(column: Sequence[str]) -> list[bytes]:
    return [Value(string_val=value).SerializeToString() for value in column]


@lru_cache(maxsize=65_536)
def _encode_int64(value: int) -> bytes:
    return _INT64 + _varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)


def _encode_float32(value: float) -> bytes:
    return _FLOAT + struct.pack("<f", value)


def _encode_string_lists(column: Sequence[Sequence[str]]) -> list[bytes]:
    bodies = [StringList(val=values).SerializeToString() for values in column]
    return [_STRINGS + _varint(len(body)) + body for body in bodies]


def _encode_int64_lists(column: Sequence[Sequence[int]]) -> list[bytes]:
    """Times in ms fill six bytes as varints from 1971 to 2109, so a whole column of them is packed at once."""
    arrays = [values if isinstance(values, array) else array("q", values) for values in column]
    numbers = np.frombuffer(b"".join(arrays), np.int64)
    if numbers.size == 0 or numbers.min() < 1 << 35 or numbers.max() >= 1 << 42:
        bodies = [Int64List(val=values.tolist()).SerializeToString() for values in arrays]
        return [_INT64S + _varint(len(body)) + body for body in bodies]
    packed = np.empty((numbers.size, 6), np.uint8)
    for byte in range(6):
        packed[:, byte] = numbers >> (7 * byte) & 0x7F | _MORE
    packed[:, 5] ^= _MORE
    payload = packed.tobytes()
    encoded, start = [], 0
    for values in arrays:
        end = start + 6 * len(values)
        encoded.append(_packed(_INT64S, payload[start:end]))
        start = end
    return encoded


def _encode_float32_lists(column: Sequence[Sequence[float]]) -> list[bytes]:
    return [_packed(_FLOATS, np.asarray(values, "<f4").tobytes()) for values in column]


def _packed(tag: bytes, payload: bytes) -> bytes:
    body = _packed_head(len(payload)) if payload else b""
    return tag + _varint(len(body) + len(payload)) + body + payload


@lru_cache(maxsize=4096)
def _packed_head(length: int) -> bytes:
    return _PACKED + _varint(length)


ENCODERS: dict[str, Callable[[Sequence[Any]], list[bytes]]] = {
    "string": _encode_strings,
    "int64": lambda column: list(map(_encode_int64, column)),
    "float32": lambda column: list(map(_encode_float32, column)),
    "list[string]": _encode_string_lists,
    "list[int64]": _encode_int64_lists,
    "list[float32]": _encode_float32_lists,
}
"""Serialised Feast `Value`s of a column, by feature kind; the bytes are protobuf's own."""


class _Rows(Protocol):
    """Rows of an online store in Feast's layout. Library errors pass through."""

    def write(self, view: _View, keys: list[bytes], timestamps_us: list[int], columns: list[list[bytes]]) -> None:
        """Write rows that are not older than what is stored."""

    def delete(self, keys: list[bytes]) -> None:
        """Remove all that is stored under these entity keys."""

    def ping(self) -> None:
        """Return if the store answers."""

    def close(self) -> None:
        """Close the connection."""


class _RedisRows:
    """One hash per user: a field per feature, named by its hash, and a timestamp per view."""

    def __init__(self, client: Redis, project: bytes) -> None:
        self._client = client
        self._project = project

    def write(self, view: _View, keys: list[bytes], timestamps_us: list[int], columns: list[list[bytes]]) -> None:
        """Write rows that are not older than what is stored, atomically per row."""
        names = [f"_ts:{view.name}".encode()]
        names += [struct.pack("<I", mmh3.hash(f"{view.name}:{f.name}", signed=False)) for f in view.features]
        rows = list(zip(map(_timestamp, timestamps_us), *columns, strict=True))
        calls: list[tuple[Any, ...]] = []
        for start in range(0, len(keys), CHUNK):
            chunk = [key + self._project for key in keys[start : start + CHUNK]]
            values = chain.from_iterable(rows[start : start + CHUNK])
            calls.append((len(chunk), *chunk, len(names), *names, *values))
        try:
            self._call(calls)
        except redis_errors.NoScriptError:
            self._client.script_load(_WRITE_NEWER)
            self._call(calls)

    def _call(self, calls: list[tuple[Any, ...]]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.evalsha(_WRITE_NEWER_SHA, *call)
            pipe.execute()

    def delete(self, keys: list[bytes]) -> None:
        """Remove the users' hashes, whatever views they hold."""
        self._client.delete(*(key + self._project for key in keys))

    def ping(self) -> None:
        """Return if Redis answers."""
        self._client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


_WRITE_NEWER = """
-- KEYS: a hash per row; ARGV: width, `width` field names (the timestamp first), and so many values per row
local function moment(stamp)  -- seconds and nanoseconds of a serialised google.protobuf.Timestamp
  local parts, at = {0, 0}, 1
  while at <= #stamp do
    local part, value, scale, byte = math.floor(string.byte(stamp, at) / 8), 0, 1
    repeat
      at = at + 1
      byte = string.byte(stamp, at)
      value = value + byte % 128 * scale
      scale = scale * 128
    until byte < 128
    parts[part] = value
    at = at + 1
  end
  return parts[1], parts[2]
end
local width = tonumber(ARGV[1])
local fields = {}
for column = 1, width do fields[2 * column - 1] = ARGV[1 + column] end
for number, key in ipairs(KEYS) do
  local before = 1 + number * width
  local old, older = redis.call('HGET', key, fields[1]), false
  if old then
    local seconds, nanos = moment(ARGV[before + 1])
    local old_seconds, old_nanos = moment(old)
    older = seconds < old_seconds or (seconds == old_seconds and nanos < old_nanos)
  end
  if not older then
    for column = 1, width do fields[2 * column] = ARGV[before + column] end
    redis.call('HSET', key, unpack(fields))
  end
end
"""
_WRITE_NEWER_SHA = hashlib.sha1(_WRITE_NEWER.encode(), usedforsecurity=False).hexdigest()


def _timestamp(timestamp_us: int) -> bytes:
    """A serialised google.protobuf.Timestamp."""
    seconds, micros = divmod(timestamp_us, 1_000_000)
    return b"\x08" + _varint(seconds) + (b"\x10" + _varint(micros * 1000) if micros else b"")


class _SqliteRows:
    """One table per view, one row per user and feature; the file is shared with other workers and readers.

    `value_text`, which only Feast's document search reads, is left empty. The
    write-ahead log is not synced at every commit: rows outlive a killed
    process, the last ones may not outlive a power cut.
    """

    def __init__(self, path: str, project: str, views: Sequence[_View]) -> None:
        self._tables = {view.name: f'"{project}_{view.name}"' for view in views}
        self._upserts = {view.name: _upsert(self._tables[view.name], view) for view in views}
        self._connection = sqlite3.connect(path, timeout=TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")

    def write(self, view: _View, keys: list[bytes], timestamps_us: list[int], columns: list[list[bytes]]) -> None:
        """Write rows that are not older than what is stored, all or none."""
        seconds = [timestamp_us // 1_000_000 for timestamp_us in timestamps_us]
        with self._transaction() as connection:
            connection.executemany(self._upserts[view.name], zip(keys, seconds, *columns, strict=True))

    def delete(self, keys: list[bytes]) -> None:
        """Remove the users' rows from both tables."""
        with self._transaction() as connection:
            for table in self._tables.values():
                connection.executemany(f"DELETE FROM {table} WHERE entity_key = ?", [(key,) for key in keys])  # noqa: S608

    def ping(self) -> None:
        """Return if the file can be read and has its tables."""
        for table in self._tables.values():
            self._connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()  # noqa: S608

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _upsert(table: str, view: _View) -> str:
    """One statement per user; its parameters are the entity key, the time in s, and the values."""
    names = [feature.name.replace("'", "''") for feature in view.features]
    rows = ", ".join(f"(?1, '{name}', ?{number}, ?2)" for number, name in enumerate(names, 3))
    return (
        f"INSERT INTO {table} (entity_key, feature_name, value, event_ts) VALUES {rows} "  # noqa: S608
        "ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, event_ts = excluded.event_ts "
        f"WHERE excluded.event_ts >= {table}.event_ts"
    )


def _open_rows(feast: Feast, views: Sequence[_View]) -> _Rows:
    store = feast.config.online_store
    if store.type == "sqlite":
        return _SqliteRows(store.path, feast.config.project, views)
    host, port = store.connection_string.split(",")[0].split(":")
    client = Redis(
        host,
        int(port),
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    # Feast's own client would try three times more, holding up the writes behind a read
    online_store: Any = feast._get_provider().online_store  # noqa: SLF001
    online_store._client = client  # noqa: SLF001
    return _RedisRows(client, feast.config.project.encode())


def _config(settings: Settings, repository: Path, folder: Path) -> dict[str, Any]:
    """The repository's `feature_store.yaml` with the registry and the online store of the settings."""
    try:
        base = yaml.safe_load((repository / "feature_store.yaml").read_text())
    except OSError as error:
        raise SettingsError(f"feature_repo: {error.filename}: {error.strerror}") from None
    online: dict[str, Any]
    if settings.online_store == "sqlite":
        online = {"type": "sqlite", "path": str(folder / "online.db")}
    elif address := _REDIS.fullmatch(settings.online_store):
        seconds = f"socket_timeout={TIMEOUT_SECONDS},socket_connect_timeout={TIMEOUT_SECONDS}"
        online = {"type": "redis", "connection_string": f"{address[1]},{seconds}"}
    else:
        raise SettingsError("online_store is neither sqlite nor redis://host:port")
    return {**base, "registry": str(folder / "registry.db"), "online_store": online}


def _define(repository: Path, behaviours: Collection[str]) -> tuple[Any, ...]:
    """The Feast objects of the repository's `definitions.py`, which is no importable module here."""
    loader = SourceFileLoader("feature_repo_definitions", str(repository / "definitions.py"))
    module = ModuleType(loader.name)
    try:
        loader.exec_module(module)
    except FileNotFoundError as error:
        raise SettingsError(f"feature_repo: {error.filename} does not exist") from None
    objects: tuple[Any, ...] = module.define(behaviours)
    return objects


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
}
_REDIS_AWAY = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    """Say `Unavailable` for what may pass by itself; any other error is a surprise and goes through."""
    try:
        yield
    except _REDIS_AWAY as error:
        raise Unavailable(f"Redis: {error}") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in _SQLITE_AWAY:
            raise
        raise Unavailable(f"SQLite: {error}") from error
