"""The vocabulary of the items' texts: words that items share, for residuals that are learned through the words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORDS = 16
"""Most words of an item; the rarest words are kept, for they say most."""
SHARED_BY = 3
"""Fewest texts of a word: a rarer word ties no items together."""
COMMON = 0.2
"""Largest share of the texts that have a word: a more frequent word ties all items together."""


def word_numbers(texts: Sequence[str]) -> NDArray[np.int64]:
    """Per text the numbers of its words, counted from 1, the rarest word first.

    The result is `[len(texts), WORDS]`. A row is filled up with 0. Words that fewer than `SHARED_BY` texts or more
    than a share of `COMMON` of the texts have are left out.
    """
    found = [list(dict.fromkeys(re.findall(r"\w+", text.lower()))) for text in texts]
    texts_with = Counter(word for words in found for word in words)
    kept = {word: count for word, count in texts_with.items() if SHARED_BY <= count <= COMMON * len(texts)}
    number = {word: index for index, word in enumerate(sorted(kept), 1)}
    rows = np.zeros((len(texts), WORDS), np.int64)
    for row, words in zip(rows, found, strict=True):
        chosen = sorted((word for word in words if word in kept), key=lambda word: (kept[word], word))[:WORDS]
        row[: len(chosen)] = [number[word] for word in chosen]
    return rows
