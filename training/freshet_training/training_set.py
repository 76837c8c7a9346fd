"""What a run learns from: the cleaned log in its parts, the items with their texts, and an epoch's examples of both."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from freshet.bundle.bundle import Bundle, TextEncoderFacts
from freshet.core.catalogue import CatalogueItem
from freshet.core.events import Event
from freshet.core.features import FIRST_ITEM, TEXT_DIM
from numpy.typing import NDArray

from freshet_training.config import TrainingConfig
from freshet_training.console import progress, say
from freshet_training.dataset import CleanedLog, DatasetError, Split, read_items, read_log, split_by_time, vocabulary
from freshet_training.dp_sgd import DpSgd
from freshet_training.examples import Examples, histories, shuffle_ties, windows
from freshet_training.increment import split_increment
from freshet_training.model_shape import ModelShape
from freshet_training.regression_set import REGRESSION_FILE, regression_pairs
from freshet_training.text.encoder import TextEncoder, TextError
from freshet_training.text.vector_cache import TextVectorCache
from freshet_training.text.vocabulary import word_numbers

SHOWN_TYPES = 5
MANY_UNKNOWN = 0.05
"""Share of unknown tokens from which on a run says that the text encoder may not know the language."""


@dataclass(frozen=True)
class TrainingFiles:
    """Where a run finds its log, its catalogue, its folder for work in progress and its text encoder."""

    events: Path
    items: Path | None
    work: Path
    text_encoder: Path


@dataclass(frozen=True)
class TrainingSet:
    """A log ready to learn from.

    `item_ids` are the vocabulary in index order. `others` are the other available items and the items of later
    events. The catalogue is both, the vocabulary first, and `texts` `[M, TEXT_DIM]` are the text embeddings of the
    catalogue, of which `item_texts` are the texts. An item of `others` without text is ranked by the baselines alone.
    `word_numbers` `[len(item_ids), W]` number the words of the vocabulary's texts, where the settings ask for words.
    An incremental run learns what happened at `since` (ms) or later; 0 is everything. `asked` are the users and items
    of the regression set: `runs` lack the `held_back` events of these, with a gap in their users' histories.
    `digest` is the digest of everything that is learned from. `text_encoder` read the texts; it is None where no item
    has a text.
    """

    log: CleanedLog
    split: Split
    runs: list[list[Event]]
    since: int
    item_ids: list[str]
    others: list[str]
    item_texts: list[str]
    texts: NDArray[np.float32]
    word_numbers: NDArray[np.int64] | None
    asked: frozenset[tuple[str, str]]
    held_back: int
    digest: str
    text_encoder: TextEncoderFacts | None

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
        """The text embeddings of `others`."""
        return self.texts[len(self.item_ids) :]

    @property
    def without_text(self) -> int:
        """How many items of the vocabulary have no text."""
        return sum(not text for text in self.item_texts[: len(self.item_ids)])

    @property
    def item_index(self) -> dict[str, int]:
        """Item id to the encoder's index."""
        return {item: row + FIRST_ITEM for row, item in enumerate(self.item_ids)}


def read_training_set(config: TrainingConfig, files: TrainingFiles, parent: Bundle | None) -> TrainingSet:
    """Read a log and its items. With a `parent`, an incremental run learns the events that `parent` has not learned.

    `files.work` keeps the text vectors and the regression set, which is in no training row. Users who have left are
    taken out of the regression set. Raises `DatasetError`, `NothingNewError`, `TextError`.
    """
    log = read_log(files.events, config, int(time.time() * 1000))
    items = read_items(files.items) if files.items is not None else {}
    if parent is None:
        since, split = 0, split_by_time(log.events, config.validation_share, config.test_share)
    else:
        since, split = split_increment(log, config, parent)
    if not (split.validation and split.test):
        raise DatasetError(f"{files.events}: {len(log.events)} events are too few to hold some back and judge by them")
    asked = regression_pairs(files.work / REGRESSION_FILE, log.forgotten)
    runs, held_back = _learned_runs(log, split.train, asked)
    if not any(event.type in config.targeted for run in runs for event in run):
        named = ", ".join(sorted(config.targeted))
        raise DatasetError(f"{files.events}: none of the events to learn from is a {named}, which alone are predicted")
    item_ids = vocabulary((event for run in runs for event in run), parent.item_ids if parent is not None else ())
    others = _others(log, items, item_ids)
    texts = [items[item].text(config.text_fields) if item in items else "" for item in [*item_ids, *others]]
    _say_log(log, config, since, split)
    _say_items(texts, len(item_ids), held_back)
    encoder = TextEncoder(files.text_encoder) if any(texts) else None
    facts = read_by(encoder, texts, parent) if encoder is not None else None
    vectors = text_vectors(texts, encoder, files.work)
    numbers = _numbered(texts[: len(item_ids)]) if config.words and parent is None else None
    digest = hashlib.sha256(repr((log.digest, item_ids, texts, sorted(asked), facts)).encode()).hexdigest()
    return TrainingSet(
        log, split, runs, since, item_ids, others, texts, vectors, numbers, asked, held_back, digest, facts
    )


def with_words(training_set: TrainingSet) -> TrainingSet:
    """The same set with the words of the vocabulary's texts numbered."""
    return replace(training_set, word_numbers=_numbered(training_set.item_texts[: len(training_set.item_ids)]))


def _numbered(texts: Sequence[str]) -> NDArray[np.int64]:
    numbers = word_numbers(texts)
    say(f"the items' texts share {numbers.max(initial=0):,} words")
    return numbers


