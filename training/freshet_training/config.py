"""What a run is told: one settings file per domain, which the worker reads as well.

The top level of the file is the worker's (`freshet worker --config FILE`);
training shares with it the behaviours, the texts and the prior. The table
`[training]` is training's own, `[training.model]` holds fields of
`freshet_training.model_shape.ModelShape`, `[training.gate]` what a candidate must hold, and
`[training.privacy]`, where it stands there, makes the run differentially private.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from freshet.core.catalogue import TEXT_FIELDS, TextField
from freshet.core.events import DEFAULT_BEHAVIOURS, Weight, wrong_behaviours
from freshet.core.state import HISTORY
from freshet.errors import FreshetError

SHARED = ("behaviours", "history", "popularity_half_life", "text_fields")
"""Settings of the worker that training reads too."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0.01, le=0.5)]
Rate = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Part = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ConfigError(FreshetError):
    """A settings file cannot be used; the message names the setting."""


class GateLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate must hold to be published."""

    tolerance: Rate = 0.05
    """Part of the live version's NDCG@10 that the candidate may lack."""
    coverage: Part = 0.7
    """Least coverage of the catalogue by lists, as a part of the live version's."""
    diversity: Part = 0.7
    """Least distance between the items of a list, as a part of the live version's."""
    regression_set: Part = 0.8
    """Least NDCG@10 on the regression set, as a part of the live version's."""
    latency_ms: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    """Most milliseconds a user at batch 64 on one thread."""
    size_mb: Annotated[float, msgspec.Meta(gt=0)] = 512.0
    """Most megabytes of the bundle."""
    events: Positive = 3000
    """Most events that are judged."""


class PrivacySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How private the weights are by user; more noise, fewer epochs and fewer users a step make ε smaller."""

    noise: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Standard deviation of the noise, as a multiple of `clip`."""
    clip: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Longest gradient of a user."""
    users_per_step: Positive = 64
    """Users drawn in a step, on average."""
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5
    """Chance that the promise of ε fails; well below one in the number of users."""


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what comes of a log."""

    behaviours: dict[str, Weight] = msgspec.field(default_factory=lambda: dict(DEFAULT_BEHAVIOURS))
    """Behaviour types with their weights."""
    history: Positive = HISTORY
    """Recent events that the worker keeps per user."""
    popularity_half_life: Annotated[float, msgspec.Meta(gt=0)] = 7 * 86_400.0
    """Half-life of an interaction in the popularity prior, seconds of event time."""
    text_fields: tuple[TextField, ...] = TEXT_FIELDS
    """Fields of a catalogue item that its text is joined from."""

    name: str = "freshet"
    data_terms: str = "unstated"
    """Terms of the training data; the weights stand under them too."""
    note: str = ""
    """What else the model card should say of the data or its use."""
    targets: tuple[str, ...] = ()
    """Behaviour types that are predicted and judged; all where none is named."""
    repeats: tuple[str, ...] = ()
    """Behaviour types after which an item may be recommended to its user again: where people come back to things."""
    validation_share: Share = 0.1
    test_share: Share = 0.1
    min_users: Positive = 10
    """Fewest users with two events or more."""
    flood_per_minute: Positive = 120
    """Most events of a user in a minute; what is beyond comes from a machine."""

    epochs: Positive = 60
    patience: Positive = 4
    """Validations without a better one before a run stops."""
    validate_every: Positive = 2
    """Epochs between two validations."""
    positions: Positive = 2048
    """Targets a step, about."""
    overlap: Annotated[float, msgspec.Meta(ge=0, le=0.9)] = 0.5
    """Part of a row that the next one of the same history sees again: less is faster, more gives longer contexts."""
    negatives: Positive = 1500
    """Items a step is scored against, where the catalogue is too large to score whole."""
    look_ahead: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Chance that a target is one item further on, and again: for logs whose order within a visit says little."""
    teachers: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Models fitted first, each on a seed of its own, whose mean scores the model learns beside the log."""
    words: bool = False
    """Whether what is learned of an item is shared by the words of its text: for a long tail of telling titles. An
    incremental run goes on from what they gave and learns no words itself."""
    learning_rate: Rate = 3e-3
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 1e-2
    average: Rate = 0.99
    """Decay of the moving average of the weights."""
    rehearsal: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """An incremental run's older rows, as a part of the new ones."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    threads: Positive = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model: dict[str, Any] = {}
    gate: GateLimits = GateLimits()
    privacy: PrivacySettings | None = None

    @property
    def types(self) -> list[str]:
        """The behaviour types in the order of their index."""
        return list(self.behaviours)

    @property
    def type_index(self) -> dict[str, int]:
        """Behaviour type to the encoder's index."""
        return {kind: row + 1 for row, kind in enumerate(self.types)}

    @property
    def targeted(self) -> frozenset[str]:
        """The behaviour types that are predicted and judged."""
        return frozenset(self.targets or self.behaviours)

    @property
    def counted(self) -> frozenset[str]:
        """The behaviour types that popularity counts, as in the worker: those that weigh something."""
        return frozenset(kind for kind, weight in self.behaviours.items() if weight > 0)

    @property
    def digest(self) -> str:
        """Hex digest of all settings."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def load_config(file: Path | None, **flags: Any) -> TrainingConfig:
    """Defaults, the file, then the `flags` that are not None. Raises `ConfigError`."""
    given: dict[str, Any] = {}
    if file is not None:
        try:
            raw = tomllib.loads(file.read_text())
        except OSError as error:
            raise ConfigError(f"settings file {file}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"settings file {file}: {error}") from None
        own = raw.get("training", {})
        if not isinstance(own, dict) or (twice := sorted(set(own) & set(SHARED))):
            fault = "[training] is no table" if not isinstance(own, dict) else f"{twice[0]} stands above [training]"
            raise ConfigError(f"settings file {file}: {fault}")
        gate = own.get("gate")
        if isinstance(gate, dict) and "canary" in gate:
            raise ConfigError(f"settings file {file}: [training.gate] canary is called regression_set now")
        given = {**{name: raw[name] for name in SHARED if name in raw}, **own}
    given |= {name: value for name, value in flags.items() if value is not None}
    try:
        config = msgspec.convert(given, TrainingConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{f'settings file {file}' if file else 'settings'}: {error}") from None
    _check(config)
    return config


def names_training(file: Path | None) -> bool:
    """Whether a settings file says how to train; `load_config` has read the file."""
    return file is not None and "training" in tomllib.loads(file.read_text())


def _check(config: TrainingConfig) -> None:
    if wrong := wrong_behaviours(config.behaviours):
        raise ConfigError(wrong)
    for name, kind in (
        *(("targets", kind) for kind in config.targets),
        *(("repeats", kind) for kind in config.repeats),
    ):
        if kind not in config.behaviours:
            raise ConfigError(f"{name}: {kind!r} is not among the behaviours {', '.join(config.behaviours)}")
    if config.teachers and config.privacy is not None:
        raise ConfigError(
            "teachers: a private run has none, for what they learn of users is not counted in its epsilon"
        )
