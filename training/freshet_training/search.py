"""Hyperparameters in bounded time, with Optuna: the settings given are the first trial, so the best is no worse.

A trial that is behind the median of the others at the same epoch is stopped, and so is one whose loss is no number,
and the one that is under way when the time is over. What was found is kept until the run that it is for is over, so
that one that was killed goes on with the same settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from freshet.core.decoding import Undecodable, decode
from freshet.files import write_json

from freshet_training.config import TrainingConfig
from freshet_training.console import Advance
from freshet_training.fit import Epoch, FitError
from freshet_training.layout import check_version
from freshet_training.model_shape import ModelShape

Objective = Callable[[TrainingConfig, Callable[[Epoch], None], Advance], float]
"""Trains with a config, telling each epoch and each step, and returns the validation's score."""

POSITIONS = (1024, 2048, 4096)
RANGES = {
    "learning_rate": (3e-4, 1e-2, True),
    "weight_decay": (1e-4, 1e-1, True),
    "dropout": (0.0, 0.5, False),
    "item_dropout": (0.0, 0.5, False),
}
"""From where to where is searched, and whether on a log scale; a setting beyond moves the end."""


class OutOfTimeError(Exception):
    """The search's time is over in the middle of a trial."""


VERSION = 1


class _StoredSettings(msgspec.Struct, frozen=True):
    version: int
    run: str
    config: TrainingConfig


_decoder = msgspec.json.Decoder(_StoredSettings)


class FoundSettings:
    """The settings that a search found, on disk; `run` is the digest of the log, the start and the settings given."""

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run

    def load(self) -> TrainingConfig | None:
        """The settings that were found for this run, or None. Raises `LayoutError`."""
        try:
            raw = self._path.read_bytes()
        except OSError:
            return None
        check_version(self._path, raw, VERSION)
        stored = decode(_decoder, raw)
        return None if isinstance(stored, Undecodable) or stored.run != self._run else stored.config

    def save(self, config: TrainingConfig) -> None:
        """Replace what is there. Raises `OSError`."""
        write_json(self._path, _StoredSettings(VERSION, self._run, config))

    def remove(self) -> None:
        """The run is over: the next one searches anew."""
        self._path.unlink(missing_ok=True)


def search(objective: Objective, config: TrainingConfig, seconds: float, say: Callable[[str], None]) -> TrainingConfig:
    """The config with the best score that `seconds` of trials found."""
    import optuna  # noqa: PLC0415 - only where there is a search

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    in_time = _until(time.monotonic() + seconds)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=config.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    study.enqueue_trial(_given(config))

    def run(trial: Any) -> float:
        return _score(trial, _suggest(trial, config), objective, in_time, say)

    study.optimize(run, timeout=seconds)
    try:
        best = study.best_trial
    except ValueError:
        say("the search's time ended before the first validation: the settings stay as they are")
        return config
    say(f"best of {len(study.trials)} trials: {best.value:.4f}  {_told(best.params)}")
    return _with(config, best.params)


def _score(
    trial: Any, tried: TrainingConfig, objective: Objective, in_time: Advance, say: Callable[[str], None]
) -> float:
    """The validation's best score of one trial; raises what tells Optuna that it has none."""
    import optuna  # noqa: PLC0415 - as above

    best = -1.0

    def report(epoch: Epoch) -> None:
        nonlocal best
        if epoch.score is not None:
            best = max(best, epoch.score)
            trial.report(epoch.score, epoch.number)
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        score = objective(tried, report, in_time)
    except OutOfTimeError:
        trial.study.stop()
        if best < 0:
            raise optuna.TrialPruned from None
        score = best
    except optuna.TrialPruned:
        say(f"trial {trial.number}: stopped, behind the others  {_told(trial.params)}")
        raise
    except FitError as error:
        if trial.number == 0:  # the settings given
            raise
        say(f"trial {trial.number}: {error}  {_told(trial.params)}")
        raise optuna.TrialPruned from None
    say(f"trial {trial.number}: validation NDCG@10 {score:.4f}  {_told(trial.params)}")
    return score


def _until(deadline: float) -> Advance:
    """To be told each step; ends the trial once the monotonic clock is past the deadline."""

    def advance(_done: int, _total: int) -> None:
        if time.monotonic() > deadline:
            raise OutOfTimeError

    return advance


def _given(config: TrainingConfig) -> dict[str, Any]:
    """The settings as they are; a weight decay of 0 is not searched, for on a log scale nothing is near it."""
    return {
        "learning_rate": config.learning_rate,
        **({"weight_decay": config.weight_decay} if config.weight_decay else {}),
        "positions": config.positions,
        "dropout": config.model.get("dropout", ModelShape.dropout),
        "item_dropout": config.model.get("item_dropout", ModelShape.item_dropout),
    }


def _suggest(trial: Any, config: TrainingConfig) -> TrainingConfig:
    given = _given(config)
    found = {"positions": trial.suggest_categorical("positions", sorted({*POSITIONS, config.positions}))}
    for name, (low, high, log) in RANGES.items():
        if name in given:
            found[name] = trial.suggest_float(name, min(low, given[name]), max(high, given[name]), log=log)
    return _with(config, found)


def _with(config: TrainingConfig, found: dict[str, Any]) -> TrainingConfig:
    shape = {name: found[name] for name in ("dropout", "item_dropout")}
    rest = {name: value for name, value in found.items() if name not in shape}
    return msgspec.structs.replace(config, model={**config.model, **shape}, **rest)


def _told(found: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in found.items())
