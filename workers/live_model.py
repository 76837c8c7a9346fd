"""What lists are made with right now: a model version, the catalogue, the popularity prior.

Each is the fold of a single-partition topic (`models`, `items`, `popularity`)
that every worker reads whole, so a side input is named by the offset of the
last record applied. The three meet in an `ItemSpace`, replaced as a whole when
the version changes: user vectors, item table and cold items are always of one
version.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workers import metrics
from workers.core import rollout
from workers.core.bundle import Bundle, BundleError, load_bundle
from workers.core.catalogue import CatalogueItem, decode_item
from workers.core.popularity import Partial, decode_partial, total
from workers.core.ranking import ItemSpace
from workers.core.recommendation import SideInputs
from workers.ports import Encoder, Record, Unavailable

COLD_BATCH = 64
"""Item texts per encoder call."""
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass
class Live:
    """One version, ready to rank with."""

    version: int
    bundle: Bundle
    space: ItemSpace
    item_index: dict[str, int]
    type_index: dict[str, int]


class LiveModel:
    """Folds the side-input topics and keeps `live` current. Not thread-safe: event loop only."""

    def __init__(self, encoder: Encoder, repository: Path) -> None:
        self._encoder = encoder
        self._repository = repository
        self._items: dict[str, CatalogueItem] = {}
        self._partials: dict[int, Partial] = {}
        self._offsets = {"items": -1, "popularity": -1, "models": -1}
        self._uncharted: dict[str, None] = {}
        self._work = asyncio.Event()
        self._wanted = 0
        self.live: Live | None = None

    @property
    def side_inputs(self) -> SideInputs:
        """The newest applied offset of each side-input topic."""
        return SideInputs(**self._offsets)

    def title(self, item_id: str) -> str:
        """The catalogue's title of an item, or its id."""
        item = self._items.get(item_id)
        return item.title if item is not None and item.title else item_id

    def partial(self, partition: int) -> Partial | None:
        """The last published popularity counts of a source partition."""
        return self._partials.get(partition)

    def apply_items(self, records: Sequence[Record]) -> None:
        """Fold catalogue upserts; a tombstone makes the item unavailable."""
        for record in records:
            self._offsets["items"] = record.offset
            if record.value is None:
                item: CatalogueItem | str = CatalogueItem(
                    (record.key or b"?").decode(errors="replace"), available=False
                )
            else:
                item = decode_item(record.value, record.key)
            if isinstance(item, str):
                _bad("items", record, item)
                continue
            known = self._items.get(item.item_id)
            self._items[item.item_id] = item
            if self.live is not None:
                self.live.space.set_available(item.item_id, item.available)
                if self._is_cold(item) and (
                    known is None or known.text != item.text or item.item_id not in self.live.space.index
                ):
                    self._uncharted[item.item_id] = None
                    self._work.set()

    def apply_popularity(self, records: Sequence[Record]) -> None:
        """Fold partial counts into the prior."""
        for record in records:
            self._offsets["popularity"] = record.offset
            try:
                partial = decode_partial(record.value or b"")
            except msgspec.DecodeError as error:
                _bad("popularity", record, str(error))
                continue
            self._partials[partial.partition] = partial
        if self.live is not None and records:
            self.live.space.set_popularity(total(self._partials.values()))

    def apply_models(self, records: Sequence[Record]) -> None:
        """Fold rollout records; the newest promoted version is prepared and goes live when ready."""
        for record in records:
            self._offsets["models"] = record.offset
            decoded = rollout.decode_rollout(record.value or b"")
            if isinstance(decoded, str):
                _bad("models", record, decoded)
            elif decoded.model == rollout.MODEL:
                self._wanted = decoded.version
                self._work.set()

    async def start(self, default_version: int) -> None:
        """Make the first version live: the promoted one, or `default_version` where none was.

        Cold items follow in the background (`run`). Raises `BundleError`.
        """
        self._wanted = self._wanted or default_version
        await self._go_live(await asyncio.to_thread(self._load, self._wanted))

    async def run(self) -> None:
        """Chart cold items and prepare promoted versions as they come, for ever."""
        while True:
            await self._work.wait()
            self._work.clear()
            waiting = False
            for step in (self._follow_rollout, self._chart_cold):
                try:
                    await step()
                except (Unavailable, BundleError) as error:
                    log.warning("side inputs wait", extra={"why": str(error)})
                    waiting = True
            if waiting:
                await asyncio.sleep(RETRY_SECONDS)
                self._work.set()

    async def _follow_rollout(self) -> None:
        if self.live is not None and self._wanted != self.live.version:
            await self._prepare(self._wanted)

    async def _prepare(self, version: int) -> None:
        bundle = await asyncio.to_thread(self._load, version)
        space = self._space(bundle)
        cold = [item for item in self._items.values() if self._is_cold(item, space)]
        for start in range(0, len(cold), COLD_BATCH):
            batch = cold[start : start + COLD_BATCH]
            vectors = await self._encoder.item_vectors([item.text for item in batch], version)
            space.add_cold([item.item_id for item in batch], vectors)
        await self._go_live(bundle, space)

    async def _go_live(self, bundle: Bundle, space: ItemSpace | None = None) -> None:
        version = int(bundle.path.name)
        space = space or self._space(bundle)
        space.set_popularity(total(self._partials.values()))
        for item in self._items.values():
            space.set_available(item.item_id, item.available)
            if self._is_cold(item, space) and item.item_id not in space.index:
                self._uncharted[item.item_id] = None
        self.live = Live(version, bundle, space, bundle.item_index, bundle.type_index)
        self._work.set()
        metrics.MODEL_VERSION.set(version)
        metrics.COLD_ITEMS.set(space.size - space.trained)
        log.info("model live", extra={"version": version, "items": space.size})

    async def _chart_cold(self) -> None:
        """Give the uncharted items a place in the live version's space; a new rollout record goes first."""
        wanted = self._wanted
        while self._uncharted and self.live is not None and self._wanted == wanted:
            live = self.live
            names = list(self._uncharted)[:COLD_BATCH]
            for name in names:
                del self._uncharted[name]
            cold = [self._items[name] for name in names if self._is_cold(self._items[name])]
            if not cold:
                continue
            try:
                vectors = await self._encoder.item_vectors([item.text for item in cold], live.version)
            except Unavailable:
                self._uncharted.update(dict.fromkeys(names))
                raise
            if self.live is not live:
                self._uncharted.update(dict.fromkeys(names))
                continue
            names = [item.item_id for item in cold]
            live.space.add_cold(names, vectors)
            for name in names:
                live.space.set_available(name, self._items[name].available)
            metrics.COLD_ITEMS.set(live.space.size - live.space.trained)

    def _load(self, version: int) -> Bundle:
        return load_bundle(self._repository / rollout.MODEL / str(version))

    def _space(self, bundle: Bundle) -> ItemSpace:
        return ItemSpace(bundle.item_ids, bundle.item_vectors)

    def _is_cold(self, item: CatalogueItem, space: ItemSpace | None = None) -> bool:
        space = space or (self.live.space if self.live else None)
        if space is None or not item.text:
            return False
        row = space.index.get(item.item_id)
        return row is None or row >= space.trained


def _bad(topic: str, record: Record, why: str) -> None:
    metrics.BAD_SIDE_INPUTS.labels(topic).inc()
    log.warning("bad side input", extra={"topic": topic, "offset": record.offset, "why": why})
