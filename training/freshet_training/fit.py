"""Step 4, the fit: steps over rows of like length until validation no longer gains, resumable after a kill.

A step takes about `positions` targets, from rows of like length cut to the
longest of them: where histories are short, most of a row of full length is
padding. Above `FULL_SOFTMAX` items the softmax is sampled (`losses.ItemSampler`)
and a step computes only the item vectors that it meets.

What is validated and kept is the exponential moving average of the weights
over steps, steadier than the last ones. All randomness is in the checkpoint,
so a run that was killed and goes on ends with the weights of one that was not
(on the same machine, with as many threads).
"""
# ruff: noqa: T201 - printed lines are its interface

from __future__ import annotations

import copy
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from freshet.core.features import FIRST_ITEM, PADDING
from freshet.errors import FreshetError
from numpy.typing import NDArray
from torch import Tensor

from freshet_training.checkpoint import Checkpoint, FitProgress, GeneratorState
from freshet_training.config import TrainingConfig
from freshet_training.dp_sgd import DpSgd, private_gradient
from freshet_training.examples import IGNORE, Examples, look_ahead
from freshet_training.losses import ItemSampler, multi_task_loss, next_item_loss, next_item_scores, next_type_loss
from freshet_training.model import UserEncoder

FULL_SOFTMAX = 2000
"""Catalogues up to this many items are scored whole at every step."""

TEACHER_SEEDS = 1000
"""How far apart the seeds of a run's teachers are."""

Rows = Callable[[np.random.Generator], Examples]
Score = Callable[[UserEncoder], float]
Teacher = tuple[UserEncoder, Tensor]
"""A fitted model and its item table `[N, D]`."""


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of one run."""

    epochs: int = 60
    patience: int = 4
    positions: int = 2048
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    average: float = 0.99
    negatives: int = 1500
    look_ahead: float = 0.0
    validate_every: int = 2
    seed: int = 0
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @classmethod
    def of(cls, config: TrainingConfig) -> Hyperparameters:
        """What a domain's settings say of the fit."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


class FitError(FreshetError):
    """The training cannot go on; the message says what to change."""


@dataclass(frozen=True)
class Epoch:
    """One epoch's figures; `score` is the validation's, where there was one."""

    number: int
    loss: float
    seconds: float
    score: float | None
    best: bool

    def __str__(self) -> str:
        line = f"epoch {self.number:3d}  loss {self.loss:.4f}  {self.seconds:.1f} s"
        if self.score is not None:
            line += f"  validation NDCG@10 {self.score:.4f}" + ("  best" if self.best else "")
        return line


@dataclass(frozen=True)
class FittedEncoder:
    """The moving average of the weights that was kept, its epoch counted from 1, its score, and the steps up to it.

    The model is without words: they are merged.
    """

    model: UserEncoder
    epoch: int
    score: float
    steps: int


def teacher_seeds(config: TrainingConfig) -> list[int]:
    """The seeds of a run's teachers; runs on neighbouring seeds share none."""
    return [config.seed + number * TEACHER_SEEDS for number in range(1, config.teachers + 1)]


def device_of(hyperparameters: Hyperparameters) -> torch.device:
    """Where to train. Raises `FitError` where a GPU is asked for and none is there."""
    if hyperparameters.device == "cuda" and not torch.cuda.is_available():
        raise FitError("device is cuda and torch finds no GPU here: set it to cpu, or to auto")
    wanted = "cuda" if hyperparameters.device != "cpu" and torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def _print(epoch: Epoch) -> None:
    print(epoch, flush=True)


def fit(
    model: UserEncoder,
    rows: Rows,
    validate: Score | None,
    hyperparameters: Hyperparameters,
    *,
    report: Callable[[Epoch], None] = _print,
    advance: Callable[[int, int], None] = lambda _done, _total: None,
    checkpoint: Checkpoint | None = None,
    dp_sgd: DpSgd | None = None,
    teachers: Sequence[UserEncoder] = (),
    over: Callable[[], bool] = lambda: False,
) -> FittedEncoder:
    """Train until `patience` validations were no better; `rows` makes an epoch's examples.

    Without `validate` there is nothing to choose by: the weights of the last epoch are kept.
    A run with `dp_sgd` is private: it takes its examples by user, and keeps the weights of its last epoch.
    `teachers` are fitted models of the same items, whose mean scores are learned beside
    what happened. The fit ends where time is `over` and an epoch was validated.
    `report` is told each epoch and `advance` each step, which may raise to stop.
    Raises `FitError`, and `OSError` where a checkpoint cannot be written.
    """
    state = _FitState(model, hyperparameters, dp_sgd, teachers)
    stored = checkpoint.load() if checkpoint is not None else None
    if stored is not None:
        state.restore(*stored)
    patience = hyperparameters.patience * hyperparameters.validate_every if validate else hyperparameters.epochs
    while (
        state.epoch < hyperparameters.epochs
        and state.epoch - state.best_epoch < patience
        and not (state.best_epoch and over())
    ):
        report(state.train_epoch(rows, validate, advance))
        if checkpoint is not None:
            checkpoint.save(*state.dump())
    best = copy.deepcopy(state.average).cpu()
    best.load_state_dict(state.best)
    return FittedEncoder(best.eval().merged(), state.best_epoch, state.best_score, state.best_step)


