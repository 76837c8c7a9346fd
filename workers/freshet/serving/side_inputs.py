"""The side inputs as far as they have been read: the catalogue, the popularity counts, the steps of versions.

Each is the fold of a single-partition topic (`items`, `popularity`, `models`) that every worker reads whole. The
offset of the last record that was applied therefore names a side input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from freshet.core.catalogue import Catalogue, CatalogueItem, Text
from freshet.core.item_space import ItemSpace
from freshet.core.popularity import Popularity, PopularityTable, PublishedCounts, decode_partial
from freshet.core.recommendation import MAX_SKIPPED, SideInputs
from freshet.core.rollout import Rollout, Versions
from freshet.ports import Record
from freshet.process import metrics

POPULARITY_SECONDS = 1.0
"""How often new counts are taken up: summing them and laying them over 100,000 items takes 20 ms."""
SPARE_ITEMS = 10_000
"""Items without a count any more that popularity may hold, beside as many as have one."""

log = logging.getLogger(__name__)


class FoldedSideInputs:
    """Folds the records of the side-input topics. A record that is at fault is counted and told, and changes nothing.

    Attributes:
        catalogue: The items.
        versions: The steps of versions.
        steps_applied: How many steps have been applied.
    """

    def __init__(self, text_fields: Sequence[str], latest_ts: Callable[[int], int]) -> None:
        """`text_fields` and `latest_ts` are as `LiveVersions` takes them."""
        self.catalogue = Catalogue(text_fields)
        self.versions = Versions()
        self.steps_applied = 0
        self._popularity = PopularityTable()
        self._latest_ts = latest_ts
        self._offsets = {"items": -1, "popularity": -1, "models": -1}

    def named(self, unembedded: Sequence[Text], skipped: Mapping[str, int]) -> SideInputs:
        """The name of what has been read, for a version with these texts still to embed and these items skipped."""
        items_embedded = unembedded[0].offset - 1 if unembedded else self._offsets["items"]
        newest = tuple(sorted(skipped.values())[-MAX_SKIPPED:])
        return SideInputs(**self._offsets, items_embedded=items_embedded, items_skipped=newest)

    def title(self, item_id: str) -> str:
        """The catalogue's title of an item, or its id."""
        item = self.catalogue.items.get(item_id)
        return item.title if item is not None and item.title else item_id

    def published_counts(self, partition: int) -> PublishedCounts | None:
        """The popularity counts of a source partition that have been read."""
        return self._popularity.published(partition)

    def popularity(self) -> Popularity:
        """The sum of all partitions' counts."""
        return self._popularity.popularity()

    def is_rankable(self, item: CatalogueItem, space: ItemSpace, skipped: Mapping[str, int]) -> bool:
        """Whether an item may stand in lists: it is available, and the space has a place for it or will have."""
        placed = bool(self.catalogue.text(item)) and item.item_id not in skipped
        return item.available and (placed or space.is_trained(item.item_id))

    def apply_items(self, records: Sequence[Record], changed: Callable[[CatalogueItem, Text | None], None]) -> None:
        """Fold catalogue upserts; a tombstone makes an item unavailable.

        `changed` is called for each item in turn, with the item's text where the record is what the text is of.
        """

        def apply(record: Record) -> str | None:
            item = self.catalogue.apply(record.value, record.key, record.offset)
            if isinstance(item, str):
                return item
            text = self.catalogue.texts.get(item.item_id)
            changed(item, text if text is not None and text.offset == record.offset else None)
            return None

        self._apply_each("items", records, apply)

    def apply_popularity(self, records: Sequence[Record]) -> None:
        """Fold partial counts."""
        self._apply_each("popularity", records, self._apply_partial)
        popularity = self._popularity.popularity()
        if len(popularity.items) > SPARE_ITEMS + 2 * np.count_nonzero(popularity.counts):
            self._popularity.forget_faded()

    def apply_models(self, records: Sequence[Record]) -> None:
        """Fold the steps of versions."""
        self._apply_each("models", records, self._apply_step)

    def _apply_partial(self, record: Record) -> str | None:
        partial = decode_partial(record.value or b"", self._latest_ts(record.timestamp))
        if isinstance(partial, str):
            return partial
        applied = self._popularity.apply(partial)
        return applied if isinstance(applied, str) else None

    def _apply_step(self, record: Record) -> str | None:
        applied = self.versions.apply(record.value, record.key)
        self.steps_applied += isinstance(applied, Rollout)
        return applied if isinstance(applied, str) else None

    def _apply_each(self, topic: str, records: Sequence[Record], apply: Callable[[Record], str | None]) -> None:
        """Apply a run record by record. A record that `apply` finds fault with, or fails at, holds up no other."""
        for record in records:
            self._offsets[topic] = record.offset
            try:
                why = apply(record)
            except Exception as error:
                log.exception("side input failed", extra={"topic": topic, "offset": record.offset})
                why = repr(error)
            if why is not None:
                metrics.BAD_SIDE_INPUTS.labels(topic).inc()
                log.warning(
                    "bad side input", extra={"topic": topic, "partition": 0, "offset": record.offset, "why": why}
                )
