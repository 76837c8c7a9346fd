"""Faust's table of user states: recovered from the changelog, kept in RocksDB files, written a run at a time.

Imported by `freshet.serving.app` alone: importing faust reads `sys.argv`.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faust.stores.rocksdb import Store
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery, ServiceStopped
from faust.tables.table import Table
from mode import Service
from rocksdict import WriteBatch

from freshet.adapters.kafka import KafkaPublisher
from freshet.core.state import UserState, decode_state, sound_state
from freshet.errors import FreshetError
from freshet.ports import Message
from freshet.process import metrics
from freshet.process.watchdog import fail_fast

ROCKSDB_OPTIONS: Mapping[str, Any] = {
    "driver": "rocksdict",
    "block_cache_size": 16 * 1024 * 1024,
    "write_buffer_size": 8 * 1024 * 1024,
    "max_write_buffer_number": 2,
    "max_open_files": 256,
}
"""Per partition; Faust's defaults are 2 GiB of cache and 3 × 64 MiB of memtables."""

PATIENCE_SECONDS = 120
"""A recovery that gets nothing of what it waits for in so long ends the worker."""

DAMAGED = "DAMAGED"
"""A file of this name in a partition's folder: its files could not be read, and the next start rebuilds them."""

log = logging.getLogger(__name__)


class RecoveryError(FreshetError):
    """States cannot be recovered from the changelog; the message says why."""


class StateFilesError(FreshetError):
    """A partition's local files cannot be read or written; the message says what comes of it."""


class StateRecovery(Recovery):
    """Faust's recovery, which ends the worker where it does not go on.

    Faust takes a step that is not done in time for its own stop, and ends the
    recovery without a word; and for records of the changelog it waits without end.
    The worker would hold its partitions and read nothing.
    """

    @Service.task
    async def _expect_records(self) -> None:
        """See to it that the changelog comes in."""
        left = quiet = 0
        async for _ in self.itertimer(1.0):
            reading = self.in_recovery and self.app.consumer.flow_active
            before, left = left, self.active_remaining_total() if reading else 0
            quiet = quiet + 1 if left and left == before else 0
            if quiet >= PATIENCE_SECONDS:
                fail_fast(RecoveryError(f"{left} records of the changelog did not come in {quiet} s"))

    async def _wait(self, coro: Any, timeout: float | None = None) -> None:
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if self.should_stop:
                raise
            fail_fast(RecoveryError(f"a step of the recovery of states took longer than {timeout} s"))