class _FitState:
    """The changing parts of a fit."""

    def __init__(
        self,
        model: UserEncoder,
        hyperparameters: Hyperparameters,
        dp_sgd: DpSgd | None,
        teachers: Sequence[UserEncoder],
    ) -> None:
        self.hyperparameters = hyperparameters
        self.dp_sgd = dp_sgd
        self.device = device_of(hyperparameters)
        seed = hyperparameters.seed if dp_sgd is None else secrets.randbits(63)
        torch.manual_seed(seed)
        self.random = np.random.default_rng(seed)
        self.model = model.to(self.device)
        self.average = copy.deepcopy(self.model).eval()
        self.teachers = [taught_by(teacher.to(self.device)) for teacher in teachers]
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            hyperparameters.learning_rate,
            weight_decay=hyperparameters.weight_decay,
            fused=True,
        )
        self.best = _state(self.average)
        self.best_score, self.best_epoch, self.best_step = -1.0, 0, 0
        self.epoch = self.step = 0

    def train_epoch(self, rows: Rows, validate: Score | None, advance: Callable[[int, int], None]) -> Epoch:
        started = time.perf_counter()
        self.epoch += 1
        hyperparameters = self.hyperparameters
        gradients = self._gradients(rows) if self.dp_sgd is None else self._private_gradients(self.dp_sgd)
        losses = []
        self.model.train()
        for done, gradient in enumerate(gradients, 1):
            losses.append(self._step(gradient))
            advance(done, len(gradients))
        loss = float(np.mean([loss for loss in losses if loss is not None]))
        if not np.isfinite(loss):
            raise FitError(f"the loss is no number in epoch {self.epoch}: set a smaller learning_rate")
        score = None
        last = self.epoch == hyperparameters.epochs
        if validate is not None and (last or self.epoch % hyperparameters.validate_every == 0):
            score = validate(self.average)
            if score > self.best_score or self.dp_sgd is not None:
                self._keep(score)
        elif last:
            self._keep(self.best_score)
        return Epoch(self.epoch, loss, time.perf_counter() - started, score, self.best_epoch == self.epoch)

    def _keep(self, score: float) -> None:
        self.best_score, self.best_epoch, self.best_step = score, self.epoch, self.step
        self.best = _state(self.average)

    def _gradients(self, rows: Rows) -> list[Callable[[], float | None]]:
        """The epoch's steps: each leaves its gradient in the parameters and returns its loss."""
        examples = rows(self.random)
        if self.hyperparameters.look_ahead:
            examples = look_ahead(examples, self.hyperparameters.look_ahead, self.random)
        sampler = _sampler(examples, self.model, self.hyperparameters)
        steps = batches(examples, self.hyperparameters.positions, self.random)
        return [partial(self._gradient, batch, sampler) for batch in steps]

    def _private_gradients(self, dp_sgd: DpSgd) -> list[Callable[[], float | None]]:
        """The same for a private run; items are sampled alike, for how frequent they are is not public."""
        sampler = None
        if self.model.config.items > FULL_SOFTMAX:
            sampler = ItemSampler(torch.ones(self.model.config.items), self.hyperparameters.negatives)
        loss_of = partial(step_loss, self.model, sampler=sampler)
        draws = dp_sgd.draws(self.random)
        return [partial(private_gradient, self.model, users, loss_of, dp_sgd.settings) for users in draws]

    def _gradient(self, batch: Examples, sampler: ItemSampler | None) -> float:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = step_loss(self.model, batch, sampler, self.teachers)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        return loss.item()

    def _step(self, gradient: Callable[[], float | None]) -> float | None:
        loss = gradient()
        self.optimiser.step()
        self.step += 1
        self._follow(min(self.hyperparameters.average, (1 + self.step) / (10 + self.step)))
        return loss

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        """Move the averaged weights towards the newest ones."""
        for kept, newest in zip(self.average.parameters(), self.model.parameters(), strict=True):
            kept.lerp_(newest, 1 - decay)

    def dump(self) -> tuple[dict[str, Tensor], FitProgress]:
        """Everything that the next epoch depends on."""
        tensors = {"random": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        tensors |= {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in moments.items()}
        random = _generator_state(self.random)
        return tensors, FitProgress(self.epoch, self.step, self.best_epoch, self.best_step, self.best_score, random)

    def restore(self, tensors: Mapping[str, Tensor], progress: FitProgress) -> None:
        """Take over what `dump` gave."""
        self.model.load_state_dict(_part(tensors, "model."))
        self.average.load_state_dict(_part(tensors, "average."))
        self.best = _part(tensors, "best.")
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimiser.").items():
            number, _, moment = name.partition(".")
            moments.setdefault(int(number), {})[moment] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        self.epoch, self.step = progress.epoch, progress.step
        self.best_epoch, self.best_step, self.best_score = progress.best_epoch, progress.best_step, progress.best_score
        _set_generator_state(self.random, progress.random)
        torch.set_rng_state(tensors["random"])
        if "random.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)


def _generator_state(random: np.random.Generator) -> GeneratorState:
    state: Any = random.bit_generator.state
    words = state["state"]
    return GeneratorState(f"{words['state']:x}", f"{words['inc']:x}", state["has_uint32"], state["uinteger"])


def _set_generator_state(random: np.random.Generator, state: GeneratorState) -> None:
    random.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": int(state.state, 16), "inc": int(state.inc, 16)},
        "has_uint32": state.has_uint32,
        "uinteger": state.uinteger,
    }


