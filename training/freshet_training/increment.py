"""An incremental run: which events of a log the live version has not learned, and whether they are enough."""

from __future__ import annotations

from collections.abc import Sequence

from freshet.bundle.bundle import Bundle
from freshet.core.events import Event

from freshet_training.config import TrainingConfig
from freshet_training.dataset import CleanedLog, DatasetError, Split, split_by_time

MIN_NEW_EVENTS = 100
"""Fewest new first touches that an incremental run learns from."""
MIN_JUDGED = 20
"""Fewest first touches that an incremental run is judged by."""


class NothingNewError(Exception):
    """Too little has happened since the live version was trained."""


def split_increment(log: CleanedLog, config: TrainingConfig, parent: Bundle) -> tuple[int, Split]:
    """The time (ms) from which on events are new to `parent`, and the split: all older events are training events.

    Raises `DatasetError` where `parent` knows types that the settings do not name, `NothingNewError` where the new
    events are too few.
    """
    if lost := [kind for kind in parent.manifest.types if kind not in config.behaviours]:
        raise DatasetError(
            f"{parent.path} was trained on {', '.join(lost)} too: give the settings file that names them, --config"
        )
    data = parent.manifest.data
    since = data.trained_to or data.last + 1
    new = [event for event in log.events if event.ts >= since]
    ends = split_by_time(new, config.validation_share, config.test_share)
    split = Split(log.events[: len(log.events) - len(new)] + ends.train, ends.validation, ends.test)
    _check_enough(_first_touches(log.events, config), data.last, split)
    return since, split


def _first_touches(events: Sequence[Event], config: TrainingConfig) -> list[Event]:
    """The events that are predicted and judged: of a target type, on an item that is new to the user."""
    known: set[tuple[str, str | None]] = set()
    first = []
    for event in events:
        pair = event.user_id, event.item_id
        if pair not in known and event.type in config.targeted:
            first.append(event)
        known.add(pair)
    return first


def _check_enough(first_touches: Sequence[Event], trained_until: int, split: Split) -> None:
    happened = sum(event.ts > trained_until for event in first_touches)
    if happened < MIN_NEW_EVENTS:
        raise NothingNewError(f"{happened} first touches since the live version was trained: nothing to learn yet")
    test = set(map(id, split.test))
    judged = sum(id(event) in test for event in first_touches)
    if judged < MIN_JUDGED:
        raise NothingNewError(f"{happened} new first touches, {judged} of them to judge by: too few to tell yet")
