"""Rows in the layout of Feast's online stores, written without Feast.

Feast's `online_write_batch` takes several times as long per user, and importing
Feast takes seconds, so the worker writes the rows itself; the contract suite
holds them equal, byte for byte, to Feast's own. Sources: Feast 0.67's
`infra/online_stores/{redis,sqlite}.py`.

Order: a row older than the stored one is dropped and an equal one lands, so a
write may be repeated, and a worker that has lost its partition cannot put back
what its successor replaced. Redis holds that to the microsecond. Feast's SQLite
tables keep whole seconds: within one the last write wins, and order is the
caller's, who writes each user in log order. A delete leaves nothing behind that
would stop an older write.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol

import mmh3
from redis import Redis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from freshet.adapters.feast_values import ENCODERS, decode, varint
from freshet.core.features import Feature
from freshet.ports import FeatureRow, Unavailable

TIMEOUT_SECONDS = 2.0
"""Longest wait for an answer of Redis, and for SQLite's write lock."""
CHUNK = 64
"""Users per script call: enough to be cheap, few enough not to keep Redis's other clients waiting."""
JOIN_KEY = "user_id"


def entity_key(user_id: str) -> bytes:
    """The user's entity key in Feast's serialisation, version 3."""
    user = user_id.encode()
    return _KEY_HEAD + _KEY_VALUE.pack(_STRING_TYPE, len(user)) + user


_STRING_TYPE = 2
"""`ValueType.STRING`."""
_KEY_HEAD = struct.pack("<III", 1, _STRING_TYPE, len(JOIN_KEY)) + JOIN_KEY.encode()
_KEY_VALUE = struct.Struct("<II")


