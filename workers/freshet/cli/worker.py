"""`worker`: one stream worker."""

from __future__ import annotations

from typing import Annotated

import typer

from freshet.cli.options import (
    DEFAULT_DIRECTORY,
    Config,
    Directory,
    Group,
    HealthPort,
    Kafka,
    StateDir,
    Triton,
    resolve,
)
from freshet.process.data_dir import held_data_dir


def worker(
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    group: Group = None,
    online_store: Annotated[
        str | None, typer.Option(help="`sqlite` or `redis://host:port`.", rich_help_panel="Settings")
    ] = None,
    state_dir: StateDir = None,
    health_port: HealthPort = None,
) -> None:
    """Run one stream worker until SIGTERM. Logs are JSON on stderr."""
    settings = resolve(
        config,
        directory,
        kafka=kafka,
        triton=triton,
        group=group,
        online_store=online_store,
        data_dir=str(state_dir) if state_dir is not None else None,
        health_port=health_port,
    ).settings
    from freshet.serving.app import run

    with held_data_dir(settings.data_dir):
        status = run(settings)
    raise typer.Exit(status)
