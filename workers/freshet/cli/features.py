"""`features`: the archive's events as Feast's history."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from freshet.cli.console import counted_progress, emit, rows
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
    as they were at any time. The call needs feast[duckdb].
    """
    settings = resolve(config, directory, archive_dir=str(archive) if archive is not None else None).settings
    from freshet.adapters.feast import apply_history
    from freshet.archive.feature_history import FOLDER, extend

    with counted_progress("folded") as bar:
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
