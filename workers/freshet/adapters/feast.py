"""The online feature store: Feast's definitions; rows are written and read by `feast_rows`.

Feast serves: whoever asks `get_online_features` reads what is written here.
Feast is imported when it is needed, for importing it takes seconds and a
worker that starts again needs it for nothing.
"""
# ruff: noqa: PLC0415 - Feast is imported where it is used, as said above

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]

from freshet.adapters.feast_rows import (
    TIMEOUT_SECONDS,
    RedisRows,
    Rows,
    SqliteRows,
    View,
    entity_key,
    redis_client,
    unavailable,
)
from freshet.core.features import EMBEDDING_FEATURES, LIST_FEATURES, behaviour_features
from freshet.ports import FeatureRow
from freshet.settings import Settings, SettingsError

BEHAVIOUR_VIEW = "user_behaviour"
EMBEDDING_VIEW = "user_embedding"
LIST_VIEW = "user_list"

_REDIS = re.compile(r"(rediss?)://([^:/@,\s]+):(\d+)/?")
T = TypeVar("T")


def apply(settings: Settings) -> Path:
    """Register the definitions and make the online tables; what is applied already is left alone.

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
    file, applied = folder / "feature_store.yaml", folder / "applied.sha256"
    archive = str(Path(settings.archive_dir).resolve())
    fingerprint = _fingerprint(repository, config, settings.behaviours, archive)
    with _locked(folder / "apply.lock"), unavailable():
        if applied.exists() and applied.read_text() == fingerprint:
            return file
        from feast import FeatureStore, RepoConfig

        registry, fresh = folder / "registry.db", folder / "registry.db.new"
        fresh.unlink(missing_ok=True)
        if registry.exists():
            shutil.copyfile(registry, fresh)
        store = FeatureStore(config=RepoConfig(**{**config, "registry": str(fresh)}))
        store.apply(list(_define(repository, settings.behaviours, archive)))
        fresh.replace(registry)
        rendered = folder / "feature_store.yaml.new"
        rendered.write_text(yaml.safe_dump(config, sort_keys=False))
        rendered.replace(file)
        applied.write_text(fingerprint)
    return file


def apply_history(settings: Settings) -> Path:
    """`apply`, and beside its file one for `get_historical_features`, which has DuckDB for Feast's offline store.

    Feast's default one, Dask, fails on a history of more than one file. Whoever
    uses this file needs `feast[duckdb]`; who reads online features needs neither.
    """
    file = apply(settings)
    config = yaml.safe_load(file.read_text()) | {"offline_store": {"type": "duckdb"}}
    history, rendered = file.with_name("history.yaml"), file.with_name("history.yaml.new")
    rendered.write_text(yaml.safe_dump(config, sort_keys=False))
    rendered.replace(history)
    return history


def open_feature_store(settings: Settings) -> FeastStore:
    """Apply the definitions and open the store they describe. Raises as `apply` does."""
    file = apply(settings)
    with unavailable():
        return FeastStore(file, settings)


class FeastStore:
    """A `freshet.ports.FeatureStore` over Feast with Redis or SQLite.

    All I/O runs in one thread of its own, in the order of the calls. Where the
    store cannot be reached, is too slow, full or locked, a method raises `Unavailable`
    within some seconds; a write may then have taken effect in part, and repeating it is safe.
    """

    def __init__(self, file: Path, settings: Settings) -> None:
        self.file = file
        self._behaviour = View(BEHAVIOUR_VIEW, behaviour_features(settings.behaviours))
        self._embedding = View(EMBEDDING_VIEW, EMBEDDING_FEATURES)
        self._list = View(LIST_VIEW, LIST_FEATURES)
        self._views = (self._behaviour, self._embedding, self._list)
        self._rows = self._open_rows(redis_options(settings), yaml.safe_load(file.read_text()))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="features")

    async def write(
        self, behaviour: Sequence[FeatureRow], embedding: Sequence[FeatureRow] = (), lists: Sequence[FeatureRow] = ()
    ) -> None:
        """Write rows of the views. Raises `Unavailable`."""
        await self._run(self._write, behaviour, embedding, lists)

    async def delete(self, user_ids: Sequence[str]) -> None:
        """Remove every row of these users. Raises `Unavailable`."""
        await self._run(self._delete, user_ids)

    async def read(self, user_id: str) -> dict[str, Any]:
        """All features of one user, those that Feast serves; None for those absent. Raises `Unavailable`."""
        return await self._run(self._read, user_id)

    async def stamp(self, name: str) -> int | None:
        """The number stored under a name; None for none. Raises `Unavailable`."""
        return await self._run(self._rows.stamp, name)

    async def set_stamp(self, name: str, number: int) -> None:
        """Store a number under a name. Raises `Unavailable`."""
        await self._run(self._rows.set_stamp, name, number)

    async def stamps(self, prefix: str) -> list[str]:
        """The names that begin so and have a number. Raises `Unavailable`."""
        return await self._run(self._rows.stamps, prefix)

    async def clear_stamps(self, prefix: str) -> None:
        """Remove the numbers under names that begin so. Raises `Unavailable`."""
        await self._run(self._rows.clear_stamps, prefix)

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
        with unavailable():
            return call(*args)

    def _write(self, *rows_of: Sequence[FeatureRow]) -> None:
        written = [view.encode(rows) for view, rows in zip(self._views, rows_of, strict=True) if rows]
        if written:
            self._rows.write(written)

    def _delete(self, user_ids: Sequence[str]) -> None:
        if user_ids:
            self._rows.delete([entity_key(user_id) for user_id in user_ids])

    def _read(self, user_id: str) -> dict[str, Any]:
        return self._rows.read(entity_key(user_id), self._views)

    def _open_rows(self, redis: dict[str, Any] | None, config: dict[str, Any]) -> Rows:
        if redis is not None:
            return RedisRows(redis_client(redis), config["project"].encode())
        return SqliteRows(config["online_store"]["path"], config["project"], self._views)


def _config(settings: Settings, repository: Path, folder: Path) -> dict[str, Any]:
    """The repository's `feature_store.yaml` with the registry and the online store of the settings."""
    try:
        base = yaml.safe_load((repository / "feature_store.yaml").read_text())
    except OSError as error:
        raise SettingsError(f"feature_repo: {error.filename}: {error.strerror}") from None
    online: dict[str, Any]
    if settings.online_store == "sqlite":
        online = {"type": "sqlite", "path": str(folder / "online.db")}
    elif options := redis_options(settings):
        online = {"type": "redis", "connection_string": _connection_string(options)}
    else:
        raise SettingsError("online_store is neither sqlite nor redis://host:port nor rediss://host:port")
    return {**base, "registry": str(folder / "registry.db"), "online_store": online}


