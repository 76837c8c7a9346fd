"""Our off-policy estimators beside Open Bandit Pipeline's, on the same logged lists of the simulated shop."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from freshet.core.evaluation.off_policy import RewardModel, Slots, off_policy

from tests.simulation.shop_policies import Moments, Policy, shop

LISTS = 400
DRAWS = 3
EXPLORATION = 1.0
LOGGING = Policy("live", blur=1.0)
TARGET = Policy("sharper", blur=0.2)
SAME = {
    "ips": ("SlateIndependentIPS", "InverseProbabilityWeighting"),
    "snips": ("SelfNormalizedIPW",),
    "dr": ("DoublyRobust",),
}
"""Which of theirs estimate by the same formula. Theirs for lists normalises each slot by itself: it is shown alone."""
TOLERANCE = 1e-9


class Disagreement(Exception):
    """Two implementations of one formula give different values; the message says which."""


def measure(peers: Path) -> dict[str, dict[str, Any]]:
    """Every estimator's value for each draw, ours and theirs. Raises `Disagreement`.

    `peers` is the interpreter that has obp.
    """
    moments = Moments(shop(1), LOGGING, TARGET, LISTS)
    rows: dict[str, dict[str, Any]] = {"truth": dict.fromkeys(_columns(), moments.truth)}
    for draw, column in enumerate(_columns()):
        slots = moments.draw(draw, EXPLORATION)
        ours = {estimate.estimator: estimate.value.mean for estimate in off_policy(TARGET.name, slots)}
        theirs = _theirs(peers, slots)
        for name, value in [*ours.items(), *((f"obp {name}", value) for name, value in theirs.items())]:
            rows.setdefault(name, {})[column] = value
        for name, others in SAME.items():
            for other in others:
                if not abs(ours[name] - theirs[other]) <= TOLERANCE:
                    raise Disagreement(f"{column}: {name} is {ours[name]!r}, obp's {other} {theirs[other]!r}")
    return rows


def _columns() -> list[str]:
    return [f"clicks a list, draw {draw}" for draw in range(DRAWS)]


def _theirs(peers: Path, slots: Slots) -> dict[str, float]:
    """Their estimates with our model of the rewards: it is no part of the comparison."""
    model = RewardModel(slots)
    predicted = [model.predict(np.full_like(slots.items, item)) for item in range(slots.known)]
    request = {
        "items": slots.items.tolist(),
        "targets": slots.targets.tolist(),
        "propensities": slots.propensities.tolist(),
        "rewards": slots.rewards.tolist(),
        "predicted": np.stack(predicted, axis=2).tolist(),
    }
    command = [str(peers), str(Path(__file__).with_name("obp_peer.py"))]
    done = subprocess.run(command, input=json.dumps(request), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
