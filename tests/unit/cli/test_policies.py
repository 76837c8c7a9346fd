"""`freshet ope` and `freshet compare`: bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from freshet.cli import app
from freshet.core.events import Event, encode_event
from typer.testing import CliRunner

EVENT = encode_event(Event("e1", "ann", "view", 1_700_000_000_000, "a")) + b"\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ope", "log.jsonl", "--window", "soon"], "--window is a duration such as 30s, 10m, 1h or 30d, not 'soon'"),
        (["compare", "log.jsonl", "--window", "30"], "--window is a duration such as"),
        (["ope", "log.jsonl", "--reward", "like"], "--reward is one of view, click, purchase, not 'like'"),
        (["ope", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["ope", "log.jsonl", "--lists", "none.jsonl"], "none.jsonl: No such file"),
        (["compare", "log.jsonl", "--lists", "bad.jsonl"], "bad.jsonl:1: not a list as `freshet tail --raw` writes it"),
        (["compare", "log.jsonl", "--lists", "empty.jsonl"], "there are no lists at empty.jsonl"),
        (["ope", "log.jsonl", "--out", "log.jsonl"], "log.jsonl exists: choose another --out"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ope` and `compare` refuse bad input in one line on stderr with a status that is not 0, and write nothing."""
    monkeypatch.chdir(tmp_path)
    Path("log.jsonl").write_bytes(EVENT)
    Path("bad.jsonl").write_text('{"user_id": "ann"}\n')
    Path("empty.jsonl").touch()
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, done.output
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["bad.jsonl", "empty.jsonl", "log.jsonl"]
