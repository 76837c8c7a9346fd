"""`freshet replay` and `freshet verify`: input that is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from freshet.cli import app
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["replay", "kafka", "--verify"], 1, "`freshet verify SOURCE` compares a live run with its log"),
        (["replay", "x.jsonl", "--out", "new", "--evaluate"], 1, "which version is judged on x.jsonl? Name its folder"),
        (["replay", "x.jsonl", "--out", "new", "--bundle", "nowhere"], 1, "nowhere has no manifest.json"),
        (["replay", "x.jsonl", "--out", "new", "--bundle", "b", "--model", "1"], 1, "goes without --model"),
        (["replay", "kafka"], 2, "Missing option '--out'"),
        (["replay", "x.jsonl", "--out", "new", "--encoder", "cpu"], 2, "'cpu' is not one of 'onnx', 'triton'"),
        (["replay", "x.jsonl", "--out", "new", "--fold-only", "--try", "diversity=1"], 1, "--fold-only makes no lists"),
        (["replay", "x.jsonl", "--out", "new", "--topic", "t", "--try", "diversity=1"], 1, "--topic takes the lists"),
        (["verify", "x.jsonl", "--out", "taken.json"], 1, "taken.json exists: choose another --out"),
        (["verify", "x.jsonl", "--feature-users", "-1"], 2, "greater than or equal to 0"),
    ],
)
def test_a_replay_that_cannot_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, message: str
) -> None:
    """A replay that cannot run is one line with the remedy, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.json").touch()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == status, done.output
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken.json"]
