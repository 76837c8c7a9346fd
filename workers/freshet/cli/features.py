"""`features`: the archive's events as Feast's history, and the online features of all users written again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from confluent_kafka import KafkaException

from freshet.cli.console import counted_progress, emit, rows
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, resolve

if TYPE_CHECKING:
    from freshet.adapters.feast import FeastStore

PUSH_SECONDS = 600.0
"""Longest wait for the workers."""
LOOK_SECONDS = 0.5

app = typer.Typer(help="Feast's history out of the archive, and the online features out of the states.")


@app.command()
def push(config: Config = None, directory: Directory = DEFAULT_DIRECTORY, as_json: Json = False) -> None:
    """Let the workers write every user's online features again, out of the states, and wait until they have.

    The workers do so by themselves where the store was emptied or put back from an old copy. This command is for a
    store that lost a part.
    """
    settings = resolve(config, directory).settings
    from freshet.adapters.feast import open_feature_store
    from freshet.adapters.source import group_members

    try:
        workers = group_members(settings)
    except KafkaException as error:
        raise UserError(f"Kafka at {settings.kafka}: {error.args[0].str()}") from None
    if not workers:
        raise UserError(f"no worker of group {settings.group} runs: start one with `freshet worker`")
    began = time.monotonic()
    store = open_feature_store(settings)
    try:
        answered = asyncio.run(_restore(store, f"{settings.group}:", workers, began + PUSH_SECONDS))
    finally:
        store.close()
    if answered < workers:
        raise UserError(f"{workers - answered} workers of {workers} have not answered within {PUSH_SECONDS:.0f} s")
    seconds = round(time.monotonic() - began, 1)
    if as_json:
        emit({"workers": workers, "seconds": seconds})
        return
    rows([("workers", str(workers), f"{seconds} s")], ("", "bold", ""))


async def _restore(store: FeastStore, prefix: str, workers: int, deadline: float) -> int:
    """Remove the workers' stamps, which they take for a loss, and wait; returns how many have restored their users.

    Raises `Unavailable`.
    """
    await store.clear_stamps(prefix)
    while (answered := len(await store.stamps(prefix))) < workers and time.monotonic() < deadline:  # noqa: ASYNC110 - the workers are other processes
        await asyncio.sleep(LOOK_SECONDS)
    return answered


@app.command()
def history(
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
