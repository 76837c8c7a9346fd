"""Settings that choose themselves: what a log looks like decides what the settings file does not say.

The rules come from what was found by hand on the validation parts of MovieLens-100K, MovieLens-1M and Beauty
(`training/LOG.md`). They were not yet tried on a domain that was left out. Where a settings file has a `[training]`
table, nothing is chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
from freshet.core.events import Event

from freshet_training.config import TrainingConfig

if TYPE_CHECKING:  # it needs torch
    from freshet_training.training_set import TrainingSet

SHORT_HISTORIES = 20
"""With fewer events a user on average, a log has short histories."""
WIDE_CATALOGUE = 2000
"""Items from which on the words of texts are learned."""
TIED = 0.1
"""Share of events at the time of the user's event before from which on the order of a visit says little."""
SMALL_LOG = 200_000
"""Events below which steps are small."""
EVENTS_A_SECOND = {(128, 1): 20_000, (64, 2): 10_000, (64, 1): 25_000}
"""Events that one thread learns in a second, about, by width and blocks (2 shared cores, 2026-12-01)."""
EPOCHS_NEEDED = 10
"""A network that the time allows fewer epochs of gives way to a smaller one."""
OFTEN = 0.2
"""Share of a behaviour's events on items known to their user from which on repeats are proposed."""
MINUTES = 30.0
"""Time that a run may take where nothing is said of it."""
CHOOSING = 0.45
"""Part of the time in which the epoch is chosen. Fitting anew on the whole log takes about as much."""


@dataclass(frozen=True)
class LogFacts:
    """What a log looks like; shares are parts of its events, or of its items for `texts`."""

    events: int
    users: int
    items: int
    median_length: int
    median_gap_s: float
    tied: float
    repeats: float
    texts: float

    @classmethod
    def of(cls, training_set: TrainingSet) -> LogFacts:
        """The facts of the training part: what is held back decides nothing."""
        runs = training_set.runs
        events = sum(map(len, runs))
        gaps = sorted(gap for run in runs for gap in _gaps(run))
        items = len(training_set.item_ids)
        return cls(
            events,
            len(runs),
            items,
            sorted(map(len, runs))[len(runs) // 2],
            gaps[len(gaps) // 2] / 1000 if gaps else 0.0,
            sum(gap <= 0 for gap in gaps) / max(events, 1),
            sum(len(run) - len({event.item_id for event in run}) for run in runs) / max(events, 1),
            1 - training_set.without_text / max(items, 1),
        )

    def __str__(self) -> str:
        """In one line."""
        return (
            f"{self.events:,} events, {self.users:,} users with {self.median_length} in the median, "
            f"{self.median_gap_s:,.0f} s between two; {self.items:,} items, {self.texts:.0%} with text; "
            f"{self.repeats:.0%} repeat an item, {self.tied:.0%} share their time with the event before"
        )


def _gaps(run: Sequence[Event]) -> list[int]:
    return [later.ts - earlier.ts for earlier, later in pairwise(run)]


@dataclass(frozen=True)
class Choice:
    """Settings that were chosen for a log, by their names, and why, a sentence each."""

    settings: dict[str, Any]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """The settings as a person reads them."""
        model = self.settings.get("model", {})
        flat = {name: value for name, value in self.settings.items() if name != "model"} | model
        return ", ".join(f"{name} {value}" for name, value in flat.items())

    def applied(self, config: TrainingConfig, given: frozenset[str]) -> TrainingConfig:
        """`config` with these settings, except those that are `given`."""
        settings = {name: value for name, value in self.settings.items() if name not in given}
        return msgspec.structs.replace(config, **settings)


def choose(facts: LogFacts, minutes: float, threads: int) -> Choice:
    """The settings for a log, within a budget of time."""
    short = facts.events < SHORT_HISTORIES * facts.users
    if short:
        why = (
            f"{facts.events / facts.users:.1f} events a user: short histories learn from a wide block with much dropout"
        )
        settings: dict[str, Any] = {"epochs": 24, "patience": 3, "average": 0.997}
        model: dict[str, Any] = {"dim": 128, "blocks": 1, "feed_forward": 256, "dropout": 0.4}
    else:
        why = f"{facts.events / facts.users:.0f} events a user: long histories learn from two narrow blocks"
        settings, model = {}, {"dim": 64, "blocks": 2, "feed_forward": 128, "dropout": 0.2}
        if facts.events < SMALL_LOG:
            settings = {"positions": 800, "learning_rate": 0.002}
    reasons = [why]
    if short and facts.tied >= TIED:
        settings["look_ahead"] = 0.2
        reasons.append(f"{facts.tied:.0%} of the events share their time with the one before: targets look ahead")
    if short and facts.items > WIDE_CATALOGUE and facts.texts > 1 / 2:
        settings["words"] = True
        reasons.append("rare items with texts: items share what is learned of the words of their texts")
    allowed = 60 * minutes * CHOOSING
    while (needed := EPOCHS_NEEDED * _epoch_seconds(facts, model, threads)) > allowed:
        smaller = {"dim": 64, "blocks": 1, "feed_forward": 128}
        if model["blocks"] == 1 and model["dim"] == smaller["dim"]:
            settings["epochs"] = max(1, int(allowed / needed * EPOCHS_NEEDED))
            reasons.append(f"{minutes:g} minutes are about {settings['epochs']} epochs")
            break
        model |= smaller
        reasons.append(f"{minutes:g} minutes are too few for {EPOCHS_NEEDED} epochs of it: one block, 64 wide")
    return Choice({**settings, "model": model}, tuple(reasons))


def _epoch_seconds(facts: LogFacts, model: dict[str, Any], threads: int) -> float:
    return facts.events / EVENTS_A_SECOND[model["dim"], model["blocks"]] / min(threads, 2)


def former_settings(settings: dict[str, Any]) -> Choice:
    """What an incremental run takes over from the version that it starts from: the chosen ones of its settings."""
    names = {"model", "words", "look_ahead", "average", "positions", "learning_rate"}
    return Choice({name: value for name, value in settings.items() if name in names}, ("as in the live version",))


def proposed_repeats(runs: Sequence[Sequence[Event]], repeats: Sequence[str]) -> str:
    """What to say of behaviours after which people come back to an item, beyond those named; empty for nothing."""
    rates = {kind: rate for kind, rate in counted_repeats(runs).items() if rate >= OFTEN and kind not in repeats}
    if not rates:
        return ""
    told = ", ".join(f"{rate:.0%} of {kind}" for kind, rate in rates.items())
    named = ",".join([*repeats, *rates])
    return f"people come back to items ({told}): --repeats {named} lets such items be recommended again"


def counted_repeats(runs: Sequence[Sequence[Event]]) -> dict[str, float]:
    """By behaviour: the share of its events on an item that their user had touched before."""
    events: Counter[str] = Counter()
    again: Counter[str] = Counter()
    for run in runs:
        touched: set[str | None] = set()
        for event in run:
            events[event.type] += 1
            again[event.type] += event.item_id in touched
            touched.add(event.item_id)
    return {kind: again[kind] / number for kind, number in events.items()}