class StateTables(TableManager):
    """Faust's tables with that recovery."""

    @property
    def recovery(self) -> StateRecovery:
        """The recovery of all tables."""
        if self._recovery is None:
            self._recovery = StateRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class RocksDBStore(Store):
    """Faust's RocksDB store, mended in five places.

    A partition folder that cannot be opened is deleted and rebuilt from the
    changelog; where it opens and cannot be read, the worker ends and the next start
    rebuilds it; a changelog record, of which a recovery gets runs, never replaces a
    newer state, for a zombie worker may have written an older one behind it; one
    that is no state, which no worker has written, is left out and told; and where
    states cannot be taken the worker ends, where Faust logs it and waits for ever.
    """

    def _open_for_partition(self, partition: int) -> Any:
        path = self.partition_path(partition)
        if (path / DAMAGED).exists():
            log.warning("state files damaged, rebuilding from the changelog", extra={"partition": partition})
            shutil.rmtree(path)
        try:
            return self._open_readable(partition)
        except Exception as error:
            if _is_held(path, str(error)):
                raise  # by this process, of an assignment before: Faust tries again
            if _is_full(error):
                fail_fast(_no_space(path))
            log.warning("state files unreadable, rebuilding from the changelog", extra={"why": str(error)[:200]})
        shutil.rmtree(path, ignore_errors=True)
        try:
            return self._open_readable(partition)
        except Exception as error:
            fail_fast(StateFilesError(f"the state files of partition {partition} cannot be made in {path}: {error}"))

    def _open_readable(self, partition: int) -> Any:
        """Open a partition's files, and read what a recovery begins with."""
        database = super()._open_for_partition(partition)
        try:
            database.get(self.offset_key)
        except Exception:
            database.close()
            raise
        return database

    def read_states(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of a partition's keys, None where there is none. Raises `StateFilesError`."""
        database = self._db_for_partition(partition)
        try:
            return database.get(list(keys))
        except Exception as error:
            raise self._broken(partition, error) from None

    def users(self, partition: int) -> list[bytes]:
        """Every user with a state. Raises `StateFilesError`."""
        try:
            return [key for key in self._db_for_partition(partition).keys() if key != self.offset_key]  # noqa: SIM118
        except Exception as error:
            raise self._broken(partition, error) from None

    def write_states(self, partition: int, values: Mapping[bytes, bytes], offset: int) -> None:
        """Write values and the changelog offset they are good for, in one atomic batch. Raises `StateFilesError`."""
        database, batch = self._db_for_partition(partition), WriteBatch(raw_mode=True)
        for key, value in values.items():
            batch.put(key, value)
        batch.put(self.offset_key, str(offset).encode())
        try:
            database.write(batch)
        except Exception as error:
            raise self._broken(partition, error) from None

    def apply_changelog_batch(self, batch: Any, to_key: Any, to_value: Any) -> None:
        """Write runs of changelog records during recovery, newest source offset winning, each run in one batch."""
        for event in batch:
            message = event.message
            try:
                self._apply(message.partition, message.value.records, message.offset)
            except StateFilesError as error:
                fail_fast(error)
            except Exception as error:
                where = f"topic {message.topic}, partition {message.partition}, up to offset {message.offset}"
                fail_fast(RecoveryError(f"states cannot be taken from the changelog ({where}): {error!r}"))

    def _apply(self, partition: int, records: Sequence[Any], offset: int) -> None:
        """Write the newest value of each key among changelog records, where it is no older than the stored one."""
        states = [(record, state) for record in records if (state := _state_of(record, partition)) is not None]
        keys = list({record.key for record, _ in states})
        stored = self.read_states(partition, keys)
        reached = {key: decode_state(raw).offset if raw else -1 for key, raw in zip(keys, stored, strict=True)}
        newest: dict[bytes, bytes] = {}
        for record, state in states:
            if state.offset >= reached[record.key]:
                reached[record.key] = state.offset
                newest[record.key] = record.value
        self.write_states(partition, newest, offset)

    def _broken(self, partition: int, error: Exception) -> StateFilesError:
        """The error to end with; the next start rebuilds the files, unless the disk alone is full."""
        path = self.partition_path(partition)
        if _is_full(error):
            return _no_space(path)
        (path / DAMAGED).touch()
        return StateFilesError(
            f"the state files of partition {partition} in {path} are damaged ({error}): "
            "the next start rebuilds them from the changelog"
        )


def _is_held(path: Path, why: str) -> bool:
    """Whether RocksDB did not open a folder because this or another process has it open, by RocksDB's own words."""
    here = why.startswith("IO error: lock hold by current process") and f"{path / 'LOCK'}:" in why
    return here or why.startswith(f"IO error: While lock file: {path / 'LOCK'}:")


def _is_full(error: Exception) -> bool:
    return str(error).startswith(f"IO error: {os.strerror(errno.ENOSPC)}")


def _no_space(path: Path) -> StateFilesError:
    return StateFilesError(f"no space left on the disk of {path}: free some, and start the worker again")


def _state_of(record: Any, partition: int) -> UserState | None:
    """The state that a record of the changelog holds; None for a tombstone, and for what is told to be no state."""
    if record.value is None:
        return None
    state = sound_state(record.value) if record.key else "no state: a record without a key"
    if isinstance(state, UserState):
        return state
    metrics.REFUSED_STATES.inc()
    log.error(
        "a record of the changelog is left out: where a user's state was lost, their next events begin a new one",
        extra={"partition": partition, "offset": record.offset, "why": state},
    )
    return None


class StateTable(Table):
    """A Faust table read and written a run at a time.

    Faust recovers it, assigns its partitions and creates its changelog. Its
    per-key path costs 60 µs a user and only logs a failed changelog send, so
    runs are written here: first the changelog, awaited through librdkafka, then
    RocksDB, in one atomic batch with the changelog offset it is good for. The
    local files thus always hold the changelog up to that offset: where another
    worker has written in between, it stays, and the next recovery reads on from it.
    """

    def __init__(self, *args: Any, publisher: KafkaPublisher | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.publisher = publisher

    def _new_store(self) -> RocksDBStore:
        return RocksDBStore(
            "rocksdb://",
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            key_serializer=self.key_serializer,
            value_type=self.value_type,
            value_serializer=self.value_serializer,
            options=dict(ROCKSDB_OPTIONS),
        )

    async def write(self, partition: int, values: Mapping[bytes, bytes]) -> None:
        """Write to the changelog, then to RocksDB. Raises `DeliveryError`, `StateFilesError`."""
        assert self.publisher is not None
        topic = self.changelog_topic_name
        messages = [Message(topic, key, value) for key, value in values.items()]
        highest = await self.publisher.publish_to(partition, messages)
        store = self.data
        reached = int(store.read_states(partition, [store.offset_key])[0] or -1)
        follows = highest - len(messages) == reached
        store.write_states(partition, values, highest if follows else reached)


class PartitionState:
    """A `freshet.ports.StateStore` over one partition of the table."""

    def __init__(self, table: StateTable, partition: int) -> None:
        self._table = table
        self._partition = partition

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The stored states in the given order, None where there is none."""
        return self._table.data.read_states(self._partition, [user_id.encode() for user_id in user_ids])

    def users(self) -> list[str]:
        """Every user with a state."""
        return [key.decode() for key in self._table.data.users(self._partition)]

    async def write(self, states: Mapping[str, bytes]) -> None:
        """Write to the changelog and RocksDB; durable on return. Raises `DeliveryError`."""
        if states:
            await self._table.write(self._partition, {user.encode(): state for user, state in states.items()})
