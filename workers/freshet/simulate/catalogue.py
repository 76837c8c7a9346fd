"""What the shop sells: items described in words, some of them from the start and some added every day."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshet.core.catalogue import CatalogueItem
from freshet.simulate.draws import Draw, generator
from freshet.simulate.vocabulary import DEPARTMENTS, TRAITS, TRAITS_PER_ITEM

VOCABULARY = 128
"""Words that tastes are about, at most: the most common ones of the catalogue."""
PRICE_SPREAD = 0.5
FAME_SPREAD = 1.0
_WORD = re.compile(r"\w+")


class Offer(NamedTuple):
    """An item, and the day (from 0) on which it enters the catalogue."""

    item: CatalogueItem
    day: int


def invent(seed: int, first: int, daily: int, days: int) -> list[Offer]:
    """`first` items on day 0, then `daily` more on each later day; the same item by number, however many there are."""
    counts = [first, *[daily] * (days - 1)]
    numbered = enumerate(day for day, count in enumerate(counts) for _ in range(count))
    return [Offer(_item(seed, number), day) for number, day in numbered]


def _item(seed: int, number: int) -> CatalogueItem:
    rng = generator(seed, Draw.ITEM, number)
    department = DEPARTMENTS[rng.integers(len(DEPARTMENTS))]
    thing = department.things[rng.integers(len(department.things))]
    traits = [TRAITS[trait] for trait in rng.permutation(len(TRAITS))[:TRAITS_PER_ITEM]]
    price = department.price * float(np.exp(PRICE_SPREAD * rng.standard_normal()))
    return CatalogueItem(
        item_id=f"item-{number}",
        title=f"{traits[0].capitalize()} {thing}",
        description=f"{traits[1]} {traits[2]}",
        category=f"{department.name} {traits[0]}",
        price=round(price, 2),
    )


class Assortment:
    """Items by number, as shoppers see them.

    `words` float32 `[items, words]` has the words of an item's category and
    description, each row of length 1, and `vocabulary` their names. `dear` is how
    many of its department's standard deviations an item's log price lies above
    the department's mean; the department is the first word of the category.
    `fame` is how easily an item is come upon in its department, and `quality`
    what everybody likes about it; both are drawn.
    """

    def __init__(self, seed: int, offers: Sequence[Offer]) -> None:
        self.items = [offer.item for offer in offers]
        self.days = np.array([offer.day for offer in offers], np.int64)
        self.number = {item.item_id: number for number, item in enumerate(self.items)}
        found = [_words(item) for item in self.items]
        common = Counter(word for words in found for word in words).most_common()
        self.vocabulary = sorted(word for word, _ in sorted(common, key=_by_count_then_word)[:VOCABULARY])
        self.words = _matrix(found, self.vocabulary)
        names = [words[0] if words else "" for words in found]
        self.departments = sorted(set(names))
        numbers = {name: number for number, name in enumerate(self.departments)}
        self.department = np.array([numbers[name] for name in names], np.int64)
        self.dear = _dear(np.array([item.price or 0.0 for item in self.items]), self.department, self.days)
        drawn = np.array([generator(seed, Draw.FAME, number).standard_normal(2) for number in range(len(self.items))])
        self.fame, self.quality = np.exp(FAME_SPREAD * drawn[:, 0]), drawn[:, 1]


def _words(item: CatalogueItem) -> list[str]:
    """Distinct words, the department first."""
    return list(dict.fromkeys(_WORD.findall(f"{item.category} {item.description}".lower())))


def _by_count_then_word(entry: tuple[str, int]) -> tuple[int, str]:
    return -entry[1], entry[0]


def _matrix(found: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> NDArray[np.float32]:
    column = {word: number for number, word in enumerate(vocabulary)}
    words = np.zeros((len(found), max(2, len(vocabulary))), np.float32)
    for row, mine in enumerate(found):
        words[row, [column[word] for word in mine if word in column]] = 1
    words /= np.maximum(np.sqrt(words.sum(axis=1, keepdims=True)), np.float32(1))
    return words


def _dear(prices: NDArray[np.float64], department: NDArray[np.int64], days: NDArray[np.int64]) -> NDArray[np.float64]:
    """Measured by the department's first day, so that what comes later changes nothing."""
    logs = np.log(np.maximum(prices, 0.01))
    dear = np.zeros(len(prices))
    for number in np.unique(department):
        mine = department == number
        first = logs[mine & (days == days[mine].min())]
        dear[mine] = (logs[mine] - first.mean()) / max(float(first.std()), 0.1)
    return dear