def redis_client(options: Mapping[str, Any]) -> Redis:
    """A client that gives up after `TIMEOUT_SECONDS` and does not retry: the caller does."""
    return Redis(
        **options,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


class EncodedRows(NamedTuple):
    """Rows of one view, serialised: entity keys, times in µs, and the values, a list per feature."""

    view: View
    keys: list[bytes]
    timestamps_us: list[int]
    columns: list[list[bytes]]


class View:
    """A feature view, and how its rows become serialised Feast values."""

    def __init__(self, name: str, features: Sequence[Feature]) -> None:
        self.name = name
        self.features = features

    def encode(self, rows: Sequence[FeatureRow]) -> EncodedRows:
        """The rows as Feast stores them."""
        columns = zip(*(row.values for row in rows), strict=True)
        return EncodedRows(
            self,
            [entity_key(row.user_id) for row in rows],
            [row.timestamp_us for row in rows],
            [ENCODERS[feature.kind](column) for feature, column in zip(self.features, columns, strict=True)],
        )


class Rows(Protocol):
    """Rows of an online store in Feast's layout. Library errors pass through."""

    def write(self, views: Sequence[EncodedRows]) -> None:
        """Write rows that are not older than what is stored."""

    def read(self, key: bytes, views: Sequence[View]) -> dict[str, Any]:
        """The features stored under an entity key by name, None for those absent: all as of one moment."""

    def delete(self, keys: list[bytes]) -> None:
        """Remove all that is stored under these entity keys."""

    def stamp(self, name: str) -> int | None:
        """The number stored under a name; None for none."""

    def set_stamp(self, name: str, number: int) -> None:
        """Store a number under a name."""

    def stamps(self, prefix: str) -> list[str]:
        """The names that begin so and have a number."""

    def clear_stamps(self, prefix: str) -> None:
        """Remove the numbers under names that begin so."""

    def ping(self) -> None:
        """Return if the store answers."""

    def close(self) -> None:
        """Close the connection."""


class RedisRows:
    """One hash per user: a field per feature, named by its hash, and a timestamp per view."""

    def __init__(self, client: Redis, project: bytes) -> None:
        self._client = client
        self._project = project

    def write(self, views: Sequence[EncodedRows]) -> None:
        """Write rows that are not older than what is stored, atomically per user where all views have the same rows."""
        calls: list[tuple[Any, ...]] = []
        for keys, names, columns in _written_together(views):
            rows = list(zip(*columns, strict=True))
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

    def read(self, key: bytes, views: Sequence[View]) -> dict[str, Any]:
        """The user's features; one command reads them all."""
        names = list(chain.from_iterable(map(_fields, views)))
        client: Any = self._client  # whose `hmget` is typed for text keys
        found = client.hmget(key + self._project, names)
        values = iter(found)
        features: dict[str, Any] = {}
        for view in views:
            next(values)  # the view's timestamp
            features |= {feature.name: _decoded(next(values)) for feature in view.features}
        return features

    def delete(self, keys: list[bytes]) -> None:
        """Remove the users' hashes, whatever views they hold."""
        self._client.delete(*(key + self._project for key in keys))

    def stamp(self, name: str) -> int | None:
        """A field of the project's hash of stamps."""
        client: Any = self._client  # whose `hget` is typed for text keys
        found = client.hget(_STAMPS + self._project, name)
        return None if found is None else int(found)

    def set_stamp(self, name: str, number: int) -> None:
        """Store the field."""
        client: Any = self._client
        client.hset(_STAMPS + self._project, name, number)

    def stamps(self, prefix: str) -> list[str]:
        """The fields that begin so."""
        client: Any = self._client
        names = (name.decode() for name in client.hkeys(_STAMPS + self._project))
        return [name for name in names if name.startswith(prefix)]

    def clear_stamps(self, prefix: str) -> None:
        """Remove the fields."""
        if cleared := self.stamps(prefix):
            self._client.hdel(_STAMPS + self._project, *cleared)  # type: ignore[arg-type]

    def ping(self) -> None:
        """Return if Redis answers."""
        self._client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


_STAMPS = b"freshet-stamps:"

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


_Together = tuple[list[bytes], list[bytes], list[list[bytes]]]
"""Entity keys, names of fields (a timestamp's first), and a column per field."""


def _written_together(views: Sequence[EncodedRows]) -> list[_Together]:
    """The rows of several views as those of one, where they are of the same users and times: a reader sees all or none.

    The first view's timestamp decides for all of them whether a row is older than what is stored.
    """
    together: list[_Together] = []
    times: list[int] = []
    for view, keys, timestamps_us, columns in views:
        names, values = _fields(view), [list(map(_timestamp, timestamps_us)), *columns]
        if together and together[-1][0] == keys and times == timestamps_us:
            together[-1][1].extend(names)
            together[-1][2].extend(values)
        else:
            together.append((keys, names, values))
            times = timestamps_us
    return together


def _fields(view: View) -> list[bytes]:
    """The names of a view's fields in a hash, the timestamp first."""
    hashes = (mmh3.hash(f"{view.name}:{feature.name}", signed=False) for feature in view.features)
    return [f"_ts:{view.name}".encode(), *(struct.pack("<I", number) for number in hashes)]


def _decoded(raw: bytes | None) -> Any:
    return None if raw is None else decode(raw)


def _timestamp(timestamp_us: int) -> bytes:
    """A serialised google.protobuf.Timestamp."""
    seconds, micros = divmod(timestamp_us, 1_000_000)
    return b"\x08" + varint(seconds) + (b"\x10" + varint(micros * 1000) if micros else b"")


class SqliteRows:
    """One table per view, one row per user and feature; the file is shared with other workers and readers.

    `value_text`, which only Feast's document search reads, is left empty. The
    write-ahead log is not synced at every commit: rows outlive a killed
    process, the last ones may not outlive a power cut.
    """

    def __init__(self, path: str, project: str, views: Sequence[View]) -> None:
        self._tables = {view.name: f'"{project}_{view.name}"' for view in views}
        self._upserts = {view.name: _upsert(self._tables[view.name], view) for view in views}
        self._connection = sqlite3.connect(path, timeout=TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS freshet_stamps (name TEXT PRIMARY KEY, number INTEGER)")

    def write(self, views: Sequence[EncodedRows]) -> None:
        """Write rows that are not older than what is stored, all or none."""
        with self._transaction() as connection:
            for view, keys, timestamps_us, columns in views:
                seconds = [timestamp_us // 1_000_000 for timestamp_us in timestamps_us]
                connection.executemany(self._upserts[view.name], zip(keys, seconds, *columns, strict=True))

    def read(self, key: bytes, views: Sequence[View]) -> dict[str, Any]:
        """The user's features; one statement reads them all."""
        selects = (
            f"SELECT feature_name, value FROM {self._tables[view.name]} WHERE entity_key = ?1"  # noqa: S608
            for view in views
        )
        found = dict(self._connection.execute(" UNION ALL ".join(selects), (key,)).fetchall())
        return {feature.name: _decoded(found.get(feature.name)) for view in views for feature in view.features}

    def delete(self, keys: list[bytes]) -> None:
        """Remove the users' rows from all tables."""
        with self._transaction() as connection:
            for table in self._tables.values():
                connection.executemany(f"DELETE FROM {table} WHERE entity_key = ?", [(key,) for key in keys])  # noqa: S608

    def stamp(self, name: str) -> int | None:
        """A row of the table of stamps."""
        found = self._connection.execute("SELECT number FROM freshet_stamps WHERE name = ?", (name,)).fetchone()
        return None if found is None else int(found[0])

    def set_stamp(self, name: str, number: int) -> None:
        """Store the row."""
        self._connection.execute("INSERT OR REPLACE INTO freshet_stamps VALUES (?, ?)", (name, number))

    def stamps(self, prefix: str) -> list[str]:
        """The names of the rows that begin so."""
        sql = "SELECT name FROM freshet_stamps WHERE substr(name, 1, length(?1)) = ?1"
        return [name for (name,) in self._connection.execute(sql, (prefix,)).fetchall()]

    def clear_stamps(self, prefix: str) -> None:
        """Remove the rows."""
        self._connection.execute("DELETE FROM freshet_stamps WHERE substr(name, 1, length(?1)) = ?1", (prefix,))

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


def _upsert(table: str, view: View) -> str:
    """One statement per user; its parameters are the entity key, the time in s, and the values."""
    names = [feature.name.replace("'", "''") for feature in view.features]
    rows = ", ".join(f"(?1, '{name}', ?{number}, ?2)" for number, name in enumerate(names, 3))
    return (
        f"INSERT INTO {table} (entity_key, feature_name, value, event_ts) VALUES {rows} "  # noqa: S608
        "ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, event_ts = excluded.event_ts "
        f"WHERE excluded.event_ts >= {table}.event_ts"
    )


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
def unavailable() -> Iterator[None]:
    """Say `Unavailable` for what may pass by itself; any other error is a surprise and goes through."""
    try:
        yield
    except _REDIS_AWAY as error:
        raise Unavailable(f"Redis: {error}") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in _SQLITE_AWAY:
            raise
        raise Unavailable(f"SQLite: {error}") from error
