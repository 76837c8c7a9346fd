"""Training that is differentially private by user: DP-SGD (Abadi et al. 2016, doi:10.1145/2976749.2978318).

A step draws every user with the same chance, clips the gradient of all that a
user did to one length, adds them up, and adds normal noise `noise` times as
long. So the weights would have come out nearly alike without any one user
(neighbouring logs differ by a whole user, added or removed), and (ε, δ) says how
nearly. The accountant is that of privacy loss distributions of `dp-accounting`
(Google), for Poisson sampling.

The guarantee is of the weights. Not covered: which items there are, the
metrics, the prior's weight, and how many users there are. The epoch is not chosen by
validation, whose users are the same: the last one's weights are kept. Noise and
draws come from the system's randomness and not from the seed, which others know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from freshet.bundle import bundle
from torch import Tensor, nn

from freshet_training.config import PrivacySettings
from freshet_training.examples import Examples


@dataclass(frozen=True)
class DpSgd:
    """The privacy settings of a run, how many users the run has, and what makes an epoch's examples of each user."""

    settings: PrivacySettings
    user_count: int
    users: Callable[[np.random.Generator], list[Examples]]

    @property
    def chance(self) -> float:
        """The chance of a user to be drawn in a step."""
        return min(1.0, self.settings.users_per_step / self.user_count)

    def draws(self, random: np.random.Generator) -> Iterator[list[Examples]]:
        """The steps of an epoch: each yields the examples of the users that it draws, who may be none."""
        users = self.users(random)
        for _ in range(math.ceil(self.user_count / self.settings.users_per_step)):
            yield [users[drawn] for drawn in np.flatnonzero(random.random(self.user_count) < self.chance)]

    def spent(self, steps: int) -> bundle.Privacy:
        """The privacy that `steps` have cost."""
        settings = self.settings
        return bundle.Privacy(
            unit="user",
            epsilon=epsilon(settings.noise, self.chance, steps, settings.delta),
            delta=settings.delta,
            noise=settings.noise,
            clip=settings.clip,
            chance=self.chance,
            steps=steps,
        )


def epsilon(noise: float, chance: float, steps: int, delta: float) -> float:
    """ε after `steps` that each draw a user with `chance`."""
    import dp_accounting  # noqa: PLC0415 - only where a run is private
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415

    step = dp_accounting.PoissonSampledDpEvent(chance, dp_accounting.GaussianDpEvent(noise))
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def private_gradient(
    model: nn.Module, users: Sequence[Examples], loss_of: Callable[[Examples], Tensor], privacy: PrivacySettings
) -> float | None:
    """Leave a step's private gradient in the parameters; returns the mean loss, where somebody was drawn."""
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    losses = []
    for rows in users:
        loss = loss_of(rows)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        length = math.sqrt(sum(float(part.square().sum()) for part in gradients if part is not None))
        for summed, part in zip(total, gradients, strict=True):
            if part is not None:
                summed.add_(part, alpha=min(1.0, privacy.clip / max(length, 1e-12)))
        losses.append(loss.item())
    for parameter, summed in zip(parameters, total, strict=True):
        summed.add_(torch.randn_like(summed), alpha=privacy.noise * privacy.clip)
        parameter.grad = summed / privacy.users_per_step
    return float(np.mean(losses)) if losses else None
