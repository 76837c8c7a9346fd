"""Feast's history of the behaviour view: one row per event, folded from the archive.

    ARCHIVE/user_behaviour/date=2026-11-25/00000-…-….parquet

A row is the fold of the user's events up to that one, under the timestamp that
the live worker writes it to the online store with. So the newest row at or
before a time is the user's state at that time, and Feast's point-in-time join
finds it. Rows of users who opted out or were erased are taken out, up to then.

The files form chains by the archive's offsets (`archive.chain`), the users'
states lie beside them, and a run goes on where the last one ended. A file
comes before the states it was made with: after a cut the events between are
folded again, and rows that are there already are not written again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from freshet.adapters.rocks import RocksStateStore
from freshet.archive.appender import Appender
from freshet.archive.chain import ArchiveError, Chain
from freshet.core.events import ERASE, OPT_OUT, BadEvent, Event
from freshet.core.features import behaviour_features, behaviour_row
from freshet.core.state import Outcome, UserState, decode_state, empty_state, encode_state, fold
from freshet.files import HeldError, held
from freshet.logs.source import decoded, open_log
from freshet.ports import Record
from freshet.settings import Settings

FOLDER = "user_behaviour"
CHUNK = 50_000
"""Events between two times that the states are saved."""
ROW_BYTES = 1024
"""About what a row takes in memory."""

Row = tuple[Any, ...]
_CHANGED = (Outcome.APPLIED, Outcome.FIRST_TOUCH)
_KINDS = {
    "int64": pa.int64(),
    "float32": pa.float32(),
    "list[string]": pa.list_(pa.string()),
    "list[int64]": pa.list_(pa.int64()),
}


class Extended(msgspec.Struct):
    """What a run did."""

    events: int = 0
    rows: int = 0
    seconds: float = 0.0


async def extend(settings: Settings, started: Callable[[int | None], Any], advanced: Callable[[int], None]) -> Extended:
    """Bring the history up to the end of the archive.

    `started` is told how many events the archive holds, `advanced` how many each
    run of them had. Raises `LogError` for the archive, `ArchiveError` for the history.
    """
    began = time.monotonic()
    log = open_log(settings.archive_dir, settings)
    folder = Path(settings.archive_dir) / FOLDER
    done = Extended()
    with _alone(folder):
        states = _States(folder / ".state", settings)
        try:
            chains = {partition: Chain(folder, partition) for partition in log.partitions}
            for chain in chains.values():
                chain.tidy()
            if any(chain.end() < states.positions.get(chain.partition, 0) for chain in chains.values()):
                states.begin_anew()
            started(log.total)
            for partition, chain in chains.items():
                history = _PartitionHistory(settings, chain, states, done)
                for run in decoded(log, partition, settings, states.positions.get(partition, 0)):
                    await history.take(run)
                    advanced(len(run))
                await history.save()
        finally:
            states.close()
    done.seconds = round(time.monotonic() - began, 3)
    return done


class _PartitionHistory:
    """One partition's events on their way into its history."""

    def __init__(self, settings: Settings, chain: Chain, states: _States, done: Extended) -> None:
        self._behaviours = settings.behaviours
        self._length = settings.history
        self._chain = chain
        self._states = states
        self._done = done
        self._file_size = settings.archive_file_mb << 20
        encode = partial(_table, _schema(settings.behaviours))
        self._appender: Appender[Row] = Appender(chain, encode, self._file_size, lambda _: None)
        self._first = chain.end()
        self._forgotten: dict[str, int] = {}
        self._unsaved = 0

    async def take(self, run: Sequence[tuple[Record, Event | BadEvent]]) -> None:
        """Fold a run."""
        for record, event in run:
            row = self._fold(record, event) if isinstance(event, Event) else None
            if record.offset >= self._first:
                self._appender.take(record.offset, record.timestamp, ROW_BYTES, row)
                self._done.rows += row is not None
        self._done.events += len(run)
        self._states.positions[self._chain.partition] = run[-1][0].offset + 1
        self._unsaved += len(run)
        if self._unsaved >= CHUNK:
            await self.save()

    async def save(self) -> None:
        """Make all that was taken durable."""
        if self._unsaved:
            self._appender.cut()
            forget(self._chain, self._forgotten)
            await self._states.save()
            self._chain.merge(self._file_size)
            self._forgotten, self._unsaved = {}, 0

    def _fold(self, record: Record, event: Event) -> Row | None:
        """The user's row after an event; None where the event changed nothing that may be kept."""
        partition = self._chain.partition
        state = self._states.get(event.user_id, partition)
        if fold(state, event, partition, record.offset, self._length) not in _CHANGED:
            return None
        if event.type in (OPT_OUT, ERASE):
            self._forgotten[event.user_id] = state.feature_ts
        if state.consent:
            return None
        return event.user_id, state.feature_ts, *behaviour_row(state, self._behaviours), partition, record.offset


