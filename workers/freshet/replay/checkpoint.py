"""The folder of a replay, and the checkpoints that a replay goes on from."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import msgspec

from freshet.adapters.rocks import RocksStateStore
from freshet.core.decoding import Undecodable, decode
from freshet.errors import FreshetError
from freshet.files import aside, write_whole
from freshet.replay.engine import Replay, SavedReplay
from freshet.replay.output import FolderOutput
from freshet.replay.states import MemoryStates, States, StoredStates

CHECKPOINT = "checkpoint.msgpack"
BEGUN = "begun"
"""Lies in the folder of a replay until it is complete: what is beside it is the replay's own."""
VERSION = 2
"""The version of the checkpoints that are written and read; a change to any saved struct raises it."""


class CheckpointError(FreshetError):
    """The folder's checkpoint is of another replay or cannot be read; the message says so."""


class ReplayCheckpoint(msgspec.Struct, frozen=True):
    """How far a replay has come.

    `identity` is a digest of everything that makes this replay. `number` counts the replay's checkpoints. `parts`
    holds the number of output parts of each kind. `states` holds the users' encoded states, and is None if the states
    lie on disk.
    """

    identity: str
    number: int
    parts: dict[str, int]
    replay: SavedReplay
    states: dict[str, bytes] | None


class _File(msgspec.Struct, frozen=True):
    """A checkpoint on disk. The version comes first. The digest says whether the content is whole."""

    version: int
    digest: bytes
    content: bytes


_file = msgspec.msgpack.Decoder(_File)
_checkpoint = msgspec.msgpack.Decoder(ReplayCheckpoint)


def read_checkpoint(path: Path) -> ReplayCheckpoint:
    """Read a checkpoint. Raises `CheckpointError` where it is of another version, or damaged."""
    try:
        file = decode(_file, path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if isinstance(file, Undecodable) and not file.well_formed:
        raise CheckpointError(f"{path} is damaged ({file.why}): {_ANEW}")
    if isinstance(file, Undecodable) or file.version != VERSION:
        raise CheckpointError(f"{path} was written by another version of freshet: go on with that version, or {_ANEW}")
    if _digest(file.content) != file.digest:
        raise CheckpointError(f"{path} is damaged (its digest differs): {_ANEW}")
    checkpoint = decode(_checkpoint, file.content)
    if isinstance(checkpoint, Undecodable):
        raise CheckpointError(f"{path} cannot be read ({checkpoint.why}): {_ANEW}")
    return checkpoint


_ANEW = "replay anew with another --out"


def write_checkpoint(path: Path, checkpoint: ReplayCheckpoint) -> None:
    """Write a checkpoint, whole or not at all."""
    content = msgspec.msgpack.encode(checkpoint)
    write_whole(path, msgspec.msgpack.encode(_File(VERSION, _digest(content), content)))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


class Folder:
    """The folder of a replay: output parts, states on disk, the checkpoint.

    `identity` says which replay it is: the source, the models, and the settings that matter.
    """

    def __init__(self, path: Path, identity: dict[str, Any], output: FolderOutput, *, on_disk: bool) -> None:
        self.path = path
        self.identity = _digest(msgspec.msgpack.encode(identity, order="deterministic")).hex()
        self.output = output
        self._store: RocksStateStore | None = None
        self._number = 0
        self._on_disk = on_disk

    @property
    def checkpoint(self) -> Path:
        """The file that says how far the replay has come."""
        return self.path / CHECKPOINT

    def open_states(self) -> States:
        """States as of the last checkpoint, or none yet."""
        if not self._on_disk:
            return MemoryStates()
        self._store = RocksStateStore(self.path / "state")
        return StoredStates(self._store)

    async def save(self, replay: Replay, states: States) -> None:
        """Make what was done so far durable; the replay is drained."""
        await replay.drain()
        await self.output.settle()
        parts = self.output.cut()
        self._number += 1
        if isinstance(states, StoredStates) and self._store is not None:
            await states.write()
            shutil.rmtree(self._saved_states(self._number), ignore_errors=True)  # a save that was cut off left it
            self._store.checkpoint(self._saved_states(self._number))
        in_memory = states.saved() if isinstance(states, MemoryStates) else None
        write_checkpoint(
            self.checkpoint, ReplayCheckpoint(self.identity, self._number, parts, replay.saved(), in_memory)
        )
        shutil.rmtree(self._saved_states(self._number - 1), ignore_errors=True)

    def load(self) -> ReplayCheckpoint:
        """Read the last checkpoint, and remove everything that was written after it. Raises `CheckpointError`."""
        checkpoint = read_checkpoint(self.checkpoint)
        if checkpoint.identity != self.identity:
            raise CheckpointError(
                f"{self.path} holds another replay (source, models or settings differ): choose another --out"
            )
        self._number = checkpoint.number
        self.output.restore(checkpoint.parts)
        if self._on_disk:
            shutil.rmtree(self.path / "state", ignore_errors=True)
            shutil.copytree(self._saved_states(self._number), self.path / "state")
        return checkpoint

    def close(self) -> None:
        """Close the states."""
        if self._store is not None:
            self._store.close()

    def finish(self) -> None:
        """The replay is complete: checkpoints go."""
        self.close()
        for written in (self.checkpoint, aside(self.checkpoint)):
            written.unlink(missing_ok=True)
        (self.path / BEGUN).unlink(missing_ok=True)
        for saved in self.path.glob("state-*"):  # one a save that was cut off may have left
            shutil.rmtree(saved)

    def _saved_states(self, number: int) -> Path:
        return self.path / f"state-{number}"
