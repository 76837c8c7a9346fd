"""The fit: it learns, stops early, and resumes after a kill to the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from freshet_training.checkpoint import Checkpoint, FitProgress, GeneratorState
from freshet_training.examples import Examples, histories, windows
from freshet_training.fit import Epoch, FitError, FittedEncoder, Hyperparameters, fit
from freshet_training.layout import LayoutError
from freshet_training.model import UserEncoder
from freshet_training.model_shape import ModelShape
from freshet_training.text.vocabulary import word_numbers
from safetensors.torch import save_file

from tests.training.ring_log import ITEMS, MODEL, walk

INDEX = {f"i{number}": number + 2 for number in range(ITEMS)}
HYPERPARAMETERS = Hyperparameters(epochs=6, validate_every=2, positions=128, learning_rate=0.02)

PROGRESS = FitProgress(3, 30, 2, 20, 0.5, GeneratorState(f"{2**127 + 1:x}", "5", 0, 0))


class Killed(Exception):
    """The process ends here."""


WORDS = torch.from_numpy(word_numbers([f"brand{number % 6} kind{number % 7} item{number}" for number in range(ITEMS)]))


def model(words: torch.Tensor | None = None) -> UserEncoder:
    torch.manual_seed(1)
    return UserEncoder(ModelShape(items=ITEMS, types=1, **{**MODEL, "dropout": 0.3}), torch.randn(ITEMS, 384), words)


def rows(random: np.random.Generator) -> Examples:
    runs = histories(walk())
    return windows([runs[number] for number in random.permutation(len(runs))], INDEX, {"view": 1}, MODEL["length"])


def test_words_end_as_a_part_of_the_residuals() -> None:
    """Folding words into residuals removes the words and keeps each item's vector."""
    assert (WORDS > 0).sum(dim=1).tolist() == [2] * ITEMS
    encoder = model(WORDS)
    merged = encoder.eval().merged()
    assert merged.word_numbers is None
    assert merged.state_dict().keys() == model().state_dict().keys()
    assert torch.allclose(merged.item_vectors(), encoder.item_vectors(), atol=1e-6)
    assert not torch.allclose(merged.residual.weight, encoder.residual.weight, atol=1e-3)
    rows_asked = torch.tensor([2, 5, 11])
    assert torch.allclose(encoder.item_vectors(rows_asked), encoder.item_vectors()[rows_asked], atol=1e-6)
    fitted = fit(encoder, rows, weight, HYPERPARAMETERS, report=lambda _: None)
    assert fitted.model.state_dict().keys() == merged.state_dict().keys()


def test_word_numbers() -> None:
    """Words in few or most texts are left out, and the rarest of the others come first, each once."""
    texts = ["Red nail polish, red", "blue nail file", "nail oil; OPI", "OPI polish", "opi Polish"] + ["nail"] * 12
    numbers = word_numbers(texts)
    assert numbers.shape == (len(texts), 16)
    shared = {"opi": numbers[3, 0], "polish": numbers[3, 1]}
    assert len(set(shared.values()) - {0}) == 2
    assert numbers[0].tolist() == [shared["polish"]] + [0] * 15
    assert numbers[4].tolist() == numbers[3].tolist()
    assert not numbers[[1, 5]].any()
    assert word_numbers([]).shape == (0, 16)


def weight(candidate: UserEncoder) -> float:
    """A score that depends on every weight, and so tells one run from another."""
    return float(sum(parameter.detach().abs().sum() for parameter in candidate.parameters()))


def run(
    hyperparameters: Hyperparameters,
    report: Callable[[Epoch], None],
    checkpoint: Checkpoint | None = None,
    words: torch.Tensor | None = None,
) -> FittedEncoder:
    return fit(model(words), rows, weight, hyperparameters, report=report, checkpoint=checkpoint)


