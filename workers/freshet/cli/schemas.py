"""`schemas`: the wire format as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freshet.cli.console import say
from freshet.cli.errors import UserError


def schemas(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
) -> None:
    """Write a JSON Schema for every topic, an AsyncAPI document of all of them, and the OpenAPI document of `serve`."""
    from freshet.http.openapi import document
    from freshet.schemas import as_file, documents

    files = documents() | {"openapi.json": as_file(document())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from None
    say(f"{', '.join(files)} in {folder}")
