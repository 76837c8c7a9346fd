"""States in a RocksDB of their own, through rocksdict: for replays whose users do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rocksdict import AccessType, Checkpoint, Options, Rdict, WriteBatch


class RocksStateStore:
    """A `StateStore` over one database."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        self._db = Rdict(str(path), options=options, access_type=AccessType.read_write())

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The stored states in the given order, None where there is none."""
        return [self._db.get(user_id.encode()) for user_id in user_ids]

    async def write(self, states: Mapping[str, bytes]) -> None:
        """Store states by user id, all or none."""
        batch = WriteBatch(raw_mode=True)
        for user_id, state in states.items():
            batch.put(user_id.encode(), state)
        self._db.write(batch)

    def checkpoint(self, path: Path) -> None:
        """A consistent copy at `path`, by hard links."""
        self._db.flush()
        Checkpoint(self._db).create_checkpoint(str(path))

    def close(self) -> None:
        """Close the database."""
        self._db.close()
