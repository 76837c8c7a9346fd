"""`freshet train`: a log to a model version, once or again and again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from deploy.demo import movielens
from deploy.local.parts import PARTS, ROOT, TEXT_ENCODER
from workers.cli.errors import UserError
from workers.cli.options import DEFAULT_DIRECTORY, Config, Directory, Kafka, Triton, read_seconds, resolve
from workers.cli.replay import newest_version, promoted_version, record_time
from workers.cli.show import progress, say
from workers.cli.signing import local_keys, sign_bundle
from workers.core.bundle import MANIFEST
from workers.core.files import written_whole
from workers.settings import Settings

TRAINING_PYTHON = PARTS / "training-env" / "bin" / "python"
FILMS = ROOT / "deploy" / "domains" / "films.toml"
REFUSED = 3
"""Exit status of a training whose candidate the gate refused."""
KEPT_CANDIDATES = 5
"""Bundles of a periodic job that stay on disk."""

_TUNING = "Training"


@dataclass(frozen=True)
class _Job:
    """What every run of a command has in common."""

    settings: Settings
    events: str
    items: str | None
    window: tuple[int | None, int | None]
    work: Path
    arguments: list[str]
    live: Path | None
    incremental: bool
    released: bool
    """Whether a broker is named: its models topic then says which version is live."""
    key: Path | None
    served_by: list[str]
    """Options by which `freshet publish` finds the stack."""


def train(
    events: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="FILE.jsonl, an archive's folder, `kafka` or `kafka:TOPIC`; MovieLens-100K where left out.",
        ),
    ] = None,
    items: Annotated[
        str | None, typer.Option(metavar="FILE.jsonl|kafka", help="The catalogue; without one items have no text.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the bundle; `bundle` in --dir where left out.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Leave out records before (UTC).")] = None,
    end: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Leave out records from then on (UTC).")
    ] = None,
    live: Annotated[
        Path | None,
        typer.Option(
            metavar="VERSION_DIR",
            help="What the gate compares with, and what an incremental run starts from; else the promoted version.",
        ),
    ] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Start from the live version and learn what is new since.")
    ] = False,
    every: Annotated[
        str | None, typer.Option(metavar="1h", help="Run incrementally again and again, never two at once.")
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Publish each candidate that the gate accepts.")] = False,
    search: Annotated[str | None, typer.Option(metavar="10m", help="First search hyperparameters for so long.")] = None,
    types: Annotated[
        str | None, typer.Option(metavar="A,B", help="Behaviour types, where no settings file names them.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the manifest.", rich_help_panel=_TUNING)] = None,
    epochs: Annotated[int | None, typer.Option(help="At most so many.", rich_help_panel=_TUNING)] = None,
    positions: Annotated[int | None, typer.Option(help="Targets a step.", rich_help_panel=_TUNING)] = None,
    learning_rate: Annotated[float | None, typer.Option(rich_help_panel=_TUNING)] = None,
    seed: Annotated[int | None, typer.Option(rich_help_panel=_TUNING)] = None,
    threads: Annotated[int | None, typer.Option(help="Bounds the CPU used.", rich_help_panel=_TUNING)] = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            metavar="URI|none", help="MLflow store; an SQLite file in --dir where left out.", rich_help_panel=_TUNING
        ),
    ] = None,
    data_terms: Annotated[
        str | None, typer.Option(help="Terms of the data, which the weights stand under.", rich_help_panel=_TUNING)
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE.key", help="Key to sign with; without, the local stack's own.")
    ] = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
) -> None:
    """Train a model version from an event log; a gate decides whether it may be published.

    Stopped or killed, the same command goes on from the last epoch. Exit status 3: the gate refused.
    """
    if not TRAINING_PYTHON.exists():
        raise UserError("the training environment is missing: run `make setup-training`")
    effective = resolve(config, directory, kafka=kafka, triton=triton)
    settings = effective.settings
    interval = read_seconds("--every", every) if every else None
    incremental = incremental or interval is not None
    if events is None:
        if incremental:
            raise UserError("--events says where new events come from: an archive's folder, or kafka")
        events, items = _movielens(directory)
        config, name, data_terms = config or FILMS, name or "movielens-100k", data_terms or movielens.TERMS
    if types is not None:
        settings = msgspec.structs.replace(settings, behaviours=dict.fromkeys(types.split(","), 1.0))
    work = directory / "training"
    tuning = {
        "types": types,
        "name": name,
        "epochs": epochs,
        "positions": positions,
        "learning-rate": learning_rate,
        "seed": seed,
        "threads": threads,
        "tracking": tracking,
        "data-terms": data_terms,
        "search": read_seconds("--search", search) if search else None,
    }
    reach = {"config": config, "dir": directory, "kafka": kafka, "triton": triton}
    job = _Job(
        settings,
        events,
        items,
        (record_time("--from", start), record_time("--until", end)),
        work,
        ["--work", str(work), "--text-encoder", str(TEXT_ENCODER), *_flags({"config": config, **tuning})],
        live,
        incremental,
        effective.sources["kafka"] != "default",
        key,
        _flags(reach),
    )
    if interval is None:
        raise typer.Exit(_once(job, out or directory / "bundle", publish=publish))
    for number, due in enumerate(_ticks(interval), 1):
        bundle = directory / "candidates" / _stamp()
        say(f"run {number}: {bundle}")
        status = _once(job, bundle, publish=publish, polite=True)
        _tidy(bundle.parent)
        say(f"run {number} ended with status {status}; the next one starts at {due:%H:%M:%S} UTC")


def _once(job: _Job, bundle: Path, *, publish: bool, polite: bool = False) -> int:
    """Train, and publish what was accepted; the exit status."""
    status = _run(job, bundle, polite=polite)
    if status or not (bundle / MANIFEST).is_file():
        return status
    key = job.key or local_keys(job.work.parent)
    say(f"signed by {sign_bundle(bundle, key)[:16]}, {key}")
    if publish:
        command = [sys.executable, "-m", "workers.cli", "publish", str(bundle), *job.served_by]
        return subprocess.run(command, check=False).returncode
    say(f"bring it into service with `freshet publish {bundle}`")
    return 0


def _run(job: _Job, out: Path, *, polite: bool) -> int:
    """One run in the training environment: its exit status. `polite`: it takes what serving leaves of the CPU."""
    live = _live(job)
    log = _log(job)
    arguments = [*job.arguments, "--events", str(log), "--source", job.events, "--out", str(out)]
    if job.items is not None:
        arguments += ["--items", str(_catalogue(job.items, job))]
    if live is not None:
        arguments += ["--live", str(live)]
    if job.incremental:
        arguments.append("--incremental")
    command = [str(TRAINING_PYTHON), "-m", "training.train", *arguments]
    if polite:
        command = ["nice", "-n", "19", *command]
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, check=False).returncode


def _live(job: _Job) -> Path | None:
    """The version folder that the gate compares with: what was named, else the promoted version's.

    Where no broker is named, or nothing was promoted yet, the newest folder stands for the live version of an
    incremental run, which starts from it; any other run is then compared with recent popularity.
    """
    from workers.core.rollout import MODEL

    if job.live is not None:
        return job.live
    version = promoted_version(job.settings) if job.released else None
    if version is None and not job.incremental:
        return None
    version = version or newest_version(job.settings)
    folder = Path(job.settings.model_repository) / MODEL / str(version)
    if not folder.is_dir():
        remedy = "set FRESHET_MODEL_REPOSITORY, or --live"
        raise UserError(f"version {version} is live, and {folder} is not there: {remedy}")
    return folder


def _log(job: _Job) -> Path:
    """The log as a file of JSON lines, in the training folder where it is not one already."""
    plain = Path(job.events)
    if plain.suffix in {".jsonl", ".ndjson", ".json"} and job.window == (None, None):
        return plain
    from workers.adapters.logs import LogError

    try:
        return _exported(job)
    except LogError as error:
        raise UserError(str(error)) from None


def _exported(job: _Job) -> Path:
    """Events of the window, and all user-control events: an erasure before the window holds inside it."""
    from workers.adapters.logs import Window, open_log
    from workers.core.events import CONTROL_TYPES, BadEvent, decode_event, encode_event

    window = Window(*job.window, {})
    log = open_log(job.events, job.settings, Window(None, None, {}))
    bad: Counter[str] = Counter()
    kept = read = 0
    job.work.mkdir(parents=True, exist_ok=True)
    path = job.work / "events.jsonl"
    with written_whole(path) as partial, partial.open("wb") as file, progress(None, "events") as advance:
        for partition in log.partitions:
            for run in log.read(partition):
                for record in run:
                    read += 1
                    event = decode_event(record.value, record.key, job.settings.behaviours, record.headers)
                    if isinstance(event, BadEvent):
                        bad[event.reason.value] += 1
                    elif event.type in CONTROL_TYPES or window.holds(partition, record):
                        file.write(encode_event(event) + b"\n")
                        kept += 1
                advance(read, read)
    for reason, count in sorted(bad.items()):
        say(f"left out of {job.events}: {count:,} dead letters, {reason.replace('_', ' ')}")
    say(f"{kept:,} of {read:,} records of {job.events} are in the window")
    return path


def _catalogue(source: str, job: _Job) -> Path:
    """The catalogue as a file of JSON lines."""
    if source != "kafka":
        return Path(source)
    from workers.adapters.logs import LogError, read_topic

    try:
        lines = [record.value for record in read_topic(job.settings, job.settings.items_topic) if record.value]
    except LogError as error:
        raise UserError(str(error)) from None
    path = job.work / "items.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def _ticks(interval: float) -> Iterator[datetime]:
    """When the run after this one is due: now, and then every so often; a run that takes longer delays the next."""
    while True:
        due = time.time() + interval
        yield datetime.fromtimestamp(due, UTC)
        time.sleep(max(0.0, due - time.time()))


def _flags(values: Mapping[str, object]) -> list[str]:
    return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _tidy(candidates: Path) -> None:
    """Keep the newest candidates; names sort by time."""
    bundles = sorted(one for one in candidates.glob("*Z") if one.is_dir())
    for old in bundles[:-KEPT_CANDIDATES]:
        shutil.rmtree(old)


def _movielens(directory: Path) -> tuple[str, str]:
    """MovieLens-100K as a log and a catalogue. Raises `UserError`."""
    log = directory / "ml-100k"
    try:
        movielens.convert(movielens.FOLDER, log)
    except movielens.MovieLensError as error:
        raise UserError(str(error)) from None
    return str(log / "events.jsonl"), str(log / "items.jsonl")
