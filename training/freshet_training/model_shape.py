"""The shape of the network, and the check of `[training.model]` against it. This module needs no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from freshet_training.config import ConfigError, TrainingConfig


@dataclass(frozen=True)
class ModelShape:
    """Everything that shapes the network."""

    items: int
    types: int
    dim: int = 64
    length: int = 50
    blocks: int = 2
    heads: int = 2
    feed_forward: int = 128
    dropout: float = 0.2
    attention_dropout: float | None = None
    """Dropout of the attention's weights; `dropout` where None. Short histories need it, long histories do not."""
    item_dropout: float = 0.15
    temperature: float = 0.07
    unknown_dropout: float = 0.02

    def __post_init__(self) -> None:
        """Raises `ValueError`."""
        for name in ("items", "types", "dim", "length", "blocks", "heads", "feed_forward"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more, not {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}")
        for name in ("dropout", "attention_dropout", "item_dropout", "unknown_dropout"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name} is from 0 to 1, not {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is more than 0, not {self.temperature}")


def check_model_settings(config: TrainingConfig) -> None:
    """See that `[training.model]` names fields of `ModelShape`, with values of their kind. Raises `ConfigError`."""
    fields = {field.name: field for field in dataclasses.fields(ModelShape) if field.name not in ("items", "types")}
    for name, value in config.model.items():
        if name not in fields:
            raise ConfigError(f"[training.model]: {name!r} is no setting, there are {', '.join(fields)}")
        kind = float if fields[name].default is None else type(fields[name].default)
        if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
            raise ConfigError(f"[training.model]: {name} is {kind.__name__}, not {value!r}")
    try:
        shape = ModelShape(items=1, types=1, **config.model)
    except ValueError as error:
        raise ConfigError(f"[training.model]: {error}") from None
    if shape.length > config.history:
        raise ConfigError(
            f"[training.model]: length {shape.length} is more than the history of {config.history} that is kept"
        )
