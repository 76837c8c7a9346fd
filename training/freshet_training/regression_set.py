"""The regression set: users and their next items, frozen once.

No weights learn these items, and every version must find them.

The regression set shows what a comparison on the newest events cannot show: a version that follows the day and has
forgotten what it knew.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from math import ceil
from pathlib import Path

import msgspec
import numpy as np
from freshet.core.decoding import Undecodable, decode
from freshet.core.state import UserState, decode_state, encode_state
from freshet.files import write_whole

from freshet_training.config import TrainingConfig
from freshet_training.evaluate import EvaluationSet
from freshet_training.examples import states_before
from freshet_training.layout import LayoutError

CASES = 200
MOST = 0.2
"""Largest share of the judged events: what is frozen is lost to training."""
REGRESSION_FILE = "regression-set.json"
FORMER_FILE = "canary-set.json"
VERSION = 1


class RegressionCase(msgspec.Struct, frozen=True):
    """A frozen user: the state before an event, as base64 of its stored form, and the item of the event."""

    user_id: str
    state: str
    item: str

    @classmethod
    def of(cls, user_id: str, before: UserState, item: str) -> RegressionCase:
        """The case of a user's event on `item`; `before` is the user's state before the event."""
        return cls(user_id, base64.b64encode(encode_state(before)).decode(), item)

    @property
    def before(self) -> UserState:
        """The state before the event."""
        return decode_state(base64.b64decode(self.state))


class _RegressionSet(msgspec.Struct, frozen=True):
    """The set on disk; `name` is the name of the settings that it was frozen for."""

    name: str
    cases: list[RegressionCase]
    version: int = VERSION


def regression_pairs(path: Path, forgotten: Collection[str]) -> frozenset[tuple[str, str]]:
    """Pairs of a user and the item that is asked of the user: an event of a pair is in no training row.

    Users who have since asked to be forgotten are taken out of the file. Raises `LayoutError`.
    """
    frozen = _read(path)
    if frozen is None or isinstance(frozen, Undecodable):
        return frozenset()
    kept = [case for case in frozen.cases if case.user_id not in forgotten]
    if len(kept) < len(frozen.cases):
        _keep(path, _RegressionSet(frozen.name, kept))
    return frozenset((case.user_id, case.item) for case in kept)


def regression_cases(path: Path, ground: EvaluationSet, config: TrainingConfig) -> tuple[list[RegressionCase], str]:
    """The cases, without users who have since asked to be forgotten, and a remark where they were frozen just now.

    A set is frozen where none is there, and where the set is of another domain: of another name, or with most of its
    items unknown here. Raises `LayoutError`.
    """
    anew = ""
    frozen = _read(path)
    if frozen is None:
        frozen, anew = _freeze(ground, config), "; frozen now"
    elif isinstance(frozen, Undecodable):
        frozen, anew = _freeze(ground, config), "; frozen anew, the former set cannot be read"
    catalogue = set(ground.catalogue)
    known = sum(case.item in catalogue for case in frozen.cases)
    if not frozen.cases or frozen.name != config.name or 2 * known < len(frozen.cases):
        anew = f"; frozen anew, {known} of the {len(frozen.cases)} items of the former set, of {frozen.name}, are known"
        frozen = _freeze(ground, config)
    kept = [case for case in frozen.cases if case.user_id not in ground.forgotten]
    _keep(path, _RegressionSet(frozen.name, kept))
    return kept, anew


def _keep(path: Path, frozen: _RegressionSet) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, msgspec.json.encode(frozen))


def _read(path: Path) -> _RegressionSet | Undecodable | None:
    """The set on disk; None where no set is there. Raises `LayoutError`."""
    if path.exists():
        frozen = decode(_decoder, path.read_bytes())
        if not isinstance(frozen, Undecodable) and frozen.version != VERSION:
            raise LayoutError(f"{path} is of another version of Freshet: remove it to freeze a regression set anew")
        return frozen
    former = path.with_name(FORMER_FILE)
    if former.exists():
        raise LayoutError(f"{former} is the regression set under its old name: rename it to {path.name}")
    return None


_decoder = msgspec.json.Decoder(_RegressionSet)


def _freeze(ground: EvaluationSet, config: TrainingConfig) -> _RegressionSet:
    rankable = set(ground.catalogue)
    cases: list[RegressionCase] = []
    for number, (event, state, first) in enumerate(states_before(ground.events, {}, config.history)):
        if number >= ground.start and first and event.item_id in rankable and event.type in config.targeted:
            cases.append(RegressionCase.of(event.user_id, state, event.item_id))
    picked = np.random.default_rng(0).permutation(len(cases))[: min(CASES, ceil(MOST * len(cases)))]
    return _RegressionSet(config.name, [cases[row] for row in sorted(picked)])
