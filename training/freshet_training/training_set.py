"""What a run learns from: the cleaned log in its parts, the items with their texts, and an epoch's examples of it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from freshet.bundle.bundle import Bundle
from freshet.core.events import Event
from freshet.core.features import FIRST_ITEM, TEXT_DIM
from numpy.typing import NDArray

from freshet_training.config import Config
from freshet_training.console import progress, say
from freshet_training.dataset import DatasetError, Log, Split, read_items, read_log, split_by_time, vocabulary
from freshet_training.dp_sgd import Private
from freshet_training.examples import Examples, histories, shuffle_ties, windows
from freshet_training.model import Config as ModelConfig
from freshet_training.regression_set import CANARY_FILE, canary_pairs
from freshet_training.text import RememberedTexts, TextEncoder
from freshet_training.text_words import word_numbers

MIN_NEW_EVENTS = 100
"""First touches: an incremental run with fewer new ones has nothing to learn."""
SHOWN_TYPES = 5
MIN_JUDGED = 20
"""First touches by which an incremental run is judged: fewer say nothing."""


class NothingNewError(Exception):
    """Too little has happened since the live version was trained."""


@dataclass(frozen=True)
class Material:
    """A log ready to learn from; catalogue = `item_ids`, the vocabulary, then `others`, and `texts` its embeddings.

    `others` are the other available items, and those of later events; where they have no text, the baselines alone
    can rank them.
    `words` `[len(item_ids), W]` are `word_numbers` of the vocabulary's texts, where the settings ask for them.
    An incremental run learns what happened at `since` (ms) or later; 0 is everything. So many events of `runs` are
    left out as `canaries`, with a gap in their users' histories. `digest` is that of all that is learned from.
    """

    log: Log
    split: Split
    runs: list[list[Event]]
    since: int
    item_ids: list[str]
    others: list[str]
    texts: NDArray[np.float32]
    words: NDArray[np.int64] | None
    without_text: int
    canaries: int
    digest: str

    @property
    def catalogue(self) -> list[str]:
        """The ids of all items, the vocabulary first."""
        return [*self.item_ids, *self.others]

    @property
    def known(self) -> NDArray[np.float32]:
        """The vocabulary's text embeddings."""
        return self.texts[: len(self.item_ids)]

    @property
    def unseen(self) -> NDArray[np.float32]:
        """The others' text embeddings."""
        return self.texts[len(self.item_ids) :]

    @property
    def item_index(self) -> dict[str, int]:
        """Item id to the encoder's index."""
        return {item: row + FIRST_ITEM for row, item in enumerate(self.item_ids)}


def gather(
    config: Config, events: Path, items_file: Path | None, work: Path, text_encoder: Path, parent: Bundle | None
) -> Material:
    """Read a log and its items; from a `parent` on, an incremental run learns the events that it has not learned.

    Text vectors and the canary set, which is in no training row, are kept in `work`; who has left is taken out of it.
    Raises `DatasetError`, `NothingNewError`, `TextError`.
    """
    log = read_log(events, config, int(time.time() * 1000))
    items = read_items(items_file) if items_file is not None else {}
    since, split = 0, split_by_time(log.events, config.validation_share, config.test_share)
    if parent is not None:
        if lost := [kind for kind in parent.manifest.types if kind not in config.behaviours]:
            raise DatasetError(
                f"{parent.path} was trained on {', '.join(lost)} too: give the settings file that names them, --config"
            )
        data = parent.manifest.data
        since = data.trained_to or data.last + 1
        new = [event for event in log.events if event.ts >= since]
        ends = split_by_time(new, config.validation_share, config.test_share)
        split = Split(log.events[: len(log.events) - len(new)] + ends.train, ends.validation, ends.test)
        _check_new(_first_touches(log.events, config), data.last, split)
    if not (split.validation and split.test):
        raise DatasetError(f"{events}: {len(log.events)} events are too few to hold some back and judge by them")
    inside = set(map(id, split.train))
    asked = canary_pairs(work / CANARY_FILE, log.forgotten)
    whole = [[event for event in run if id(event) in inside] for run in histories(log.events)]
    runs = [[event for event in run if (event.user_id, event.item_id) not in asked] for run in whole]
    canaries = sum(map(len, whole)) - sum(map(len, runs))
    runs = [run for run in runs if run]
    if not any(event.type in config.targeted for run in runs for event in run):
        named = ", ".join(sorted(config.targeted))
        raise DatasetError(f"{events}: none of the events to learn from is a {named}, which alone are predicted")
    item_ids = vocabulary((event for run in runs for event in run), parent.item_ids if parent is not None else ())
    touched = {event.item_id or "" for event in log.events}
    others = sorted({*touched, *(item for item in items if items[item].available)} - {*item_ids})
    texts = [items[item].text(config.text_fields) if item in items else "" for item in [*item_ids, *others]]
    without = sum(not text for text in texts[: len(item_ids)])
    _tell_log(log, config, since, split)
    if canaries:
        say(f"  left out: {canaries:,} of the canary set")
    by_text = sum(map(bool, texts[len(item_ids) :]))
    say(
        f"{len(item_ids):,} items in the vocabulary, {without:,} of them without text; {by_text:,} more to rank by text"
    )
    if by_text < len(others):
        say(f"  {len(others) - by_text:,} were touched later and have no text: a list cannot hold them")
    vectors = text_vectors(texts, text_encoder, work)
    words = word_numbers(texts[: len(item_ids)]) if config.words and parent is None else None
    if words is not None:
        say(f"they share {words.max(initial=0):,} words")
    digest = hashlib.sha256(repr((log.digest, item_ids, texts, sorted(asked))).encode()).hexdigest()
    return Material(log, split, runs, since, item_ids, others, vectors, words, without, canaries, digest)


