"""`archive`: the worker role that keeps the topics as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Group, HealthPort, Kafka, StateDir, resolve
from freshet.cli.stack_file import STACK_FILE
from freshet.process.data_dir import held_data_dir


def archive(
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the archive; shared by the archivers of a group."),
    ] = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    group: Group = None,
    state_dir: StateDir = None,
    health_port: HealthPort = None,
) -> None:
    """Keep the events and what lists are made with as Parquet, each record exactly once, until SIGTERM.

    What a user did before `user.erase` is taken out. Logs are JSON on stderr.
    """
    effective = resolve(
        config,
        directory,
        kafka=kafka,
        group=group,
        archive_dir=str(to) if to is not None else None,
        data_dir=str(state_dir) if state_dir is not None else None,
        health_port=health_port,
    )
    settings = effective.settings
    if effective.sources["data_dir"] in ("default", str(directory / STACK_FILE)):  # that is a stream worker's
        settings = msgspec.structs.replace(settings, data_dir=str(directory / "archiver"))
    from freshet.archive.archiver import run

    with held_data_dir(settings.data_dir):
        status = run(settings)
    raise typer.Exit(status)
