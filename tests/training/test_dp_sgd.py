"""A private run: the clip and the noise of a step, and the accountant's ε of all steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from freshet.bundle.bundle import load_bundle
from freshet_training.config import PrivacySettings
from freshet_training.dp_sgd import DpSgd, epsilon, private_gradient
from freshet_training.examples import Examples
from freshet_training.train import main
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn

from tests.training.conftest import arguments
from tests.training.ring_log import walk, write_config, write_items, write_log


def closed_form(noise: float, steps: int, delta: float) -> float:
    """ε of the Gaussian mechanism without sampling (Balle & Wang 2018, arXiv:1805.06530, theorem 8)."""
    mu = math.sqrt(steps) / noise

    def over(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - delta)

    return float(brentq(over, 0, 100))


@pytest.mark.parametrize(("noise", "steps", "delta"), [(20.0, 100, 1e-5), (3.0, 1, 1e-6), (8.0, 40, 1e-4)])
def test_without_sampling_epsilon_is_the_closed_form(noise: float, steps: int, delta: float) -> None:
    """With every user in every step, ε equals the closed form."""
    assert epsilon(noise, 1.0, steps, delta) == pytest.approx(closed_form(noise, steps, delta), rel=0.01)


def test_with_sampling_epsilon_is_under_the_published_bound() -> None:
    """ε is below the bound of Abadi et al.: 1.26 for q = .01, noise 4, 10,000 steps and δ = 1e-5."""
    assert 0.9 < epsilon(4.0, 0.01, 10_000, 1e-5) < 1.26
    assert epsilon(2.0, 0.01, 10_000, 1e-5) > epsilon(4.0, 0.01, 10_000, 1e-5)


class Line(nn.Module):
    """One weight; the gradient of a user's loss is what the user's first item says."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def loss(self, rows: Examples) -> torch.Tensor:
        """Its gradient is `rows`' first item index, along the first weight."""
        return self.weight[0] * float(rows.item_index[0, 0])


def user(pull: int) -> Examples:
    column = np.array([[pull]], np.int32)
    return Examples(column, column, column, column, column)


def test_no_user_pulls_further_than_the_clip() -> None:
    """A user's gradient is clipped to length `clip`, and the sum is divided by the expected number of users."""
    model = Line()
    settings = PrivacySettings(noise=1e-9, clip=2.0, users_per_step=4)
    private_gradient(model, [user(1000), user(1)], model.loss, settings)
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == pytest.approx([(2 + 1) / 4, 0, 0], abs=1e-6)


def test_noise_is_of_the_stated_size_and_needs_no_user() -> None:
    """Noise on every weight has deviation noise × clip ÷ users a step, without any drawn user as well."""
    model = nn.Linear(200, 200)
    settings = PrivacySettings(noise=3.0, clip=2.0, users_per_step=4)
    assert private_gradient(model, [], lambda _: torch.zeros(()), settings) is None
    assert model.weight.grad is not None
    assert float(model.weight.grad.std()) == pytest.approx(3.0 * 2.0 / 4, rel=0.02)


def test_every_user_is_drawn_with_the_same_chance() -> None:
    """Each user is drawn independently with the same chance, in as many steps as an epoch needs."""
    private = DpSgd(PrivacySettings(users_per_step=10), 100, lambda _: [user(number) for number in range(100)])
    random = np.random.default_rng(0)
    draws = [step for _ in range(200) for step in private.draws(random)]
    assert len(draws) == 200 * 10
    seen = np.bincount([int(rows.item_index[0, 0]) for step in draws for rows in step], minlength=100)
    assert seen.mean() == pytest.approx(200, rel=0.05)
    assert seen.min() > 140
    assert len({len(step) for step in draws}) > 5


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    """The ring, its settings asking for a private run."""
    write_log(tmp_path / "events.jsonl", walk())
    write_items(tmp_path / "items.jsonl")
    write_config(tmp_path / "ring.toml")
    with (tmp_path / "ring.toml").open("a") as file:
        file.write("[training.privacy]\nnoise = 0.7\nclip = 0.5\nusers_per_step = 10\ndelta = 1e-4\n")
    return tmp_path


def run(folder: Path, out: str, *more: str) -> int:
    return main([*arguments(folder), "--out", str(folder / out), "--work", str(folder / "work"), *more])


def test_a_private_bundle_says_what_it_spent(ring: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    """ε, δ, unit and steps are printed and stand in manifest and model card, and two runs of a seed differ."""
    assert run(ring, "one") in (0, 3)
    bundle = load_bundle(ring / "one")
    assert bundle.item_lifts is None  # they would tell of single users what the weights do not
    manifest = bundle.manifest
    privacy = manifest.privacy
    assert privacy is not None
    assert (privacy.unit, privacy.steps, privacy.delta) == ("user", 8 * 3, 1e-4)
    assert privacy.chance == pytest.approx(1 / 3)
    assert privacy.epsilon == epsilon(0.7, 10 / 30, 24, 1e-4)
    assert f"epsilon {privacy.epsilon:.3g}, delta 0.0001" in capsys.readouterr().out
    card = (ring / "one" / "MODEL_CARD.md").read_text()
    assert "differentially private by user" in card
    assert "The bundle holds item ids and weights; no event" in card
    assert run(ring, "two") in (0, 3)
    weights = [load_bundle(ring / name).manifest.files["weights.safetensors"] for name in ("one", "two")]
    assert weights[0] != weights[1]


def test_budgets_of_several_runs_are_not_mixed(ring: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    """A private run refuses an incremental run and a search in one line."""
    for more in (["--search", "5"], ["--incremental", "--live", str(ring / "one")]):
        assert run(ring, "no", *more) == 1
        assert "adds up" in capsys.readouterr().err
    assert not (ring / "no").exists()
