"""Train a model version: an event log and an items file in, a bundle that has passed a gate out.

    python -m freshet_training.train --events log.jsonl --items items.jsonl \
        --config deploy/domains/films.toml --out bundle/

Step 4 of the folder, and the one that runs all the others. The epoch, the
prior's weight and the baseline's window are those with the best NDCG@10 on the
untied events of the validation part, the epoch's as it would be served, with the
prior; the test part is used once, at the end.

A run that was killed goes on where it stood when the same command is given
again. An incremental run starts from the live version's weights, learns the
events that one did not, those it was chosen and judged by among them, and some
older ones, and lets new items in. Status:
0 a bundle was written, 1 it could not be, 3 the gate refused it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import msgspec
import torch
from freshet.bundle.bundle import WEIGHTS, Bundle, Data, Privacy, load_bundle, write_manifest
from freshet.core.events import encode_event
from freshet.errors import FreshetError
from freshet.files import HeldError, held, write_whole

from freshet_training import gate
from freshet_training.checkpoint import Checkpoint
from freshet_training.config import Config, ConfigError, load_config
from freshet_training.console import Advance, progress, say
from freshet_training.dataset import DatasetError
from freshet_training.evaluate import EvaluationSet, Replay
from freshet_training.export import export_bundle
from freshet_training.fit import Epoch, Fitted, Options, fit, teacher_seeds
from freshet_training.lifts import item_lifts
from freshet_training.measure import UNTIED, measure, table, validator
from freshet_training.model import Config as ModelConfig
from freshet_training.model import UserEncoder
from freshet_training.model_card import model_card
from freshet_training.regression_set import CANARY_FILE
from freshet_training.search import Found, Objective, search
from freshet_training.tracking import Tracker
from freshet_training.training_set import Material, NothingNewError, epoch_rows, gather, model_config, private_users
from freshet_training.warm_start import warm_start

REFUSED = 3
REFUSED_FILE = "refused"
"""In the work folder: the digest of what the last incremental run whose candidate the gate refused was asked."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """One run's places.

    `live` is the version that the gate compares with; an `incremental` run
    starts from it. `source` says where the log comes from and `left_out` what of it
    was no event, by reason, for the record.
    """

    events: Path
    items: Path | None
    out: Path
    work: Path
    text_encoder: Path
    source: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    live: Path | None = None
    incremental: bool = False
    search_seconds: float | None = None
    tracking: str | None = None


def train(job: Job, config: Config) -> bool:
    """Run every step; returns whether the gate accepted. Raises `FreshetError`, `NothingNewError`, `OSError`."""
    _check_out(job.out)
    _check_model(config)
    if config.privacy is not None and (job.incremental or job.search_seconds):
        raise ConfigError("[training.privacy]: what several runs over the same users tell adds up; train once, anew")
    torch.set_num_threads(config.threads)
    with _alone(job.work):
        live = load_bundle(job.live) if job.live is not None else None
        parent = live if job.incremental else None
        material = gather(config, job.events, job.items, job.work, job.text_encoder, parent)
        replay = _replay(config, material)
        refused, asked = job.work / REFUSED_FILE, _asked_digest(config, material, parent) if job.incremental else ""
        if asked and refused.is_file() and refused.read_text() == asked:
            raise NothingNewError(f"nothing new since the gate refused a candidate; remove {refused} to try once more")
        found = Found(job.work / "search.json", _run_digest(config, material, parent))
        if job.search_seconds:
            config = _searched(job.search_seconds, config, found, _objective(material, replay, parent))
        run = _run_digest(config, material, parent)
        tracker = Tracker(job.tracking, config.name, run, job.work) if job.tracking else None
        try:
            accepted = _train(job, config, material, replay, live, run, tracker)
        except KeyboardInterrupt:
            raise  # the run goes on with the next command
        except BaseException:
            if tracker is not None:
                tracker.end(failed=True)
            raise
        found.remove()
        if asked and not accepted:
            write_whole(refused, asked.encode())
        if tracker is not None:
            tracker.end()
        return accepted


def _searched(seconds: float, config: Config, found: Found, objective: Objective) -> Config:
    """The settings that a search finds, or found already for a run that was stopped."""
    before = found.load()
    if before is not None:
        say("going on with the settings that the search of the stopped run found")
        return before
    best = search(objective, config, seconds, say)
    found.save(best)
    return best


def _replay(config: Config, material: Material) -> Replay:
    return Replay(
        material.log.events,
        material.catalogue,
        material.item_index,
        config.type_index,
        config.popularity_half_life,
        model_config(config, material).length,
        history=config.history,
        targets=config.targeted,
    )


def _train(
    job: Job,
    config: Config,
    material: Material,
    replay: Replay,
    live: Bundle | None,
    run: str,
    tracker: Tracker | None,
) -> bool:
    if tracker is not None:
        tracker.note(_parameters(config), _tags(job, material))

    def report(epoch: Epoch) -> None:
        say(str(epoch))
        if tracker is not None:
            scores = {"loss": epoch.loss} | ({} if epoch.score is None else {"validation ndcg@10": epoch.score})
            tracker.log(scores, epoch.number)

    checkpoint = _checkpoint(job, run)
    stored = checkpoint.load()
    if stored is not None:
        say(f"going on after epoch {stored[1]['epoch']} of a run that was stopped")
    parent = live if job.incremental else None
    model, private = _model(config, material, parent), private_users(config, material)
    say(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    teachers = [] if parent is not None else list(_teachers(job, config, material, replay, run))
    with progress("epoch") as advance:
        fitted = fit(
            model,
            epoch_rows(config, material),
            validator(material, replay),
            Options.of(config),
            report=report,
            advance=advance,
            checkpoint=checkpoint,
            private=private,
            teachers=teachers,
        )
    prior_weight, metrics = measure(fitted, material, replay)
    if tracker is not None:
        tracker.log({f"test {name} {key}": value for name, values in metrics.items() for key, value in values.items()})
    privacy = private.spent(fitted.steps) if private is not None else None
    if privacy is not None:
        say(f"private by {privacy.unit}: epsilon {privacy.epsilon:.3g}, delta {privacy.delta:g}")
    accepted = _write(job, config, material, live, fitted, prior_weight, metrics, privacy)
    if tracker is not None:
        tracker.note({}, {"gate": "accepted" if accepted else "refused", "bundle": str(job.out)})
    for number in range(config.teachers + 1):
        _checkpoint(job, run, number).remove()
    return accepted


def _teachers(job: Job, config: Config, material: Material, replay: Replay, run: str) -> Iterator[UserEncoder]:
    """The models to learn from, each on a seed of its own; a run that goes on finds those that were done."""
    for number, seed in enumerate(teacher_seeds(config), 1):
        own = msgspec.structs.replace(config, seed=seed)
        with progress(f"teacher {number}") as advance:
            yield fit(
                _model(own, material, None),
                epoch_rows(own, material),
                validator(material, replay),
                Options.of(own),
                report=functools.partial(_tell_teacher, number),
                advance=advance,
                checkpoint=_checkpoint(job, run, number),
            ).model


def _tell_teacher(number: int, epoch: Epoch) -> None:
    say(f"teacher {number}: {epoch}")


def _checkpoint(job: Job, run: str, teacher: int = 0) -> Checkpoint:
    """Where the run stands, or its `teacher`."""
    return Checkpoint(job.work / (f"teacher-{teacher}.safetensors" if teacher else "checkpoint.safetensors"), run)


def _check_model(config: Config) -> None:
    """See that `[training.model]` names fields of `freshet_training.model.Config`, with values of their kind."""
    fields = {field.name: field for field in dataclasses.fields(ModelConfig) if field.name not in ("items", "types")}
    for name, value in config.model.items():
        if name not in fields:
            raise ConfigError(f"[training.model]: {name!r} is no setting, there are {', '.join(fields)}")
        kind = float if fields[name].default is None else type(fields[name].default)
        if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
            raise ConfigError(f"[training.model]: {name} is {kind.__name__}, not {value!r}")
    try:
        shape = ModelConfig(items=1, types=1, **config.model)
    except ValueError as error:
        raise ConfigError(f"[training.model]: {error}") from None
    if shape.length > config.history:
        raise ConfigError(
            f"[training.model]: length {shape.length} is more than the history of {config.history} that is kept"
        )


def _model(config: Config, material: Material, parent: Bundle | None) -> UserEncoder:
    torch.manual_seed(config.seed)
    words = torch.from_numpy(material.words) if material.words is not None else None
    model = UserEncoder(model_config(config, material), torch.from_numpy(material.known), words)
    if parent is not None:
        warm_start(model, parent, material.item_ids, config.types)
    return model


def _objective(material: Material, replay: Replay, parent: Bundle | None) -> Objective:
    def objective(config: Config, report: Callable[[Epoch], None], advance: Advance) -> float:
        model, rows = _model(config, material, parent), epoch_rows(config, material)
        options = Options.of(config)
        return fit(model, rows, validator(material, replay), options, report=report, advance=advance).score

    return objective


def _write(
    job: Job,
    config: Config,
    material: Material,
    live: Bundle | None,
    fitted: Fitted,
    prior_weight: float,
    metrics: dict[str, dict[str, float]],
    privacy: Privacy | None,
) -> bool:
    """The bundle, made beside its place and moved there whole; returns whether the gate accepted it."""
    partial = job.out.with_name(f".{job.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    split, log = material.split, material.log
    export_bundle(
        fitted.model,
        partial,
        material.item_ids,
        material.known,
        config=config,
        prior_weight=prior_weight,
        metrics=metrics,
        data=Data(
            source=job.source,
            digest=log.digest,
            first=log.events[0].ts,
            last=log.events[-1].ts,
            trained_to=split.validation[0].ts,
            events=len(log.events),
            users=len({event.user_id for event in log.events}),
            cleaning={
                **_left_out(job, material),
                "items without text": material.without_text,
                "held back as canaries": material.canaries,
            },
        ),
        commit=_commit(),
        parent=live.path.name if live is not None and job.incremental else "",
        privacy=privacy,
        lifts=item_lifts(chain.from_iterable(material.runs), material.item_ids, config.behaviours)
        if privacy is None
        else None,
        model_card=model_card(
            config,
            fitted.model.config,
            split,
            table(metrics),
            table(metrics, UNTIED),
            cold=int(material.unseen.any(axis=1).sum()),
            prior_weight=prior_weight,
            privacy=privacy,
        ),
    )
    candidate = load_bundle(partial)
    judged_from = len(split.train) + len(split.validation)
    ground = EvaluationSet(log.events, judged_from, material.catalogue, material.texts, log.forgotten)
    decision = gate.judge(candidate, live, ground, config, job.work / CANARY_FILE)
    say(gate.report(decision))
    write_manifest(partial, msgspec.structs.replace(candidate.manifest, gate=decision))
    if job.out.exists():
        job.out.rmdir()
    job.out.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(job.out)
    return decision.accepted


def _parameters(config: Config) -> dict[str, object]:
    values = msgspec.to_builtins(config)
    flat = {
        f"{group}.{name}": value
        for group in ("model", "gate", "privacy")
        for name, value in (values.pop(group) or {}).items()
    }
    return {**values, **flat}


def _tags(job: Job, material: Material) -> dict[str, str]:
    events = material.log.events
    return {
        "commit": _commit(),
        "source": job.source,
        "data.digest": material.log.digest,
        "data.first": str(events[0].ts),
        "data.last": str(events[-1].ts),
        "data.cleaning": ", ".join(f"{count} {reason}" for reason, count in _left_out(job, material).items()) or "none",
    }


def _left_out(job: Job, material: Material) -> Counter[str]:
    """What was not learned from, by reason: where the log was exported, and here."""
    return Counter(job.left_out) + Counter(material.log.cleaning)


def _commit() -> str:
    """The commit of the code that runs, with `+` where files differ from it; empty outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def _run_digest(config: Config, material: Material, parent: Bundle | None) -> str:
    return hashlib.sha256(
        f"{config.digest} {material.digest} {_start(parent)} {torch.__version__}".encode()
    ).hexdigest()