def with_held_back(training_set: TrainingSet) -> TrainingSet:
    """The same log with nothing held back to choose and judge by: `runs` are of all parts, the vocabulary too.

    The regression set stays out.
    """
    runs, held_back = _learned_runs(training_set.log, training_set.log.events, training_set.asked)
    item_ids = vocabulary((event for run in runs for event in run), training_set.item_ids)
    known = set(item_ids)
    others = [item for item in training_set.others if item not in known]
    row = {item: number for number, item in enumerate(training_set.catalogue)}
    order = [row[item] for item in (*item_ids, *others)]
    texts = [training_set.item_texts[number] for number in order]
    numbers = word_numbers(texts[: len(item_ids)]) if training_set.word_numbers is not None else None
    return replace(
        training_set,
        runs=runs,
        item_ids=item_ids,
        others=others,
        item_texts=texts,
        texts=training_set.texts[order],
        word_numbers=numbers,
        held_back=held_back,
    )


def _learned_runs(
    log: CleanedLog, learned: Sequence[Event], asked: Collection[tuple[str, str]]
) -> tuple[list[list[Event]], int]:
    """The histories of the `learned` events without the regression set's, and how many events that took out."""
    training = set(map(id, learned))
    whole = [[event for event in run if id(event) in training] for run in histories(log.events)]
    runs = [[event for event in run if (event.user_id, event.item_id) not in asked] for run in whole]
    return [run for run in runs if run], sum(map(len, whole)) - sum(map(len, runs))


def _others(log: CleanedLog, items: Mapping[str, CatalogueItem], item_ids: Sequence[str]) -> list[str]:
    """The items outside the vocabulary that can be ranked: touched later, or available."""
    touched = {event.item_id or "" for event in log.events}
    return sorted({*touched, *(item for item in items if items[item].available)} - {*item_ids})


def read_by(encoder: TextEncoder, texts: Sequence[str], parent: Bundle | None) -> TextEncoderFacts:
    """What the version says of its text encoder. Raises `TextError` where the version to go on from had another."""
    former = parent.manifest.text_encoder if parent is not None else None
    if parent is not None and former is not None and not former.is_of(encoder.facts):
        raise TextError(
            f"{parent.path} was trained with another text encoder: train anew, without --incremental, "
            "or name its own with --text-encoder"
        )
    facts = msgspec.structs.replace(encoder.facts, unknown_tokens=round(encoder.unknown_tokens(texts), 4))
    if facts.unknown_tokens >= MANY_UNKNOWN:
        say(f"the text encoder does not know {facts.unknown_tokens:.1%} of the texts' tokens: is it of their language?")
    return facts


def text_vectors(texts: Sequence[str], encoder: TextEncoder | None, work: Path) -> NDArray[np.float32]:
    """Text embeddings `[len(texts), TEXT_DIM]`; without a text no text encoder is needed."""
    if encoder is None:
        return np.zeros((len(texts), TEXT_DIM), np.float32)
    with progress("texts") as advance:
        return TextVectorCache(encoder, work / "texts.npz").encode(texts, advance)


def _say_log(log: CleanedLog, config: TrainingConfig, since: int, split: Split) -> None:
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


def _say_items(texts: Sequence[str], known: int, held_back: int) -> None:
    """Say how many of the catalogue's items, the first `known` being the vocabulary, have a text."""
    if held_back:
        say(f"  left out: {held_back:,} of the regression set")
    without = sum(not text for text in texts[:known])
    by_text = sum(map(bool, texts[known:]))
    say(f"{known:,} items in the vocabulary, {without:,} of them without text; {by_text:,} more to rank by text")
    if by_text < len(texts) - known:
        say(f"  {len(texts) - known - by_text:,} of the others have no text: a list cannot hold them")


def model_shape(config: TrainingConfig, training_set: TrainingSet) -> ModelShape:
    """The shape of the network."""
    return ModelShape(items=len(training_set.item_ids), types=len(config.types), **config.model)


def epoch_rows(config: TrainingConfig, training_set: TrainingSet) -> Callable[[np.random.Generator], Examples]:
    """An epoch's examples: all, or in an incremental run the new ones and a sample of users' older ones."""
    length, item_index = model_shape(config, training_set).length, training_set.item_index

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
        runs = shuffle_ties(training_set.runs, random)
        new = cut(runs, random, training_set.since)
        wanted = int(config.rehearsal * len(new)) if training_set.since else 0
        parts = [new]
        for number in random.permutation(len(runs)):
            if wanted <= 0:
                break
            parts.append(cut([runs[number]], random))
            wanted -= len(parts[-1])
        return Examples(*(np.concatenate(columns) for columns in zip(*map(_columns, parts), strict=True)))

    return rows


def dp_sgd_users(config: TrainingConfig, training_set: TrainingSet) -> DpSgd | None:
    """The examples by user, where the settings ask for a private run."""
    if config.privacy is None:
        return None
    length, item_index = model_shape(config, training_set).length, training_set.item_index

    aimed = [run for run in training_set.runs if any(event.type in config.targeted for event in run)]

    def users(random: np.random.Generator) -> list[Examples]:
        runs = shuffle_ties(aimed, random)
        return [windows([run], item_index, config.type_index, length, targets=config.targeted) for run in runs]

    return DpSgd(config.privacy, len(aimed), users)


def _columns(examples: Examples) -> list[NDArray[np.int32]]:
    return [getattr(examples, name) for name in Examples.__dataclass_fields__]
