"""Train a model version: an event log and an items file in, a bundle that has passed a gate out.

    python -m freshet_training.train --events log.jsonl --items items.jsonl \
        --config deploy/domains/films.toml --out bundle/

Step 4 of the folder, which runs all the other steps. The epoch, the prior's weight
and the baseline's window are chosen by the best NDCG@10 on the untied events of the
validation part; an epoch is scored as it would be served, with the prior. The test
part is used once, at the end. A candidate that the gate accepts is fitted anew on all three parts.

If a run was killed, the same command goes on from the last epoch. An incremental run
starts from the live version's weights. It learns the events that the live version did
not learn, with the events that chose and judged the live version, rehearses some older
events, and lets new items in. Exit status: 0, a bundle was written; 1, no bundle could
be written; 3, the gate refused the bundle.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from freshet.bundle.bundle import Bundle, load_bundle
from freshet.errors import FreshetError
from freshet.files import HeldError, held, write_whole

from freshet_training import gate
from freshet_training.candidate import write_candidate, write_without_network
from freshet_training.config import ConfigError, TrainingConfig, load_config, names_training
from freshet_training.console import Advance, progress, say
from freshet_training.dataset import DatasetError
from freshet_training.defaults import CHOOSING, MINUTES, Choice, LogFacts, choose, former_settings, proposed_repeats
from freshet_training.dp_sgd import DpSgd
from freshet_training.evaluate import EvaluationReplay
from freshet_training.export import require_free
from freshet_training.fit import Epoch, FittedEncoder, Hyperparameters, fit, teacher_seeds
from freshet_training.increment import NothingNewError
from freshet_training.measure import ValidationPart, measure
from freshet_training.model import UserEncoder
from freshet_training.model_shape import check_model_settings
from freshet_training.search import FoundSettings, Objective, search
from freshet_training.tracking import MlflowTracker
from freshet_training.training_run import RunRequest, TrainingRun, increment_digest, run_digest
from freshet_training.training_set import (
    TrainingFiles,
    TrainingSet,
    dp_sgd_users,
    epoch_rows,
    model_shape,
    read_training_set,
    with_held_back,
    with_words,
)
from freshet_training.warm_start import warm_start

REFUSED = 3
REFUSED_FILE = "refused"
"""In the work folder: the `increment_digest` of the last incremental run whose candidate the gate refused."""


def train(request: RunRequest, config: TrainingConfig) -> bool:
    """Run every step; returns whether the gate accepted. Raises `FreshetError`, `NothingNewError`, `OSError`."""
    work = request.files.work
    _check(request, config)
    torch.set_num_threads(config.threads)
    with _alone(work):
        live = load_bundle(request.live) if request.live is not None else None
        parent = live if request.incremental and live is not None and live.manifest.network else None
        training_set = read_training_set(config, request.files, parent)
        _say_text_encoder(live, training_set)
        chosen = _chosen(request, config, training_set, parent)
        if chosen is not None and request.given is not None:
            config = chosen.applied(config, request.given)
            if config.words and parent is None:
                training_set = with_words(training_set)
        if proposal := proposed_repeats(training_set.runs, config.repeats):
            say(proposal)
        replay = _replay(config, training_set)
        refused = work / REFUSED_FILE
        increment = increment_digest(config, training_set, parent) if request.incremental else ""
        if increment and refused.is_file() and refused.read_text() == increment:
            raise NothingNewError(f"nothing new since the gate refused a candidate; remove {refused} to try once more")
        found = FoundSettings(work / "search.json", run_digest(config, training_set, parent))
        if request.search_seconds:
            validation = ValidationPart(training_set, replay)
            config = _searched(request.search_seconds, config, found, _objective(training_set, validation, parent))
        digest = run_digest(config, training_set, parent)
        tracker = MlflowTracker(request.tracking, config.name, digest, work) if request.tracking else None
        with _tracked(tracker):
            accepted = _train(TrainingRun(request, config, training_set, replay, live, digest, tracker, chosen))
            found.remove()
            if increment and not accepted:
                write_whole(refused, increment.encode())
        return accepted


def _say_text_encoder(live: Bundle | None, training_set: TrainingSet) -> None:
    """Say where the gate cannot place the live version's new items: it has the new text encoder's vectors alone."""
    theirs, ours = live.manifest.text_encoder if live is not None else None, training_set.text_encoder
    if theirs is not None and ours is not None and not theirs.is_of(ours):
        say("the live version was trained with another text encoder: the gate judges it unfairly on items new to it")


def _chosen(
    request: RunRequest, config: TrainingConfig, training_set: TrainingSet, parent: Bundle | None
) -> Choice | None:
    """The settings for the log, where none are given; those of the live version in a run that goes on from it."""
    if request.given is None:
        return None
    if parent is not None:
        return former_settings(parent.manifest.settings)
    facts, minutes = LogFacts.of(training_set), request.minutes or MINUTES
    chosen = choose(facts, minutes, config.threads)
    say(f"the log: {facts}")
    for reason in chosen.reasons:
        say(f"  {reason}")
    say(f"settings chosen for {minutes:g} minutes (--minutes): {chosen}")
    return chosen


@contextmanager
def _tracked(tracker: MlflowTracker | None) -> Iterator[None]:
    """End the record with the run. Ctrl-C leaves the record open: the next command goes on with the run."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        if tracker is not None:
            tracker.end(failed=True)
        raise
    if tracker is not None:
        tracker.end()


