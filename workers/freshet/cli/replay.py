"""`freshet replay`: a log through the serving code."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from freshet.cli.console import command_line, counted_progress, emit, rows, say
from freshet.cli.errors import UserError
from freshet.cli.evaluations import show_differences, shown
from freshet.cli.option_groups import grouped
from freshet.cli.options import (
    DEFAULT_DIRECTORY,
    Config,
    Directory,
    EncoderKind,
    Json,
    Kafka,
    Triton,
    record_time,
    resolve,
)
from freshet.cli.sweep import read_sweep, show_sweep
from freshet.cli.versions import live_version, newest_version, text_encoder_folder
from freshet.core.decoding import Undecodable
from freshet.core.lines import catalogue_line
from freshet.settings import KNOBS, Settings

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from freshet.ports import Record, Window
    from freshet.replay.job import ReplayJob, Summary

METRICS = ("hr", "ndcg", "mrr")


def _name_verify(asked: bool) -> None:
    if asked:
        raise UserError("`freshet verify SOURCE` compares a live run with its log, where `replay --verify` did")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What is replayed."""

    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="`kafka`, `kafka:TOPIC`, an archive's folder, FILE.jsonl or FILE.parquet."
        ),
    ]
    items: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl|kafka", help="The catalogue; `kafka` reads the items topic.", rich_help_panel="Source"
        ),
    ] = None
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="First record time (UTC).", rich_help_panel="Source")
    ] = None
    end: Annotated[
        str | None,
        typer.Option("--until", metavar="TIME", help="Record time to stop before (UTC).", rich_help_panel="Source"),
    ] = None
    offsets: Annotated[
        list[str] | None,
        typer.Option(metavar="P:FIRST-LAST", help="Offsets of a partition; may be repeated.", rich_help_panel="Source"),
    ] = None

    def window(self) -> Window:
        """The part of the log that is replayed. Raises `UserError`."""
        from freshet.ports import Window

        return Window(record_time("--from", self.start), record_time("--until", self.end), _offsets(self.offsets or []))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the log is replayed, and with which versions."""

    model: Annotated[
        list[int] | None,
        typer.Option(
            "--model",
            metavar="VERSION",
            help="Model version, may be given several times; the live one of `kafka`, else the newest.",
        ),
    ] = None
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The version in this folder, instead of one of the repository.")
    ] = None
    encoder: EncoderKind = "onnx"
    state: Annotated[Literal["memory", "rocksdb"], typer.Option(help="Where the users' states are kept.")] = "memory"
    speed: Annotated[
        str | None, typer.Option(metavar="10x", help="Event time per wall-clock time; full speed where left out.")
    ] = None
    fold_only: Annotated[bool, typer.Option("--fold-only", help="Fold, and make no lists.")] = False
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Records taken at a time.")] = 2048
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False
    verify: Annotated[bool, typer.Option("--verify", hidden=True, is_eager=True, callback=_name_verify)] = False


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """How lists are judged."""

    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Judge each list by what the user did next.", rich_help_panel="Evaluation"),
    ] = False
    freshness: Annotated[
        bool,
        typer.Option(
            "--freshness",
            help="Also judge lists made every minute, hour and day instead.",
            rich_help_panel="Evaluation",
        ),
    ] = False
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="KNOB=VALUE,VALUE",
            help=f"Also judge lists with another value of {', '.join(KNOBS)}; may be repeated.",
            rich_help_panel="Evaluation",
        ),
    ] = None
    burn_in: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            metavar="SHARE",
            help="First part of the log that is not judged.",
            rich_help_panel="Evaluation",
        ),
    ] = 0.0
    label_delay: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Time until what a user did is known to the calibration.",
            rich_help_panel="Evaluation",
        ),
    ] = 0.0

    @property
    def asked(self) -> bool:
        """Whether any list is judged."""
        return self.evaluate or self.freshness or bool(self.sweep)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, and where."""

    to: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for lists and results.", rich_help_panel="Output")
    ]
    topic: Annotated[
        str | None,
        typer.Option(
            metavar="TOPIC",
            help="A new topic for the lists, instead of Parquet files in --out.",
            rich_help_panel="Output",
        ),
    ] = None
    features: Annotated[
        bool, typer.Option("--features", help="Write every user's behaviour rows as well.", rich_help_panel="Output")
    ] = False
    training_rows: Annotated[
        bool,
        typer.Option(
            "--training-rows", help="Write rows to train on: state before, behaviour after.", rich_help_panel="Output"
        ),
    ] = False


