"""Checkpoints of a replay."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from freshet.core.events import DEFAULT_BEHAVIOURS
from freshet.files import aside
from freshet.replay.checkpoint import CheckpointError, Folder
from freshet.replay.output import FolderOutput
from freshet.replay.states import MemoryStates

from tests.simulation.memory_replays import Kept, open_replay


async def test_a_checkpoint_is_known_again(tmp_path: Path) -> None:
    """A description of the same replay opens the checkpoint, and another description does not."""

    def folder(last: int) -> Folder:
        identity = {"window": [(0, (3, last))], "settings": {"text_fields": ("title",)}}
        return Folder(tmp_path, identity, FolderOutput(tmp_path, DEFAULT_BEHAVIOURS), on_disk=False)

    replay, states = await open_replay(Kept()), MemoryStates()
    await folder(9).save(replay, states)
    assert folder(9).load().replay.counts == {}
    with pytest.raises(CheckpointError, match="holds another replay"):
        folder(8).load()


async def test_a_checkpoint_that_cannot_be_gone_on_from_is_one_line(tmp_path: Path) -> None:
    """A checkpoint that is cut off, damaged or of another version is one line."""
    folder = Folder(tmp_path, {}, FolderOutput(tmp_path, DEFAULT_BEHAVIOURS), on_disk=False)
    await folder.save(await open_replay(Kept()), MemoryStates())
    written = folder.checkpoint.read_bytes()
    content = msgspec.msgpack.decode(written)
    flipped = written[:-9] + bytes([written[-9] ^ 1]) + written[-8:]
    for raw, message in (
        (written[:-9], "is damaged"),
        (flipped, "is damaged"),
        (b"", "is damaged"),
        (msgspec.msgpack.encode(content | {"version": 1}), "was written by another version of freshet"),
        (msgspec.msgpack.encode({"identity": {}, "number": 1}), "was written by another version of freshet"),
    ):
        folder.checkpoint.write_bytes(raw)
        with pytest.raises(CheckpointError, match=message) as refused:
            folder.load()
        assert str(refused.value).startswith(str(folder.checkpoint))
        assert "\n" not in str(refused.value)


def checkpoints(folder: Path) -> set[str]:
    """Names of what is there to go on from."""
    return {path.name for path in folder.iterdir() if path.name.startswith(("state-", "checkpoint"))}


async def test_a_save_that_was_cut_off_does_not_stand_in_the_way(tmp_path: Path) -> None:
    """The next save replaces states saved without a document, and finishing removes all of them."""
    folder = Folder(tmp_path, {}, FolderOutput(tmp_path, DEFAULT_BEHAVIOURS), on_disk=True)
    replay, states = await open_replay(Kept()), folder.open_states()
    await folder.save(replay, states)
    folder._saved_states(2).mkdir()
    aside(folder.checkpoint).touch()
    await folder.save(replay, states)
    assert checkpoints(tmp_path) == {"state-2", "checkpoint.msgpack"}
    aside(folder.checkpoint).touch()
    folder._saved_states(1).mkdir()
    folder.finish()
    assert checkpoints(tmp_path) == set()