def _check(request: RunRequest, config: TrainingConfig) -> None:
    """Refuse before anything is read what cannot be done. Raises `ExportError`, `ConfigError`."""
    require_free(request.out)
    check_model_settings(config)
    if config.privacy is not None and (request.incremental or request.search_seconds):
        raise ConfigError("[training.privacy]: what several runs over the same users tell adds up; train once, anew")


def _searched(seconds: float, config: TrainingConfig, found: FoundSettings, objective: Objective) -> TrainingConfig:
    """The settings that a search finds, or that the search of a stopped run has found."""
    before = found.load()
    if before is not None:
        say("going on with the settings that the search of the stopped run found")
        return before
    best = search(objective, config, seconds, say)
    found.save(best)
    return best


def _replay(config: TrainingConfig, training_set: TrainingSet) -> EvaluationReplay:
    return EvaluationReplay(
        training_set.log.events,
        training_set.catalogue,
        training_set.item_index,
        config.type_index,
        config.popularity_half_life,
        model_shape(config, training_set).length,
        history=config.history,
        targets=config.targeted,
        counted=config.counted,
    )


def _train(run: TrainingRun) -> bool:
    config, training_set, tracker = run.config, run.training_set, run.tracker
    if tracker is not None:
        tracker.note(run.parameters, run.tags)
    validation = ValidationPart(training_set, run.replay)
    dp_sgd = dp_sgd_users(config, training_set)
    fitted = _fit(run, validation, dp_sgd)
    measured = measure(fitted, training_set, run.replay, validation)
    if tracker is not None:
        scores = measured.metrics.items()
        tracker.log({f"test {name} {key}": value for name, values in scores for key, value in values.items()})
    privacy = dp_sgd.spent(fitted.steps) if dp_sgd is not None else None
    if privacy is not None:
        say(f"private by {privacy.unit}: epsilon {privacy.epsilon:.3g}, delta {privacy.delta:g}")
    decision = write_candidate(run, measured, privacy, functools.partial(_refit, run, fitted.epoch))
    accepted = decision.accepted
    if any(check.name == gate.NETWORK and not check.passed for check in decision.checks):
        write_without_network(run, validation)
    if tracker is not None:
        tracker.note({}, {"gate": "accepted" if accepted else "refused", "bundle": str(run.request.out)})
    run.remove_checkpoints()
    return accepted


