"""Files that are there whole or not at all."""

from pathlib import Path

import pytest
from freshet.files import write_json, written_whole


def _fail(path: Path) -> None:
    with written_whole(path) as partial:
        partial.write_text("half")
        raise OSError("no space left")


def test_what_goes_wrong_leaves_the_old_content(tmp_path: Path) -> None:
    """A file is replaced in a single step behind the block, and a failed block leaves the old file."""
    path = tmp_path / "facts.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError, match="no space"):
        _fail(path)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    with written_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == '{\n  "a": 1\n}\n'
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