@grouped
def replay(
    log: SourceOptions,
    run: RunOptions,
    evaluation: EvaluationOptions,
    output: OutputOptions,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    as_json: Json = False,
) -> None:
    """Replay a log through the serving code: lists, features, evaluation."""
    if run.fold_only and (run.model or run.bundle or evaluation.asked or output.topic):
        raise UserError(
            "--fold-only makes no lists: leave out --model, --bundle, --evaluate, --freshness, --try and --topic"
        )
    if run.bundle and (run.model or run.encoder == "triton"):
        raise UserError("--bundle is a version that nobody serves: it goes without --model and --encoder triton")
    if output.topic and (evaluation.sweep or len(run.model or ()) > 1):
        raise UserError("--topic takes the lists of one --model: a user's newest list is the one that counts")
    effective = resolve(config, directory, kafka=kafka, triton=triton)
    settings = effective.settings
    text_encoder = text_encoder_folder(settings)
    if run.bundle is not None:
        settings = msgspec.structs.replace(settings, model_repository=str(_repository(run.bundle, directory)))
    elif evaluation.asked and not run.model and effective.sources["model_repository"] == "default":
        raise UserError(
            f"which version is judged on {log.source}? Name its folder with --bundle DIR, or a version of the "
            f"repository {settings.model_repository} with --model VERSION"
        )
    from freshet.replay.job import ReplayJob, run_job

    job = ReplayJob(
        settings=settings,
        source=log.source,
        folder=output.to,
        window=log.window(),
        versions=[] if run.fold_only else run.model or [_version(log.source, settings)],
        sweep=read_sweep(evaluation.sweep or []),
        items=_items(log.items, settings),
        through_triton=run.encoder == "triton",
        text_encoder=text_encoder,
        states_on_disk=run.state == "rocksdb",
        speed=_speed(run.speed),
        judged=evaluation.asked,
        freshness=evaluation.freshness,
        burn_in=evaluation.burn_in,
        label_delay=evaluation.label_delay,
        features=output.features,
        training_rows=output.training_rows,
        topic=output.topic,
        batch=run.batch,
    )
    with counted_progress("replayed") as bar:
        summary = asyncio.run(run_job(job, command_line(), resume=run.resume, started=bar.start, advanced=bar.advance))
    if as_json:
        emit(msgspec.to_builtins(summary))
    else:
        _show(summary, job)


def _version(source: str, settings: Settings) -> int:
    """What is replayed with where no `--model` is named."""
    return live_version(settings) if source == "kafka" else newest_version(settings)


def _repository(bundle: Path, directory: Path) -> Path:
    """A model repository whose one version is `bundle`. Raises `BundleError`, `UserError`."""
    from freshet.bundle.bundle import MANIFEST, read_manifest, sha256
    from freshet.core.rollout import MODEL

    read_manifest(bundle)
    repository = directory / "replayed" / sha256(bundle / MANIFEST)[:16]
    version = repository / MODEL / "1"
    try:
        version.parent.mkdir(parents=True, exist_ok=True)
        version.unlink(missing_ok=True)
        version.symlink_to(bundle.resolve())
    except OSError as error:
        raise UserError(f"{version}: {error.strerror}") from None
    return repository


def _items(source: str | None, settings: Settings) -> list[Record]:
    """The catalogue's records. If a line of a file has a `ts`, its item enters at that time."""
    from freshet.logs.source import read_topic
    from freshet.ports import Record

    if source is None:
        return []
    if source == "kafka":
        return list(read_topic(settings, settings.items_topic))
    try:
        lines = Path(source).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines):
        item = catalogue_line(line)
        if isinstance(item, Undecodable):
            raise UserError(f"{source}:{number + 1}: not a catalogue item: {item.why}")
        records.append(Record(number, -1 if item.ts is None else item.ts, item.item_id.encode(), line))
    return records


def _show(summary: Summary, job: ReplayJob) -> None:
    lines = [(name, f"{count:,}") for name, count in summary.counts.items()]
    lines += [(f"digest of {name}", digest) for name, digest in summary.digests.items()]
    lines.append(("events/s", f"{summary.events_per_second:,.0f}"))
    rows(lines, ("", "bold"))
    if not job.judged:
        return
    from freshet.replay.job import RESULTS
    from freshet.report.results_file import read_results

    results = job.folder / RESULTS
    found = read_results(results)
    if job.sweep:
        show_sweep(found, job.settings.behaviours)
    else:
        table: list[tuple[str, ...]] = [("", "HR", "NDCG", "MRR", "judged")]
        for evaluation in found.evaluations:
            whole = evaluation.slices["all"]["all"]
            table.append((evaluation.name, *(shown(whole.metrics[name]) for name in METRICS), f"{whole.events:,}"))
        table += [(point.label, *(shown(point.metrics[name]) for name in METRICS), "") for point in found.freshness]
        rows(table, ("", "bold", "bold", "", ""))
        show_differences(found.comparisons)
    say(f"results in {results}: `freshet report {results} --out report.html` draws them")


def _speed(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        speed = float(value.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if speed <= 0:
        raise UserError(f"--speed is a number of times such as 10x, not {value!r}")
    return speed


def _offsets(values: Sequence[str]) -> dict[int, tuple[int, int | None]]:
    ranges: dict[int, tuple[int, int | None]] = {}
    for value in values:
        match = re.fullmatch(r"(\d+):(\d+)-(\d*)", value)
        if match is None:
            raise UserError(f"--offsets is PARTITION:FIRST-LAST such as 0:100-199, not {value!r}")
        partition, first, last = match.groups()
        ranges[int(partition)] = int(first), int(last) if last else None
    return ranges
