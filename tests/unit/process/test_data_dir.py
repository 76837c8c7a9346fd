"""A worker's folder: one process at a time, and a name of its own in the consumer group."""

import shutil
from pathlib import Path

import pytest
from freshet.cli import app
from freshet.process.data_dir import DataDirError, held_data_dir, instance_id
from typer.testing import CliRunner


@pytest.mark.parametrize("verb", ["worker", "archive"])
def test_a_second_process_is_refused_at_once(tmp_path: Path, verb: str) -> None:
    """A second process on a folder ends at once with the remedy."""
    with held_data_dir(str(tmp_path)):
        done = CliRunner().invoke(app, [verb, "--state-dir", str(tmp_path)])
    assert done.exit_code == 1
    assert done.stderr == f"freshet: another process runs on {tmp_path}: give this one its own with --state-dir\n"


def test_a_folder_is_free_again_behind_its_process(tmp_path: Path) -> None:
    """The lock ends with its process, and the lock file stays."""
    for _ in range(2):
        with held_data_dir(str(tmp_path / "w1")):
            assert (tmp_path / "w1" / "process.lock").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file at the folder's path is an error in one line."""
    (tmp_path / "file").touch()
    with pytest.raises(DataDirError, match="Not a directory"), held_data_dir(str(tmp_path / "file" / "w1")):
        pass


def test_folders_of_one_name_are_two_members(tmp_path: Path) -> None:
    """Two folders of the same name give two group members."""
    folders = [str(tmp_path / host / "data") for host in ("a", "b")]
    names = [instance_id("group", folder) for folder in folders]
    assert len(set(names)) == 2
    assert names == [instance_id("group", folder) for folder in folders]


def test_a_copied_folder_is_another_member_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was copied to another host gives another group member."""
    name = instance_id("group", str(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert instance_id("group", str(tmp_path / "b")) != name
