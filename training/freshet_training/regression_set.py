"""The canary set: users and their next items, frozen once; no weights learn them and every version must find them.

It tells what comparing two versions on the newest events cannot: a version that
follows the day and has forgotten what it knew.
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

from freshet_training.config import Config
from freshet_training.evaluate import EvaluationSet
from freshet_training.examples import states_before

CANARIES = 200
MOST = 0.2
"""Of the events that are judged: what is frozen is lost to training."""
CANARY_FILE = "canary-set.json"


class Case(msgspec.Struct, frozen=True):
    """A frozen user: the state before an event (base64 of its stored form), and the item of the event."""

    user_id: str
    state: str
    item: str

    @classmethod
    def of(cls, user_id: str, before: UserState, item: str) -> Case:
        """The case of a user's event on `item`, and their state `before` it."""
        return cls(user_id, base64.b64encode(encode_state(before)).decode(), item)

    @property
    def before(self) -> UserState:
        """The state before the event."""
        return decode_state(base64.b64decode(self.state))


class _Frozen(msgspec.Struct, frozen=True):
    """The set as it is kept, with the name of what it was frozen for."""

    name: str
    cases: list[Case]


def canary_pairs(path: Path, forgotten: Collection[str]) -> frozenset[tuple[str, str]]:
    """Users with the item that is asked of each: what they did with it is in no training row.

    Who has since asked to be forgotten is taken out of the file.
    """
    frozen = _read(path)
    if frozen is None or isinstance(frozen, Undecodable):
        return frozenset()
    kept = [case for case in frozen.cases if case.user_id not in forgotten]
    if len(kept) < len(frozen.cases):
        _keep(path, _Frozen(frozen.name, kept))
    return frozenset((case.user_id, case.item) for case in kept)


def canaries(path: Path, ground: EvaluationSet, config: Config) -> tuple[list[Case], str]:
    """The frozen set, without users who have since asked to be forgotten, and a remark where it was frozen just now.

    That is where there is none, or one of another domain: of another name, or with most of its items unknown here.
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
    _keep(path, _Frozen(frozen.name, kept))
    return kept, anew


def _keep(path: Path, frozen: _Frozen) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, msgspec.json.encode(frozen))


def _read(path: Path) -> _Frozen | Undecodable | None:
    """The set as it was kept; None where there is none."""
    return decode(_decoder, path.read_bytes()) if path.exists() else None


_decoder = msgspec.json.Decoder(_Frozen)


def _freeze(ground: EvaluationSet, config: Config) -> _Frozen:
    rankable = set(ground.catalogue)
    cases: list[Case] = []
    for place, (event, state, first) in enumerate(states_before(ground.events, {}, config.history)):
        if place >= ground.start and first and event.item_id in rankable and event.type in config.targeted:
            cases.append(Case.of(event.user_id, state, event.item_id))
    picked = np.random.default_rng(0).permutation(len(cases))[: min(CANARIES, ceil(MOST * len(cases)))]
    return _Frozen(config.name, [cases[number] for number in sorted(picked)])
