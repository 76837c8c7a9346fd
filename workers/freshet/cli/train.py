"""`freshet train`: a log to a model version, once or again and again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from freshet import resources
from freshet.bundle.bundle import MANIFEST, SIGNATURE, WITHOUT_NETWORK, read_manifest
from freshet.cli.console import say
from freshet.cli.errors import FAILED, UserError
from freshet.cli.option_groups import grouped
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Effective, Kafka, Triton, resolve
from freshet.cli.signing import local_keys, sign_bundle
from freshet.cli.training_env import have_training, run_module
from freshet.cli.training_options import LogOptions, TuningOptions, VersionOptions
from freshet.cli.versions import newest_version, promoted_version
from freshet.errors import FreshetError
from freshet.files import HeldError, held, write_whole
from freshet.settings import Settings

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from freshet.cli.training_log import TrainingLog

FILMS = resources.DOMAINS / "films.toml"
REFUSED = 3
"""Exit status of a training whose candidate the gate refused."""
STOPPED = 130
"""And of one that Ctrl-C stopped: it goes on with the same command."""
DOMAIN = "domain.toml"
KEPT_CANDIDATES = 5
"""Accepted bundles of incremental runs that stay on disk, and as many refused ones."""


@dataclass(frozen=True)
class _Job:
    """What every run of a command has in common."""

    settings: Settings
    source: TrainingLog
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


@grouped
def train(
    log: LogOptions,
    version: VersionOptions,
    tuning: TuningOptions,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
) -> None:
    """Train a model version from an event log; a gate decides whether it may be published.

    Stopped or killed, the same command goes on from the last epoch. Exit status 3: the gate refused.
    """
    from freshet.cli.training_log import TrainingLog

    log.check()
    version.check()
    effective = resolve(config, directory, kafka=kafka, triton=triton)
    incremental = version.incremental or version.interval is not None
    if log.events is None:
        log.check_without_events(incremental=incremental)
    if log.events is None and log.items is None:
        log, tuning = _films(log, tuning, directory)
        config = config or FILMS
    else:
        config = effective.config
    settings = effective.settings
    if log.types is not None:
        config = _named(log.types, directory, config, effective)
        settings = resolve(config, directory, kafka=kafka, triton=triton).settings
    work = directory / "training"
    flags = tuning.flags if log.events is not None else tuning.unlearned
    text_encoder = tuning.text_encoder or resources.text_encoder_folder(Path(settings.model_repository))
    job = _Job(
        settings=settings,
        source=TrainingLog(settings, log.events or "", log.items, log.window, log.newest_seconds),
        work=work,
        arguments=_flags({"work": work, "text-encoder": text_encoder, "config": config, **flags}),
        threads=tuning.threads or _threads(config),
        live=version.live,
        incremental=incremental,
        released=effective.sources["kafka"] != "default",
        key=version.key,
        config=config,
        served_by=_flags({"config": config, "dir": directory, "kafka": kafka, "triton": triton}),
    )
    have_training()
    if log.events is None:
        raise typer.Exit(_of_catalogue(job, version.out or directory / "bundle", publish=version.publish))
    if version.interval is not None:
        _again_and_again(job, version.interval, publish=version.publish)
        return
    bundle = version.out or (_candidates(job) / _stamp() if incremental else directory / "bundle")
    raise typer.Exit(_once(job, bundle, publish=version.publish))


def _films(log: LogOptions, tuning: TuningOptions, directory: Path) -> tuple[LogOptions, TuningOptions]:
    """The options that learn from MovieLens-100K, with its name and terms where none are given."""
    events, items, terms = _movielens(directory)
    named = replace(tuning, name=tuning.name or "movielens-100k", data_terms=tuning.data_terms or terms)
    return replace(log, events=events, items=items), named


def _of_catalogue(job: _Job, out: Path, *, publish: bool) -> int:
    """A version of the catalogue alone; the exit status."""
    from freshet.cli.training_log import catalogue_file, over

    say("no --events: the version is made of the catalogue's texts and learns nothing")
    with _alone(job.work) as lock:
        told = {"items": catalogue_file(job.source, job.work), "source": job.source.items, "out": out}
        arguments = [*job.arguments, *_flags(told)]
        status = run_module("freshet_training.day_zero", arguments, threads=job.threads, keep=[lock])
        over(job.source, job.work)
    return status or _release(job, out, publish=publish)


def _again_and_again(job: _Job, interval: float, *, publish: bool) -> None:
    """Run incrementally for ever; a run that fails is tried again when the next run is due."""
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


def _once(job: _Job, bundle: Path, *, publish: bool, polite: bool = False) -> int:
    """Train, and publish what was accepted; the exit status."""
    status = _run(job, bundle, polite=polite)
    plain = bundle.with_name(bundle.name + WITHOUT_NETWORK)
    if status == REFUSED and (plain / MANIFEST).is_file() and _is_accepted(plain):
        say(f"{plain} serves without a network")
        _release(job, plain, publish=publish)
    if status or not (bundle / MANIFEST).is_file():
        return status
    return _release(job, bundle, publish=publish)


def _is_accepted(bundle: Path) -> bool:
    gate = read_manifest(bundle).gate
    return gate is not None and gate.accepted


def _release(job: _Job, bundle: Path, *, publish: bool) -> int:
    """Sign a bundle, and publish it or say how; the exit status."""
    status = 0
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

    with _alone(job.work) as lock:
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
    return status


@contextmanager
def _alone(work: Path) -> Iterator[int]:
    """Hold the work folder of a run, and give the lock's descriptor. Raises `UserError`."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        with held(work / "export.lock") as lock:
            yield lock
    except HeldError:
        raise UserError(f"another training run is at work in {work}") from None
    except OSError as error:
        raise UserError(f"{error.filename or work}: {error.strerror or error}") from None


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
    names = ("*Z", f"*Z{WITHOUT_NETWORK}")
    for partial in chain.from_iterable(candidates.glob(f".{name}.partial") for name in names):
        shutil.rmtree(partial)
    found = chain.from_iterable(candidates.glob(name) for name in names)
    bundles = sorted(folder for folder in found if folder.is_dir())  # names sort by time
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