class _States:
    """The users' states, saved together with how far each partition is folded into them."""

    _FACTS = ""
    """A key that is no user id."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path = path
        self._folded_for = f"{', '.join(settings.behaviours)}, {settings.history} recent ones"
        self._users: dict[str, UserState] = {}
        self._store = RocksStateStore(path)
        [raw] = self._store.read([self._FACTS])
        before, self.positions = msgspec.msgpack.decode(raw, type=_Facts) if raw else (self._folded_for, {})
        if before != self._folded_for:
            self.close()
            raise ArchiveError(
                f"{path.parent} was folded for {before}, the settings say {self._folded_for}: "
                f"remove that folder to fold the archive anew"
            )

    def get(self, user_id: str, partition: int) -> UserState:
        """The user's state; folding into it is keeping it."""
        state = self._users.get(user_id)
        if state is None:
            [raw] = self._store.read([user_id])
            state = self._users[user_id] = empty_state(partition) if raw is None else decode_state(raw)
        return state

    async def save(self) -> None:
        """Keep what was folded, and where it ends."""
        states = {user_id: encode_state(state) for user_id, state in self._users.items()}
        states[self._FACTS] = msgspec.msgpack.encode((self._folded_for, self.positions))
        await self._store.write(states)
        self._users.clear()

    def begin_anew(self) -> None:
        """Forget everything, because files of the history have been removed. All events are folded again."""
        self._store.close()
        shutil.rmtree(self._path)
        self._store = RocksStateStore(self._path)
        self.positions = {}

    def close(self) -> None:
        """Close the store."""
        self._store.close()


_Facts = tuple[str, dict[int, int]]


def forget(chain: Chain, users: dict[str, int]) -> None:
    """Take out the users' rows up to a time of each (µs)."""
    if not users:
        return
    names, limits = pa.array(users.keys(), pa.string()), pa.array(users.values(), pa.int64())

    def later(table: pa.Table) -> pa.Table:
        limit = pc.take(limits, pc.index_in(table["user_id"], names))
        after = pc.greater(pc.cast(table["event_timestamp"], pa.int64()), limit)
        return table.filter(pc.or_(pc.is_null(limit), pc.fill_null(after, fill_value=False)))

    for segment in chain.segments():
        with pq.ParquetFile(segment.path) as file:
            table = file.read(["user_id", "event_timestamp"])
        if len(later(table)) < len(table):
            chain.rewrite(segment, later)


def _schema(behaviours: Collection[str]) -> pa.Schema:
    return pa.schema(
        [
            ("user_id", pa.string()),
            ("event_timestamp", pa.timestamp("us", tz="UTC")),
            *((feature.name, _KINDS[feature.kind]) for feature in behaviour_features(behaviours)),
            ("partition", pa.int32()),
            ("offset", pa.int64()),
        ]
    )


def _table(schema: pa.Schema, rows: Sequence[Row]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises `ArchiveError` where another process extends the history."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(folder / ".lock"):
            yield
    except HeldError:
        raise ArchiveError(f"another process is extending {folder}: wait for it") from None
