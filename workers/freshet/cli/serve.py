"""`serve`: lists as of now and events over HTTP, and a page to look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from kafka.errors import KafkaError

from freshet.cli.console import say
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Kafka, Triton, resolve


def serve(
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; loopback by default.", rich_help_panel="Settings")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.", rich_help_panel="Settings")
    ] = None,
    port_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the port there once requests are answered.")
    ] = None,
) -> None:
    """Serve lists and take events over HTTP until SIGTERM, beside the workers. Logs are JSON on stderr."""
    settings = resolve(config, directory, kafka=kafka, triton=triton, http_host=host, http_port=port).settings
    from freshet.http.server import serve as run

    def started(address: str) -> None:
        say(f"{address} serves lists and the page, {address}/openapi.json says how")
        if port_file is not None:
            port_file.parent.mkdir(parents=True, exist_ok=True)
            port_file.write_text(address.rpartition(":")[2])

    try:
        run(settings, started)
    except KafkaError as error:
        raise UserError(f"Kafka at {settings.kafka}: {error}") from None
