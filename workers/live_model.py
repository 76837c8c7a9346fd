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
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from workers import metrics
from workers.core import rollout
from workers.core.bundle import Bundle, BundleError, load_bundle
from workers.core.catalogue import TEXT_FIELDS, Catalogue, CatalogueItem, Text
from workers.core.popularity import Partial, decode_partial, total
from workers.core.ranking import ItemSpace
from workers.core.recommendation import SideInputs
from workers.ports import Encoder, Record, Unavailable
from workers.signature import load_trusted

COLD_BATCH = 64
"""Item texts per encoder call."""
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


@dataclass
class Live:
    """One version, ready to rank with, and the side inputs that its space reflects."""

    version: int
    bundle: Bundle
    space: ItemSpace
    item_index: dict[str, int]
    type_index: dict[str, int]
    side_inputs: SideInputs

    @property
    def length(self) -> int:
        """How many recent events the version reads."""
        return self.bundle.manifest.length


class LiveModel:
    """Folds the side-input topics and keeps `live` current. Not thread-safe: event loop only."""

    def __init__(
        self,
        encoder: Encoder,
        repository: Path,
        trusted: Path | None = None,
        text_fields: Sequence[str] = TEXT_FIELDS,
    ) -> None:
        """`trusted` is the folder of the keys that may sign a version; without one, signatures are not asked for.

        `text_fields` are the fields of a catalogue item that its text is joined from.
        """
        self._encoder = encoder
        self._repository = repository
        self._trusted = trusted
        self._catalogue = Catalogue(text_fields)
        self._text_fields = tuple(text_fields)
        self._partials: dict[int, Partial] = {}
        self._offsets = {"items": -1, "popularity": -1, "models": -1}
        self._uncharted: deque[Text] = deque()
        """Every text in offset order that has no place yet, superseded ones too: what stands where is then told by
        two offsets alone, whether the worker has been running or has just begun."""
        self._work = asyncio.Event()
        self._wanted = 0
        self.live: Live | None = None

    @property
    def side_inputs(self) -> SideInputs:
        """The newest applied offset of each side-input topic, and how far cold items have their place."""
        charted = self._uncharted[0].offset - 1 if self._uncharted else self._offsets["items"]
        return SideInputs(**self._offsets, charted=charted)

    def title(self, item_id: str) -> str:
        """The catalogue's title of an item, or its id."""
        item = self._catalogue.items.get(item_id)
        return item.title if item is not None and item.title else item_id

    def partial(self, partition: int) -> Partial | None:
        """The last published popularity counts of a source partition."""
        return self._partials.get(partition)

    def apply_items(self, records: Sequence[Record]) -> None:
        """Fold catalogue upserts; a tombstone makes the item unavailable."""
        for record in records:
            self._offsets["items"] = record.offset
            item = self._catalogue.apply(record.value, record.key, record.offset)
            if isinstance(item, str):
                _bad("items", record, item)
                continue
            text = self._catalogue.texts.get(item.item_id)
            if text is not None and text.offset == record.offset:
                self._uncharted.append(text)
                self._work.set()
            if self.live is not None:
                self.live.space.set_available(item.item_id, self._is_rankable(item, self.live.space))
        self._note_side_inputs()

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
            self._note_side_inputs()

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
        self._note_side_inputs()

    def _note_side_inputs(self) -> None:
        if self.live is not None:
            self.live.side_inputs = self.side_inputs

    async def start(self, default_version: int) -> None:
        """Make the first version live: the promoted one, or `default_version` where none was.

        Cold items follow in the background (`run`). Raises `BundleError`.
        """
        self._wanted = self._wanted or default_version
        bundle = await asyncio.to_thread(self._load, self._wanted)
        await self._go_live(bundle, self._space(bundle), charted=-1)

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

    async def settle(self, up_to: int | None = None) -> None:
        """Chart every cold item now, or those described up to an offset of the items topic. Raises `Unavailable`."""
        await self._chart_cold(up_to)

    async def _follow_rollout(self) -> None:
        if self.live is not None and self._wanted != self.live.version:
            await self._prepare(self._wanted)

    async def _prepare(self, version: int) -> None:
        bundle = await asyncio.to_thread(self._load, version)
        space = self._space(bundle)
        up_to = self._offsets["items"]
        cold = [text for text in self._catalogue.texts.values() if not space.is_trained(text.item_id)]
        for start in range(0, len(cold), COLD_BATCH):
            batch = cold[start : start + COLD_BATCH]
            vectors = await self._encoder.item_vectors([text.text for text in batch], version)
            space.add_cold([text.item_id for text in batch], vectors)
        await self._go_live(bundle, space, up_to)

    async def _go_live(self, bundle: Bundle, space: ItemSpace, charted: int) -> None:
        version = int(bundle.path.name)
        space.set_popularity(total(self._partials.values()))
        for item in self._catalogue.items.values():
            space.set_available(item.item_id, self._is_rankable(item, space))
        self._uncharted = deque(
            text for text in self._uncharted if text.offset > charted and not space.is_trained(text.item_id)
        )
        self.live = Live(version, bundle, space, bundle.item_index, bundle.type_index, self.side_inputs)
        self._work.set()
        metrics.MODEL_VERSION.set(version)
        metrics.COLD_ITEMS.set(space.size - space.trained)
        log.info("model live", extra={"version": version, "items": space.size})

    async def _chart_cold(self, up_to: int | None = None) -> None:
        """Give the uncharted items a place in the live version's space; a new rollout record goes first."""
        wanted = self._wanted
        while self._uncharted and self.live is not None and self._wanted == wanted:
            live, waiting = self.live, self._uncharted
            some = [text for text in islice(waiting, COLD_BATCH) if up_to is None or text.offset <= up_to]
            if not some:
                return
            batch = [text for text in some if not live.space.is_trained(text.item_id)]
            if batch:
                vectors = await self._encoder.item_vectors([text.text for text in batch], live.version)
                if self.live is not live:
                    continue
                live.space.add_cold([text.item_id for text in batch], vectors)
            for _ in some:
                waiting.popleft()
            for text in batch:
                item = self._catalogue.items[text.item_id]
                live.space.set_available(text.item_id, self._is_rankable(item, live.space))
            self._note_side_inputs()
            metrics.COLD_ITEMS.set(live.space.size - live.space.trained)

    def _load(self, version: int) -> Bundle:
        folder = self._repository / rollout.MODEL / str(version)
        return load_bundle(folder) if self._trusted is None else load_trusted(folder, self._trusted)

    def _space(self, bundle: Bundle) -> ItemSpace:
        if tuple(bundle.manifest.text_fields) != self._text_fields:
            theirs, ours = ", ".join(bundle.manifest.text_fields), ", ".join(self._text_fields)
            log.warning("texts differ", extra={"why": f"the version was trained on {theirs}, new items have {ours}"})
        return ItemSpace(bundle.item_ids, bundle.item_vectors)

    def _is_rankable(self, item: CatalogueItem, space: ItemSpace) -> bool:
        return item.available and (bool(self._catalogue.text(item)) or space.is_trained(item.item_id))


def _bad(topic: str, record: Record, why: str) -> None:
    metrics.BAD_SIDE_INPUTS.labels(topic).inc()
    log.warning("bad side input", extra={"topic": topic, "offset": record.offset, "why": why})