def redis_options(settings: Settings) -> dict[str, Any] | None:
    """What a client of redis-py connects with; None where the store is another."""
    address = _REDIS.fullmatch(settings.online_store)
    if address is None:
        return None
    options: dict[str, Any] = {"host": address[2], "port": int(address[3])}
    if address[1] == "rediss":
        options |= {"ssl": True, "ssl_ca_certs": settings.redis_ca}
    if settings.redis_password:
        options |= {"username": settings.redis_username, "password": settings.redis_password}
    return options


def _connection_string(options: dict[str, Any]) -> str:
    """Feast's form of the options; it puts the environment's variables in when it reads the file.

    Raises `SettingsError`.
    """
    rest: dict[str, Any] = {"socket_timeout": TIMEOUT_SECONDS, "socket_connect_timeout": TIMEOUT_SECONDS}
    rest |= {name: value for name, value in options.items() if name not in ("host", "port") and value is not None}
    if "password" in rest:
        if "," in rest["password"]:
            raise SettingsError("redis_password: Feast's clients take none with a comma")
        rest["password"] = "${FRESHET_REDIS_PASSWORD}"  # noqa: S105 - where it is, not what
    given = (f"{name}={str(value).lower() if value is True else value}" for name, value in rest.items())
    return ",".join((f"{options['host']}:{options['port']}", *given))


def _fingerprint(repository: Path, config: dict[str, Any], behaviours: Collection[str], archive: str) -> str:
    """A digest of all that applying depends on."""
    facts = [config, archive, list(behaviours), behaviour_features(behaviours), EMBEDDING_FEATURES, LIST_FEATURES]
    try:
        definitions = (repository / "definitions.py").read_bytes()
    except OSError as error:
        raise SettingsError(f"feature_repo: {error.filename}: {error.strerror}") from None
    return hashlib.sha256(definitions + repr(facts).encode()).hexdigest()


def _define(repository: Path, behaviours: Collection[str], archive: str) -> tuple[Any, ...]:
    """The Feast objects of the repository's `definitions.py`, which is no importable module here."""
    loader = SourceFileLoader("feature_repo_definitions", str(repository / "definitions.py"))
    module = ModuleType(loader.name)
    try:
        loader.exec_module(module)
    except FileNotFoundError as error:
        raise SettingsError(f"feature_repo: {error.filename} does not exist") from None
    objects: tuple[Any, ...] = module.define(behaviours, archive)
    return objects


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