def batches(examples: Examples, positions: int, random: np.random.Generator) -> Iterator[Examples]:
    """All rows once, in steps of about `positions` targets, each step's rows cut to the longest of them."""
    targets = (examples.next_item != IGNORE).sum(axis=1)
    used = (examples.item_index != PADDING) | (examples.next_item != IGNORE)
    lengths = np.where(used.any(axis=1), used.shape[1] - used.argmax(axis=1), 1)
    order = np.argsort(lengths + 2 * random.random(len(lengths)))
    step = np.cumsum(targets[order]) // positions
    groups = np.split(order, np.flatnonzero(np.diff(step)) + 1)
    for number in random.permutation(len(groups)):
        chosen = groups[number]
        longest = int(lengths[chosen].max())
        yield Examples(*(getattr(examples, name)[chosen, -longest:] for name in Examples.__dataclass_fields__))


def taught_by(model: UserEncoder) -> Teacher:
    """A fitted model as a teacher: its weights stay as they are, so its item table is computed once."""
    with torch.no_grad():
        return model.eval(), model.item_vectors()


def step_loss(
    model: UserEncoder, batch: Examples, sampler: ItemSampler | None, teachers: Sequence[Teacher] = ()
) -> Tensor:
    """The objective on one step's rows; teachers score the same candidates."""
    device = model.text.device
    item_index, event_type, time_gap, next_item, next_type = (
        torch.from_numpy(np.ascontiguousarray(getattr(batch, name))).to(device)
        for name in Examples.__dataclass_fields__
    )
    sample = rows = None
    if sampler is not None:
        drawn, expected = (part.to(device) for part in sampler.draw())
        met = torch.cat([item_index.flatten(), next_item.flatten()]) - FIRST_ITEM
        rows = torch.unique(torch.cat([met[met >= 0].long(), drawn]))  # ascending
        item_index, next_item = _among(item_index, rows), _among(next_item, rows)
        sample = torch.searchsorted(rows, drawn), expected

    def scored(encoder: UserEncoder, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = encoder(item_index, event_type, time_gap, vectors)
        return hidden, *next_item_scores(hidden, next_item, vectors, sample)

    hidden, scores, own = scored(model, model.item_vectors(rows))
    taught = None
    if teachers:
        with torch.no_grad():
            each = [scored(teacher, table if rows is None else table[rows])[1] for teacher, table in teachers]
            taught = torch.stack(each).mean(dim=0)
    return multi_task_loss(next_item_loss(scores, own, taught), next_type_loss(model.type_head(hidden), next_type))


def _among(index: Tensor, rows: Tensor) -> Tensor:
    """Item indices for a table that holds only `rows`; what is no item stays."""
    row = torch.searchsorted(rows, index.long() - FIRST_ITEM) + FIRST_ITEM
    return torch.where(index >= FIRST_ITEM, row, index.long())


def _sampler(examples: Examples, model: UserEncoder, hyperparameters: Hyperparameters) -> ItemSampler | None:
    if model.config.items <= FULL_SOFTMAX:
        return None
    targets: NDArray[np.int32] = examples.next_item[examples.next_item != IGNORE] - FIRST_ITEM
    return ItemSampler(torch.from_numpy(np.bincount(targets, minlength=model.config.items)), hyperparameters.negatives)


def _state(model: UserEncoder) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
