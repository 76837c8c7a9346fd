"""`freshet train`: a log to a model version, once or again and again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freshet import resources
from freshet.bundle.bundle import MANIFEST, SIGNATURE
from freshet.cli.console import say
from freshet.cli.errors import FAILED, UserError
from freshet.cli.options import (
    DEFAULT_DIRECTORY,
    Config,
    Directory,
    Effective,
    Kafka,
    Triton,
    read_seconds,
    record_time,
    resolve,
)
from freshet.cli.signing import local_keys, sign_bundle
from freshet.cli.training_env import have_training, run_module
from freshet.cli.versions import newest_version, promoted_version
from freshet.errors import FreshetError
from freshet.files import HeldError, held, write_whole
from freshet.settings import Settings

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from freshet.cli.training_log import Source

FILMS = resources.DOMAINS / "films.toml"
REFUSED = 3
"""Exit status of a training whose candidate the gate refused."""
STOPPED = 130
"""And of one that Ctrl-C stopped: it goes on with the same command."""
DOMAIN = "domain.toml"
KEPT_CANDIDATES = 5
"""Accepted bundles of incremental runs that stay on disk, and as many refused ones."""

_TUNING = "Training"


@dataclass(frozen=True)
class _Job:
    """What every run of a command has in common."""

    settings: Settings
    source: Source
    work: Path
    arguments: list[str]
    threads: int
    live: Path | None
    incremental: bool
    released: bool
    """Whether a broker is named: its models topic then says which version is live."""
    key: Path | None
    config: Path | None
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
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the bundle; without, `bundle` in --dir, for an incremental run a new one in `candidates`.",
        ),
    ] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Leave out records before (UTC).")] = None,
    end: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Leave out records from then on (UTC).")
    ] = None,
    newest: Annotated[
        str | None, typer.Option("--window", metavar="30d", help="Leave out records older than this.")
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
        str | None,
        typer.Option(
            metavar="A,B",
            help="Behaviour types, where no settings file names them: one is written, domain.toml in --dir.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the manifest.", rich_help_panel=_TUNING)] = None,
    epochs: Annotated[int | None, typer.Option(help="At most so many.", rich_help_panel=_TUNING)] = None,
    positions: Annotated[int | None, typer.Option(help="Targets a step.", rich_help_panel=_TUNING)] = None,
    learning_rate: Annotated[float | None, typer.Option(rich_help_panel=_TUNING)] = None,
    teachers: Annotated[
        int | None,
        typer.Option(help="Models fitted first, whose mean scores are learned too.", rich_help_panel=_TUNING),
    ] = None,
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
    text_encoder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the text encoder; without, the model repository's."),
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
    from freshet.cli.training_log import Source

    _check_together(newest, start, end, every, out)
    effective = resolve(config, directory, kafka=kafka, triton=triton)
    settings = effective.settings
    interval = read_seconds("--every", every) if every else None
    incremental = incremental or interval is not None
    if events is None:
        if incremental:
            raise UserError("--events says where new events come from: an archive's folder, or kafka")
        if items is not None:
            raise UserError("--items is the catalogue of the log that --events names")
        if types is not None:
            raise UserError("--types are those of the log that --events names")
        events, items, terms = _movielens(directory)
        config, name, data_terms = config or FILMS, name or "movielens-100k", data_terms or terms
    else:
        config = effective.config
    if types is not None:
        config = _named(types, directory, config, effective)
        settings = resolve(config, directory, kafka=kafka, triton=triton).settings
    work = directory / "training"
    tuning = {
        "name": name,
        "epochs": epochs,
        "positions": positions,
        "learning-rate": learning_rate,
        "teachers": teachers,
        "seed": seed,
        "threads": threads,
        "tracking": tracking,
        "data-terms": data_terms,
        "search": read_seconds("--search", search) if search else None,
    }
    reach = {"config": config, "dir": directory, "kafka": kafka, "triton": triton}
    window = record_time("--from", start), record_time("--until", end)
    text_encoder = text_encoder or resources.text_encoder_folder(Path(settings.model_repository))
    job = _Job(
        settings,
        Source(settings, events, items, window, read_seconds("--window", newest) if newest else None),
        work,
        [
            "--work",
            str(work),
            "--text-encoder",
            str(text_encoder),
            *_flags({"config": config, **tuning}),
        ],
        threads or _threads(config),
        live,
        incremental,
        effective.sources["kafka"] != "default",
        key,
        config,
        _flags(reach),
    )
    if key is not None and not key.is_file():
        raise UserError(f"{key} does not exist: `freshet keys` makes one")
    have_training()
    if interval is None:
        bundle = out or (_candidates(job) / _stamp() if incremental else directory / "bundle")
        raise typer.Exit(_once(job, bundle, publish=publish))
    for number, due in enumerate(_ticks(interval), 1):
        bundle = _candidates(job) / _stamp()
        say(f"run {number}: {bundle}")
        try:
            status = _once(job, bundle, publish=publish, polite=True)
        except FreshetError as error:  # a broker that is away, say: it may be back
            say(f"freshet: {error}")
            status = FAILED
        when = f"at {due:%H:%M:%S} UTC" if due > datetime.now(UTC) else "now"
        say(f"run {number} ended with status {status}; the next one starts {when}")


def _check_together(
    newest: str | None, start: str | None, end: str | None, every: str | None, out: Path | None
) -> None:
    if newest is not None and (start or end):
        raise UserError("--window ends now: it goes without --from and --until")
    if every is not None and out is not None:
        raise UserError("--every writes each bundle to a new folder in `candidates`: it goes without --out")


def _once(job: _Job, bundle: Path, *, publish: bool, polite: bool = False) -> int:
    """Train, and publish what was accepted; the exit status."""
    status = _run(job, bundle, polite=polite)
    if status or not (bundle / MANIFEST).is_file():
        return status
    key = job.key or local_keys(job.work.parent)
    say(f"signed by {sign_bundle(bundle, key)[:16]}, {key}")
    command = ["publish", str(bundle), *job.served_by]
    if publish:
        status = subprocess.run([sys.executable, "-m", "freshet.cli", *command], check=False).returncode
    if status or not publish:
        say(f"bring it into service with `freshet {' '.join(command)}`")
    return status


def _run(job: _Job, out: Path, *, polite: bool) -> int:
    """One run in the training environment: its exit status. `polite`: it takes what serving leaves of the CPU."""
    from freshet.cli.training_log import as_files, over

    try:
        job.work.mkdir(parents=True, exist_ok=True)
        with held(job.work / "export.lock") as lock:
            live = _live(job)
            arguments = [*job.arguments, *_flags({"live": live})]
            if job.incremental:
                arguments.append("--incremental")
            files = as_files(job.source, job.work, _told(arguments, job.config))
            told = {"events": files.events, "items": files.items, "source": job.source.events, "out": out}
            if files.left_out:
                told["left-out"] = json.dumps(files.left_out)
            status = run_module(
                "freshet_training.train", [*arguments, *_flags(told)], threads=job.threads, polite=polite, keep=[lock]
            )
            if status >= 0 and status != STOPPED:
                over(job.source, job.work)
            _tidy(_candidates(job))
    except HeldError:
        raise UserError(f"another training run is at work in {job.work}") from None
    except OSError as error:
        raise UserError(f"{error.filename or job.work}: {error.strerror or error}") from None
    return status


def _told(arguments: list[str], config: Path | None) -> str:
    """All that a run is told of how to train."""
    return "\n".join([*arguments, config.read_text() if config is not None else ""])


def _threads(config: Path | None) -> int:
    """What the settings file says of the CPU; whether it makes sense is for training to say."""
    own = tomllib.loads(config.read_text()).get("training") if config is not None else None
    threads = own.get("threads") if isinstance(own, dict) else None
    return threads if type(threads) is int and threads > 0 else 1


def _live(job: _Job) -> Path | None:
    """The version folder that the gate compares with: what was named, else the promoted version's.

    Where no broker is named, or nothing was promoted yet, the newest folder stands for the live version of an
    incremental run, which starts from it; any other run is then compared with recent popularity.
    """
    from freshet.core.rollout import MODEL

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


def _candidates(job: _Job) -> Path:
    return job.work.parent / "candidates"


def _tidy(candidates: Path) -> None:
    """Keep the newest candidates, accepted and refused ones apart, and nothing of runs that were killed."""
    for partial in candidates.glob(".*Z.partial"):
        shutil.rmtree(partial)
    bundles = sorted(one for one in candidates.glob("*Z") if one.is_dir())  # names sort by time
    accepted = [bundle for bundle in bundles if (bundle / SIGNATURE).is_file()]
    refused = [bundle for bundle in bundles if bundle not in accepted]
    for old in (*accepted[:-KEPT_CANDIDATES], *refused[:-KEPT_CANDIDATES]):
        shutil.rmtree(old)


def _named(types: str, directory: Path, config: Path | None, effective: Effective) -> Path:
    """The settings file that names the behaviour types of `--types`. Raises `UserError`, `SettingsError`."""
    kinds = {kind.strip(): 1.0 for kind in types.split(",") if kind.strip()}
    if not kinds:
        raise UserError("--types names no behaviour type")
    source = effective.sources["behaviours"]
    if config is not None and set(kinds) == set(effective.settings.behaviours):
        return config
    if source != "default":
        named = ", ".join(effective.settings.behaviours)
        raise UserError(f"--types: {source} names the behaviours already, {named}, with their weights")
    if config is not None:
        raise UserError(f"--types: name them in {config}, under [behaviours], with their weights")
    return _domain(directory, kinds)


def _domain(directory: Path, kinds: dict[str, float]) -> Path:
    """A settings file for training and workers, of these behaviour types; one that was edited stays.

    Raises `UserError`, `SettingsError`.
    """
    resolve(None, directory, behaviours=kinds)
    file = directory / DOMAIN
    if file.exists():
        there = resolve(file, directory).settings.behaviours
        if set(there) == set(kinds):
            return file
        if file.read_text() != _as_toml(dict.fromkeys(there, 1.0)):
            raise UserError(f"{file} is there already and names other types: use it with --config, or remove it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, _as_toml(kinds).encode())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    say(f"wrote {file}: the weights are yours to set; a stack takes it with `freshet up --config {file}`")
    return file


def _as_toml(kinds: Mapping[str, float]) -> str:
    lines = (f"{json.dumps(kind, ensure_ascii=False)} = {weight}\n" for kind, weight in kinds.items())
    return f"# Behaviour types, and what an event of each is worth.\n[behaviours]\n{''.join(lines)}"


def _movielens(directory: Path) -> tuple[str, str, str]:
    """MovieLens-100K as a log and a catalogue, and the data's terms. Raises `MovieLensError`, `UserError`."""
    if resources.CHECKOUT is None:
        raise UserError("--events says what to learn from: MovieLens-100K comes with a checkout alone")
    from deploy.demo import movielens

    log = directory / "ml-100k"
    movielens.convert(movielens.FOLDER, log)
    return str(log / "events.jsonl"), str(log / "items.jsonl"), movielens.TERMS
