"""`freshet verify`: what a live run published, against its log."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from freshet.cli.console import command_line, emit, plain, rows
from freshet.cli.options import (
    DEFAULT_DIRECTORY,
    Config,
    Directory,
    EncoderKind,
    Json,
    Kafka,
    Triton,
    resolve,
    see_free,
)
from freshet.cli.versions import text_encoder_folder
from freshet.settings import Settings

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from freshet.core.evaluation.results import Verification


def verify(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="`kafka`, `kafka:TOPIC`, or an archive's folder.")
    ] = "kafka",
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.json", help="Write the results; `report` draws them.")
    ] = None,
    encoder: EncoderKind = "onnx",
    feature_users: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many users' online features are compared.")
    ] = 1000,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    as_json: Json = False,
) -> None:
    """Make every published list again from the log and compare: lists, newest lists, features, embeddings.

    Nothing is compared with a tolerance. The exit status is 1 where something differs.
    """
    from freshet.core.evaluation.results import Results
    from freshet.report.results_file import write_results

    see_free(to)
    settings = resolve(config, directory, kafka=kafka, triton=triton).settings
    found = asyncio.run(_verified(settings, source, feature_users, through_triton=encoder == "triton"))
    if to is not None:
        write_results(to, Results(source=source, command=command_line(), verification=found))
    if as_json:
        emit(msgspec.to_builtins(found))
    else:
        _show(found)
    if any(found.mismatches.values()):
        raise typer.Exit(1)


async def _verified(settings: Settings, source: str, feature_users: int, *, through_triton: bool) -> Verification:
    from freshet.replay.job import open_encoder
    from freshet.replay.verify import verify

    async with open_encoder(settings, text_encoder_folder(settings), through_triton=through_triton) as encoder:
        return await verify(settings, source, encoder, feature_users)


def _show(found: Verification) -> None:
    counts = [(kind, f"{count:,}", f"{found.mismatches[kind]:,}") for kind, count in found.compared.items()]
    rows([("", "compared", "differ"), *counts], ("", "", "bold"))
    if found.unverifiable:
        typer.echo(
            f"{found.unverifiable:,} lists were not verified: compaction has taken their side inputs, "
            "or an erasure their events"
        )
    for mismatch in found.examples:
        where = f"user {plain(mismatch.user_id)} at {mismatch.partition}:{mismatch.offset}"
        typer.echo(f"{mismatch.kind}: {where}: {plain(mismatch.detail)}")
