"""The words that items' texts share, for residuals that are learned through them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

WORDS = 16
"""Most words of an item: the rarest ones say most."""
SHARED_BY = 3
COMMON = 0.2


def word_numbers(texts: Sequence[str]) -> NDArray[np.int64]:
    """Per text the numbers of its words, from 1, the rarest first: `[len(texts), WORDS]`, 0 where there are no more.

    Words of fewer than `SHARED_BY` texts tie nothing together, those of more than `COMMON` of them everything.
    """
    found = [list(dict.fromkeys(re.findall(r"\w+", text.lower()))) for text in texts]
    texts_with = Counter(word for words in found for word in words)
    kept = {word: count for word, count in texts_with.items() if SHARED_BY <= count <= COMMON * len(texts)}
    number = {word: place for place, word in enumerate(sorted(kept), 1)}
    rows = np.zeros((len(texts), WORDS), np.int64)
    for row, words in zip(rows, found, strict=True):
        chosen = sorted((word for word in words if word in kept), key=lambda word: (kept[word], word))[:WORDS]
        row[: len(chosen)] = [number[word] for word in chosen]
    return rows