def same(left: FittedEncoder, right: FittedEncoder) -> bool:
    pairs = zip(left.model.state_dict().values(), right.model.state_dict().values(), strict=True)
    return (left.epoch, left.score) == (right.epoch, right.score) and all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def whole() -> FittedEncoder:
    """A run that nothing happened to."""
    return run(HYPERPARAMETERS, lambda _: None)


@pytest.mark.parametrize("killed_after", [1, 4])
@pytest.mark.parametrize("words", [None, WORDS], ids=["plain", "words"])
def test_a_killed_run_ends_with_the_same_weights(
    tmp_path: Path, whole: FittedEncoder, killed_after: int, words: torch.Tensor | None
) -> None:
    """A killed and resumed run has the weights, best epoch and score of a run without a kill, bit by bit."""

    def kill(epoch: Epoch) -> None:
        if epoch.number > killed_after:
            raise Killed

    with pytest.raises(Killed):
        run(HYPERPARAMETERS, kill, Checkpoint(tmp_path / "c.safetensors", "ring"), words)
    epochs: list[int] = []
    stored = Checkpoint(tmp_path / "c.safetensors", "ring")
    again = run(HYPERPARAMETERS, lambda epoch: epochs.append(epoch.number), stored, words)
    assert epochs == list(range(killed_after + 1, HYPERPARAMETERS.epochs + 1))
    assert same(again, whole if words is None else run(HYPERPARAMETERS, lambda _: None, words=words))


def test_a_seed_decides_a_run() -> None:
    """The same seed gives the same weights, and another seed gives others."""
    short = dataclasses.replace(HYPERPARAMETERS, epochs=2)
    assert same(run(short, lambda _: None), run(short, lambda _: None))
    other = run(dataclasses.replace(short, seed=1), lambda _: None)
    assert not same(run(short, lambda _: None), other)


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path: Path) -> None:
    """A checkpoint of other data or settings, or one cut short, is not taken."""
    path = tmp_path / "c.safetensors"
    Checkpoint(path, "one").save({"x": torch.ones(2)}, PROGRESS)
    assert Checkpoint(path, "other").load() is None
    tensors, progress = Checkpoint(path, "one").load() or ({}, None)
    assert (tensors["x"].tolist(), progress) == ([1.0, 1.0], PROGRESS)
    path.write_bytes(path.read_bytes()[:-3])
    assert Checkpoint(path, "one").load() is None


@pytest.mark.parametrize("metadata", [None, {"facts": '{"run": "one", "epoch": 3}'}, {"checkpoint": '{"version": 2}'}])
def test_a_checkpoint_of_another_layout_is_one_line(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """A checkpoint of another version is refused with the remedy and stays unchanged."""
    path = tmp_path / "c.safetensors"
    save_file({"x": torch.ones(2)}, path, metadata=metadata)
    before = path.read_bytes()
    with pytest.raises(LayoutError, match=r"c\.safetensors is of another version of Freshet: [^\n]+remove the file"):
        fit(model(), rows, weight, HYPERPARAMETERS, report=lambda _: None, checkpoint=Checkpoint(path, "one"))
    assert path.read_bytes() == before


def test_patience_ends_a_run() -> None:
    """A run ends after so many validations without a better score and keeps the best weights."""
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    seen: list[float | None] = []
    hyperparameters = dataclasses.replace(HYPERPARAMETERS, epochs=50, validate_every=1, patience=2)
    fitted = fit(model(), rows, lambda _: next(scores), hyperparameters, report=lambda epoch: seen.append(epoch.score))
    assert (seen, fitted.epoch, fitted.score) == ([0.5, 0.4, 0.3], 1, 0.5)


def test_a_loss_that_is_no_number_is_said() -> None:
    """A NaN loss stops training in one line that names the setting to change."""
    broken = model()
    with torch.no_grad():
        broken.residual.weight.fill_(float("nan"))
    with pytest.raises(FitError, match="smaller learning_rate"):
        fit(broken, rows, weight, HYPERPARAMETERS, report=lambda _: None)