def _asked_digest(config: Config, material: Material, parent: Bundle | None) -> str:
    """Of the settings before a search, the start, what is new since, and the code; not of what a run leaves behind."""
    digest = hashlib.sha256(f"{config.digest} {_start(parent)} {_commit()}".encode())
    for event in material.log.events:
        if event.ts >= material.since:
            digest.update(encode_event(event))
    return digest.hexdigest()


def _start(parent: Bundle | None) -> str:
    """The digest of the weights that a run starts from; empty where it starts anew."""
    return parent.manifest.files[WEIGHTS] if parent is not None else ""


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} is taken: move it away, or name another folder with --out")


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Never two runs in one folder: the lock goes with the process that holds it."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        with held(work / "lock"):
            yield
    except HeldError:
        raise DatasetError(f"another training run is at work in {work}") from None


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="freshet_training.train", description=__doc__.split("\n\n")[0])
    parser.add_argument("--events", type=Path, required=True, help="event log, JSON lines")
    parser.add_argument("--items", type=Path, help="catalogue, JSON lines; without it items have no text")
    parser.add_argument("--config", type=Path, help="settings file of the domain")
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundle; must not exist or be empty")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, text vectors and tracking")
    parser.add_argument("--text-encoder", type=Path, required=True, help="folder with model.onnx and tokenizer.json")
    parser.add_argument("--live", type=Path, help="the version folder that the candidate is compared with")
    parser.add_argument("--incremental", action="store_true", help="start from the weights of --live")
    parser.add_argument("--source", default="", help="where the log comes from, for the record")
    parser.add_argument("--left-out", type=json.loads, default={}, help="what of it was no event, JSON by reason")
    parser.add_argument("--search", type=float, metavar="SECONDS", help="first search hyperparameters for so long")
    parser.add_argument("--tracking", metavar="URI", help="MLflow store; `none` keeps no record")
    parser.add_argument("--name")
    for name in ("epochs", "positions", "teachers", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--data-terms", help="terms of the training data")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = parse(arguments)
    named = ("name", "epochs", "positions", "teachers", "seed", "threads", "learning_rate", "data_terms")
    flags = {name: getattr(given, name) for name in named}
    default = f"sqlite:///{(given.work / 'tracking.db').absolute()}"
    job = Job(
        events=given.events,
        items=given.items,
        out=given.out,
        work=given.work,
        text_encoder=given.text_encoder,
        source=given.source or given.events.name,
        left_out=given.left_out,
        live=given.live,
        incremental=given.incremental,
        search_seconds=given.search,
        tracking=None if given.tracking == "none" else given.tracking or default,
    )
    started = time.perf_counter()
    try:
        accepted = train(job, load_config(given.config, **flags))
    except NothingNewError as nothing:
        say(str(nothing))
        return 0
    except FreshetError as error:
        sys.stderr.write(f"freshet: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"freshet: {error.filename or given.work}: {error.strerror or error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last epoch\n")
        return 130
    say(f"{job.out} in {time.perf_counter() - started:.0f} s")
    return 0 if accepted else REFUSED


if __name__ == "__main__":
    sys.exit(main())