def text_vectors(texts: Sequence[str], text_encoder: Path, work: Path) -> NDArray[np.float32]:
    """Text embeddings `[len(texts), TEXT_DIM]`; without a text no text encoder is needed. Raises `TextError`."""
    if not any(texts):
        return np.zeros((len(texts), TEXT_DIM), np.float32)
    with progress("texts") as advance:
        return RememberedTexts(TextEncoder(text_encoder), work / "texts.npz").encode(texts, advance)


def _first_touches(events: Sequence[Event], config: Config) -> list[Event]:
    """The events that are predicted and judged: of a target type, on an item that is new to the user."""
    known: set[tuple[str, str | None]] = set()
    first = []
    for event in events:
        pair = event.user_id, event.item_id
        if pair not in known and event.type in config.targeted:
            first.append(event)
        known.add(pair)
    return first


def _check_new(first_touches: Sequence[Event], trained_until: int, split: Split) -> None:
    happened = sum(event.ts > trained_until for event in first_touches)
    if happened < MIN_NEW_EVENTS:
        raise NothingNewError(f"{happened} first touches since the live version was trained: nothing to learn yet")
    test = set(map(id, split.test))
    judged = sum(id(event) in test for event in first_touches)
    if judged < MIN_JUDGED:
        raise NothingNewError(f"{happened} new first touches, {judged} of them to judge by: too few to tell yet")


def _tell_log(log: Log, config: Config, since: int, split: Split) -> None:
    users = len({event.user_id for event in log.events})
    say(f"{len(log.events):,} events of {users:,} users")
    for reason, count in sorted(log.cleaning.items()):
        say(f"  {'put in order' if reason == 'out of order' else 'left out'}: {count:,} {reason}")
    if log.unknown:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in Counter(log.unknown).most_common(SHOWN_TYPES))
        say(f"  types that the settings do not name: {kinds}; where they matter, name them under [behaviours]")
    if since:
        new = len(split.validation) + len(split.test) + sum(event.ts >= since for event in split.train)
        say(f"{new:,} of them are not learned yet; older ones are rehearsed {config.rehearsal:g} to one")


def model_config(config: Config, material: Material) -> ModelConfig:
    """The shape of the network."""
    return ModelConfig(items=len(material.item_ids), types=len(config.types), **config.model)


def epoch_rows(config: Config, material: Material) -> Callable[[np.random.Generator], Examples]:
    """An epoch's examples: all, or in an incremental run the new ones and a sample of users' older ones."""
    length, item_index = model_config(config, material).length, material.item_index

    def cut(runs: Sequence[list[Event]], random: np.random.Generator, since: int = 0) -> Examples:
        return windows(
            runs,
            item_index,
            config.type_index,
            length,
            targets=config.targeted,
            since=since,
            overlap=config.overlap,
            random=random,
        )

    def rows(random: np.random.Generator) -> Examples:
        runs = shuffle_ties(material.runs, random)
        new = cut(runs, random, material.since)
        wanted = int(config.rehearsal * len(new)) if material.since else 0
        parts = [new]
        for number in random.permutation(len(runs)):
            if wanted <= 0:
                break
            parts.append(cut([runs[number]], random))
            wanted -= len(parts[-1])
        return Examples(*(np.concatenate(columns) for columns in zip(*map(_columns, parts), strict=True)))

    return rows


def private_users(config: Config, material: Material) -> Private | None:
    """The examples by user, where the settings ask for a private run."""
    if config.privacy is None:
        return None
    length, item_index = model_config(config, material).length, material.item_index

    aimed = [run for run in material.runs if any(event.type in config.targeted for event in run)]

    def users(random: np.random.Generator) -> list[Examples]:
        runs = shuffle_ties(aimed, random)
        return [windows([run], item_index, config.type_index, length, targets=config.targeted) for run in runs]

    return Private(config.privacy, len(aimed), users)


def _columns(examples: Examples) -> list[NDArray[np.int32]]:
    return [getattr(examples, name) for name in Examples.__dataclass_fields__]