def _fit(run: TrainingRun, validation: ValidationPart, dp_sgd: DpSgd | None) -> FittedEncoder:
    """The run's encoder, fitted from its checkpoint on where one is there."""
    config, training_set, tracker = run.config, run.training_set, run.tracker

    def report(epoch: Epoch) -> None:
        say(str(epoch))
        if tracker is not None:
            scores = {"loss": epoch.loss} | ({} if epoch.score is None else {"validation ndcg@10": epoch.score})
            tracker.log(scores, epoch.number)

    checkpoint = run.checkpoint()
    stored = checkpoint.load()
    if stored is not None:
        say(f"going on after epoch {stored[1].epoch} of a run that was stopped")
    model = _model(config, training_set, run.parent)
    say(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")
    teachers = [] if run.parent is not None else list(_teachers(run, validation))
    minutes = run.request.minutes or (MINUTES if run.chosen is not None else math.inf)
    deadline = time.monotonic() + 60 * CHOOSING * minutes
    with progress("epoch") as advance:
        return fit(
            model,
            epoch_rows(config, training_set),
            validation.score,
            Hyperparameters.of(config),
            report=report,
            advance=advance,
            checkpoint=checkpoint,
            dp_sgd=dp_sgd,
            teachers=teachers,
            over=lambda: time.monotonic() > deadline,
        )


def _teachers(run: TrainingRun, validation: ValidationPart) -> Iterator[UserEncoder]:
    """The models to learn from, each on a seed of its own. A run that goes on finds the models that were fitted."""
    for number, seed in enumerate(teacher_seeds(run.config), 1):
        config = msgspec.structs.replace(run.config, seed=seed)
        with progress(f"teacher {number}") as advance:
            yield fit(
                _model(config, run.training_set, None),
                epoch_rows(config, run.training_set),
                validation.score,
                Hyperparameters.of(config),
                report=functools.partial(_say_epoch, f"teacher {number}"),
                advance=advance,
                checkpoint=run.checkpoint(number),
            ).model


def _refit(run: TrainingRun, epochs: int) -> tuple[UserEncoder, TrainingSet]:
    """The encoder fitted anew on the whole log, for as many epochs as were best, and the set that it learned."""
    whole = with_held_back(run.training_set)
    say(f"fitting anew on the whole log, {epochs} epochs: what was held back is learned too")

    def fitted(config: TrainingConfig, teacher: int, teachers: Sequence[UserEncoder] = ()) -> UserEncoder:
        label = f"teacher {teacher} of the refit" if teacher else "refit"
        hyperparameters = Hyperparameters.of(msgspec.structs.replace(config, epochs=epochs))
        with progress(label) as advance:
            return fit(
                _model(config, whole, run.parent),
                epoch_rows(config, whole),
                None,
                hyperparameters,
                report=functools.partial(_say_epoch, label),
                advance=advance,
                checkpoint=run.checkpoint(teacher, refit=True),
                teachers=teachers,
            ).model

    seeds = enumerate(teacher_seeds(run.config) if run.parent is None else (), 1)
    teachers = [fitted(msgspec.structs.replace(run.config, seed=seed), number) for number, seed in seeds]
    return fitted(run.config, 0, teachers), whole


def _say_epoch(label: str, epoch: Epoch) -> None:
    say(f"{label}: {epoch}")


def _model(config: TrainingConfig, training_set: TrainingSet, parent: Bundle | None) -> UserEncoder:
    torch.manual_seed(config.seed)
    numbers = torch.from_numpy(training_set.word_numbers) if training_set.word_numbers is not None else None
    model = UserEncoder(model_shape(config, training_set), torch.from_numpy(training_set.known), numbers)
    if parent is not None:
        warm_start(model, parent, training_set.item_ids, config.types)
    return model


def _objective(training_set: TrainingSet, validation: ValidationPart, parent: Bundle | None) -> Objective:
    def objective(config: TrainingConfig, report: Callable[[Epoch], None], advance: Advance) -> float:
        model, rows = _model(config, training_set, parent), epoch_rows(config, training_set)
        return fit(model, rows, validation.score, Hyperparameters.of(config), report=report, advance=advance).score

    return objective


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the lock of the work folder: two runs in one folder are refused. The lock goes with its process."""
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
    parser.add_argument("--minutes", type=float, help="time that the run may take, about")
    parser.add_argument("--tracking", metavar="URI", help="MLflow store; `none` keeps no record")
    parser.add_argument("--name")
    for name in ("epochs", "positions", "teachers", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--repeats", type=lambda kinds: tuple(kinds.split(",")), help="behaviours, with commas between")
    parser.add_argument("--data-terms", help="terms of the training data")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = parse(arguments)
    named = ("name", "epochs", "positions", "teachers", "seed", "threads", "learning_rate", "data_terms", "repeats")
    flags = {name: getattr(given, name) for name in named}
    default = f"sqlite:///{(given.work / 'tracking.db').absolute()}"
    request = RunRequest(
        TrainingFiles(given.events, given.items, given.work, given.text_encoder),
        given.out,
        source=given.source or given.events.name,
        left_out=given.left_out,
        live=given.live,
        incremental=given.incremental,
        search_seconds=given.search,
        minutes=given.minutes,
        tracking=None if given.tracking == "none" else given.tracking or default,
    )
    started = time.perf_counter()
    try:
        config = load_config(given.config, **flags)
        if not names_training(given.config):
            request = replace(request, given=frozenset(name for name, value in flags.items() if value is not None))
        accepted = train(request, config)
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
    say(f"{request.out} in {time.perf_counter() - started:.0f} s")
    return 0 if accepted else REFUSED


if __name__ == "__main__":
    sys.exit(main())
