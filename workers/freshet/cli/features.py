"""`features`: the archive's events as Feast's history."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from freshet.cli.console import emit, progress, rows
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, resolve


def features(
    archive: Annotated[
        Path | None, typer.Argument(metavar="ARCHIVE", help="An archive's folder; by default that of the settings.")
    ] = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: Json = False,
) -> None:
    """Bring Feast's history up to the end of the archive: a row of behaviour features for every event.

    `FeatureStore(fs_yaml_file="DIR/feast/history.yaml").get_historical_features(…)` then gives each user's features
    as they were at any time; it needs feast[duckdb].
    """
    settings = resolve(config, directory, archive_dir=str(archive) if archive is not None else None).settings
    from freshet.adapters.feast import apply_history
    from freshet.archive.feature_history import FOLDER, extend

    with ExitStack() as stack:
        bar = _Bar(stack)
        done = asyncio.run(extend(settings, bar.start, bar.advance))
    file = apply_history(settings)
    if as_json:
        emit(msgspec.to_builtins(done) | {"feature_store": str(file)})
        return
    rate = f"{done.events / max(done.seconds, 1e-9):,.0f}/s"
    history = str(Path(settings.archive_dir) / FOLDER)
    rows(
        [
            ("events", f"{done.events:,}", rate),
            ("rows", f"{done.rows:,}", history),
            ("Feast", str(file), ""),
        ],
        ("", "bold", ""),
    )


class _Bar:
    """How far the fold is, on a terminal."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._count = 0
        self._advance: Any = lambda _position, _count: None

    def start(self, total: int | None) -> None:
        """The number of events is known."""
        self._advance = self._stack.enter_context(progress(total, "folded"))

    def advance(self, count: int) -> None:
        """So many events more."""
        self._count += count
        self._advance(self._count, self._count)
