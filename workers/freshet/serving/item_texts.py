"""Vectors of new items' texts: few enough a call for any host, and no text holds up those behind it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from freshet.core.catalogue import Text
from freshet.ports import Encoder, Unavailable
from freshet.process import metrics

TEXTS = 64
"""Most texts in a call."""
CHARACTERS = 8192
"""Most characters in a call of more than one text: 13 texts that are as long as the encoder reads take it .2 s."""
PROBE = "a"
"""A text that every encoder answers."""

log = logging.getLogger(__name__)


class TextEmbedder:
    """Asks the encoder for vectors; one batch at a time."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._texts = TEXTS

    def batch(self, texts: Iterable[Text]) -> list[Text]:
        """The first texts, as many as go into a call."""
        batch: list[Text] = []
        characters = 0
        for text in texts:
            characters += len(text.text)
            if batch and (len(batch) >= self._texts or characters > CHARACTERS):
                break
            batch.append(text)
        return batch

    async def vectors(self, texts: Sequence[Text], version: int) -> dict[Text, NDArray[np.float32] | None]:
        """The vector `[D]` of each text in a version's space, None for a text that the encoder cannot place.

        A call that fails is split while the encoder answers other texts. Raises `Unavailable` where it answers none:
        the next batch is then smaller, for the host may be too slow for this one.
        """
        try:
            found = await self._split(texts, version)
        except Unavailable:
            self._texts = max(1, self._texts // 2)
            raise
        self._texts = min(TEXTS, 2 * self._texts)
        return found

    async def _split(self, texts: Sequence[Text], version: int) -> dict[Text, NDArray[np.float32] | None]:
        try:
            rows = await self._encoder.item_vectors([text.text for text in texts], version)
        except Unavailable as error:
            await self._encoder.item_vectors([PROBE], version)
            if len(texts) == 1:
                _tell(texts[0], version, str(error))
                return {texts[0]: None}
            middle = len(texts) // 2
            return await self._split(texts[:middle], version) | await self._split(texts[middle:], version)
        found: dict[Text, NDArray[np.float32] | None] = dict(zip(texts, rows, strict=True))
        for text, row in zip(texts, rows, strict=True):
            if not np.isfinite(row).all():
                _tell(text, version, "its vector holds NaN or infinity")
                found[text] = None
        return found


def _tell(text: Text, version: int, why: str) -> None:
    metrics.SKIPPED_TEXTS.inc()
    where = {"topic": "items", "partition": 0, "offset": text.offset, "item_id": text.item_id}
    log.warning("text skipped", extra={**where, "version": version, "why": why})
