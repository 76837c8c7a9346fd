"""Text embeddings of earlier runs, on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from freshet.core.features import TEXT_DIM
from freshet.files import written_whole
from numpy.typing import NDArray

from freshet_training.text.encoder import TextEncoder

STORED_EVERY = 5000
"""Texts between two writes of the file: a run that is killed loses no more than these."""


class TextVectorCache:
    """Text embeddings kept in a file, so that a periodic run encodes each text once.

    Vectors of another text encoder are not taken.
    """

    def __init__(self, encoder: TextEncoder, file: Path) -> None:
        self._encoder = encoder
        self._file = file
        self._known: dict[bytes, NDArray[np.float32]] = {}
        try:
            with np.load(file, allow_pickle=False) as stored:
                if str(stored["encoder"]) == encoder.digest:
                    self._known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # none yet, or cut short
            self._known = {}

    def encode(
        self, texts: Sequence[str], advance: Callable[[int, int], None] = lambda _done, _total: None
    ) -> NDArray[np.float32]:
        """Text embeddings `[len(texts), TEXT_DIM]`; an item without text has nought."""
        new = list(dict.fromkeys(text for text in texts if text and _key(text) not in self._known))
        for done, text in enumerate(new, 1):
            self._known[_key(text)] = self._encoder.encode([text])[0]
            advance(done, len(new))
            if done % STORED_EVERY == 0 or done == len(new):
                self._store()
        rows = np.zeros((len(texts), TEXT_DIM), np.float32)
        for row, text in enumerate(texts):
            if text:
                rows[row] = self._known[_key(text)]
        return rows

    def _store(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        keys, vectors = np.array(list(self._known)), np.stack(list(self._known.values()))
        with written_whole(self._file) as partial, partial.open("wb") as out:
            np.savez(out, encoder=np.array(self._encoder.digest), keys=keys, vectors=vectors)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).hexdigest().encode()
