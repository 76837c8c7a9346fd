"""Feast's history is the fold: rows of the archive's events, kept up to date and whole whatever cuts a run off."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from freshet.archive import feature_history
from freshet.archive.chain import ArchiveError
from freshet.archive.feature_history import FOLDER, extend
from freshet.cli import app
from freshet.settings import Settings
from typer.testing import CliRunner

from tests.unit.archive.archives import record, rows, stream, write, write_stream


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose archive is this test's."""
    return Settings(archive_dir=str(tmp_path / "archive"))


def run(settings: Settings) -> feature_history.Extended:
    return asyncio.run(extend(settings, lambda _: None, lambda _: None))


def test_runs_that_go_on_give_what_one_gives(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many runs over a growing archive write the rows of a single run over the whole archive."""
    events = stream(3, 600)
    whole = Settings(archive_dir=str(tmp_path / "whole"))
    write_stream(Path(whole.archive_dir), events, [0, 0])
    done = run(whole)
    monkeypatch.setattr(feature_history, "CHUNK", 30)
    offsets, count = [0, 0], 0
    for start in range(0, len(events), 100):
        write_stream(Path(settings.archive_dir), events[start : start + 100], offsets)
        count += run(settings).events
    assert count == done.events == sum(offsets)
    assert rows(Path(settings.archive_dir)) == rows(Path(whole.archive_dir))


@pytest.mark.parametrize("kill_at", [0, 1, 3, 6])
def test_a_run_cut_off_anywhere(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """After a run cut off at any file or saved state, the next run completes the rows, each once."""
    events = stream(4, 400)
    whole = Settings(archive_dir=str(tmp_path / "whole"))
    for target in (settings, whole):
        write_stream(Path(target.archive_dir), events, [0, 0])
    run(whole)
    monkeypatch.setattr(feature_history, "CHUNK", 100)
    count = 0

    def killed(call: Any) -> Any:
        def step(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_at + 1:
                raise KeyboardInterrupt
            return call(*arguments, **keywords)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(feature_history, "forget", killed(feature_history.forget))
        patch.setattr(feature_history._States, "save", killed(feature_history._States.save))
        with pytest.raises(KeyboardInterrupt):
            run(settings)
    run(settings)
    assert rows(Path(settings.archive_dir)) == rows(Path(whole.archive_dir))


def test_a_history_that_was_removed_is_made_again(settings: Settings) -> None:
    """A run writes again the rows of files that were removed, in part or in whole."""
    write_stream(Path(settings.archive_dir), stream(5, 300), [0, 0])
    run(settings)
    before = rows(Path(settings.archive_dir))
    for path in sorted((Path(settings.archive_dir) / FOLDER).glob("*/00001-*.parquet")):
        path.unlink()
    run(settings)
    assert rows(Path(settings.archive_dir)) == before
    assert run(settings).events == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("behaviours", {"view": 1.0, "listen": 2.0}, "for view, click, purchase, .* say view, listen, .* remove that"),
        ("history", 7, "50 recent ones, the settings say view, click, purchase, 7 recent ones: remove that"),
    ],
)
def test_a_fold_of_another_kind_needs_another_history(settings: Settings, name: str, value: Any, said: str) -> None:
    """A run with other fold settings is refused with the remedy, and a new history takes the settings."""
    write(Path(settings.archive_dir), [record(number) for number in range(20)])
    run(settings)
    other = msgspec.structs.replace(settings, **{name: value})
    with pytest.raises(ArchiveError, match=said):
        run(other)
    shutil.rmtree(Path(settings.archive_dir) / FOLDER)
    run(other)
    last = rows(Path(settings.archive_dir))[-1]
    assert len(last["recent_items"]) == min(20, other.history)
    assert {f"{kind}_count" for kind in other.behaviours} <= set(last)


def test_two_runs_at_once_are_one(settings: Settings) -> None:
    """A second run at the same time is refused and leaves the history alone."""
    write(Path(settings.archive_dir), [record(0)])
    with feature_history._alone(Path(settings.archive_dir) / FOLDER):
        result = CliRunner().invoke(app, ["features", "history", settings.archive_dir])
    assert result.exit_code == 1
    assert "another process is extending" in result.stderr
    assert (
        "holds no archived events"
        in CliRunner().invoke(app, ["features", "history", str(Path(settings.archive_dir).parent)]).stderr
    )
