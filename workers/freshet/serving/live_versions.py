"""What lists are made with right now: model versions, the catalogue, the popularity prior.

Each is the fold of a single-partition topic (`models`, `items`, `popularity`)
that every worker reads whole, so a side input is named by the offset of the
last record applied. The three meet in an `ItemSpace` per version, prepared as a
whole before the version has a part in anything: user vectors, item table and
cold items are always of one version. Beside the live version there may be a
candidate, in shadow or in canary.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from freshet.bundle.bundle import Bundle, BundleError, load_bundle
from freshet.bundle.signature import load_trusted
from freshet.core.assignment import variant
from freshet.core.catalogue import TEXT_FIELDS, Catalogue, CatalogueItem, Text
from freshet.core.item_space import ItemSpace
from freshet.core.popularity import PopularityTable, PublishedCounts, decode_partial
from freshet.core.recommendation import MAX_SKIPPED, SideInputs
from freshet.core.rollout import MODEL, Rollout, Versions
from freshet.ports import Encoder, Record, Unavailable
from freshet.process import metrics
from freshet.serving.item_texts import TextEmbedder
from freshet.settings import Settings

RETRY_SECONDS = 1.0
CATCH_UP_SECONDS = 5.0
TICK_SECONDS = 0.05
SPARE_ITEMS = 10_000
"""Items without a count any more that popularity may hold, beside as many as have one."""

log = logging.getLogger(__name__)


_DEFAULTS = Settings()

User = TypeVar("User")


@dataclass
class ServableVersion:
    """One version, ready to rank with, and the side inputs that its space reflects."""

    version: int
    bundle: Bundle
    space: ItemSpace
    item_index: dict[str, int]
    type_index: dict[str, int]
    side_inputs: SideInputs
    unembedded: deque[Text] = field(default_factory=deque)
    """Texts of cold items, in offset order, that have no place in the space yet; superseded ones too: what stands
    where is then told by two offsets alone, whether the worker has been running or has just begun."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Items whose newest text could not be placed, with the offset of that text: they are in no list."""

    @property
    def length(self) -> int:
        """How many recent events the version reads."""
        return self.bundle.manifest.length


@dataclass(frozen=True)
class Candidate:
    """A version that is being tried beside the live one, ready to rank with."""

    step: Rollout
    ready: ServableVersion

    def has(self, user_id: str) -> bool:
        """Whether the user is of its share: by hash, so for good, and still so when the share grows."""
        shares = {"candidate": self.step.share, "live": 1.0 - self.step.share}
        return variant(user_id, f"{MODEL}/{self.step.version}", shares) == "candidate"


class LiveModel:
    """Folds the side-input topics and keeps `live` and `candidate` current. Not thread-safe: event loop only."""

    def __init__(
        self,
        encoder: Encoder,
        repository: Path,
        trusted: Path | None = None,
        text_fields: Sequence[str] = TEXT_FIELDS,
        latest_ts: Callable[[int], int] = _DEFAULTS.latest_ts,
    ) -> None:
        """`trusted` is the folder of the keys that may sign a version; without one, signatures are not asked for.

        `text_fields` are the fields of a catalogue item that its text is joined from. `latest_ts` gives the latest
        event time (ms) that the record time (ms) of popularity counts allows.
        """
        self._embedder = TextEmbedder(encoder)
        self._repository = repository
        self._trusted = trusted
        self._catalogue = Catalogue(text_fields)
        self._text_fields = tuple(text_fields)
        self._latest_ts = latest_ts
        self._popularity = PopularityTable()
        self._offsets = {"items": -1, "popularity": -1, "models": -1}
        self._work = asyncio.Event()
        self._steps = 0
        self._first = 0
        self._ready: dict[int, ServableVersion] = {}
        self._before_start: deque[Text] = deque()
        self._arriving: list[deque[Text]] = [self._before_start]
        """Where texts are kept for versions that are not ready yet."""
        self._versions = Versions()
        self.live: ServableVersion | None = None
        self.candidate: Candidate | None = None

    @property
    def side_inputs(self) -> SideInputs:
        """The newest applied offset of each side-input topic, and how far cold items have their place."""
        return self._side_inputs(self.live.unembedded, self.live.skipped) if self.live else self._side_inputs((), {})

    def _side_inputs(self, unembedded: Sequence[Text], skipped: Mapping[str, int]) -> SideInputs:
        items_embedded = unembedded[0].offset - 1 if unembedded else self._offsets["items"]
        newest = tuple(sorted(skipped.values())[-MAX_SKIPPED:])
        return SideInputs(**self._offsets, items_embedded=items_embedded, items_skipped=newest)

    @property
    def promoted(self) -> int | None:
        """The version that the topic says is live; None where it says nothing."""
        return self._versions.live

    @property
    def steps(self) -> Mapping[int, Rollout]:
        """Each version's last step."""
        return self._versions.steps

    def parts(self, users: Sequence[User], user_id: Callable[[User], str]) -> list[tuple[ServableVersion, list[User]]]:
        """Users by the version that makes their lists; each has one. Raises `RuntimeError` before the start."""
        if self.live is None:
            raise RuntimeError("no model is live: the pipeline was started too early")
        candidate = self.candidate
        if candidate is None or candidate.step.stage != "canary":
            return [(self.live, list(users))] if users else []
        chosen = [candidate.has(user_id(user)) for user in users]
        split = [
            (self.live, [user for user, canary in zip(users, chosen, strict=True) if not canary]),
            (candidate.ready, [user for user, canary in zip(users, chosen, strict=True) if canary]),
        ]
        return [(live, some) for live, some in split if some]

    def title(self, item_id: str) -> str:
        """The catalogue's title of an item, or its id."""
        item = self._catalogue.items.get(item_id)
        return item.title if item is not None and item.title else item_id

    def published_counts(self, partition: int) -> PublishedCounts | None:
        """The popularity counts of a source partition that have been read."""
        return self._popularity.published(partition)

    def apply_items(self, records: Sequence[Record]) -> None:
        """Fold catalogue upserts; a tombstone makes the item unavailable."""
        self._apply_each("items", records, self._apply_item)
        self._note_side_inputs()

    def _apply_item(self, record: Record) -> str | None:
        item = self._catalogue.apply(record.value, record.key, record.offset)
        if isinstance(item, str):
            return item
        text = self._catalogue.texts.get(item.item_id)
        if text is not None and text.offset == record.offset:
            self._describe(text)
        for live in self._ready.values():
            live.space.set_available(item.item_id, self._is_rankable(item, live.space, live.skipped))
        return None

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

    def _describe(self, text: Text) -> None:
        for texts in self._arriving:
            texts.append(text)
        for live in self._ready.values():
            if not live.space.is_trained(text.item_id):
                live.unembedded.append(text)
                self._work.set()

    def apply_popularity(self, records: Sequence[Record]) -> None:
        """Fold partial counts into the prior."""
        self._apply_each("popularity", records, self._apply_partial)
        popularity = self._popularity.popularity()
        if len(popularity.items) > SPARE_ITEMS + 2 * np.count_nonzero(popularity.counts):
            self._popularity.forget_faded()
            popularity = self._popularity.popularity()
        for live in self._ready.values():
            live.space.set_popularity(popularity)
        self._note_side_inputs()

    def _apply_partial(self, record: Record) -> str | None:
        partial = decode_partial(record.value or b"", self._latest_ts(record.timestamp))
        if isinstance(partial, str):
            return partial
        applied = self._popularity.apply(partial)
        return applied if isinstance(applied, str) else None

    def apply_models(self, records: Sequence[Record]) -> None:
        """Fold rollout records; a version that is not ready has no part in anything until it is."""
        self._apply_each("models", records, self._apply_step)
        self._take_effect()
        self._work.set()
        self._note_side_inputs()

    def _apply_step(self, record: Record) -> str | None:
        applied = self._versions.apply(record.value, record.key)
        self._steps += isinstance(applied, Rollout)
        return applied if isinstance(applied, str) else None

    def _note_side_inputs(self) -> None:
        for live in self._ready.values():
            live.side_inputs = self._side_inputs(live.unembedded, live.skipped)

    async def start(self, first: int | None = None) -> None:
        """Make the first version live: the one promoted last that can be loaded, or else `first`.

        A promoted version that cannot be loaded follows once it can. A candidate has its part from the start too,
        unless it cannot be loaded. Cold items follow in the background (`run`). Raises `BundleError`.
        """
        for version in [*self._versions.promoted, first]:
            if version is not None and self.live is None:
                self._first = version
                await self._load_first(version, is_last=version == first)
        if self.live is None:
            raise BundleError(f"none of the promoted versions {self._versions.promoted} can be loaded")
        candidate = self._versions.candidate
        if candidate is not None and candidate.version not in self._ready:
            await self._load_first(candidate.version, is_last=False)
        self._arriving = [texts for texts in self._arriving if texts is not self._before_start]
        self._before_start = deque()

    async def _load_first(self, version: int, *, is_last: bool) -> None:
        """Make a version ready, or say why it waits. Raises `BundleError` where no other version could be live."""
        try:
            bundle = await asyncio.to_thread(self._load, version)
        except BundleError as error:
            if is_last:
                raise
            log.error("a version waits", extra={"version": version, "why": str(error)})  # noqa: TRY400 - it says why
            self._work.set()
        else:
            self._make_ready(bundle, self._space(bundle), self._before_start, {})

    async def caught_up(self) -> None:
        """Wait, not for ever, until every version that has a part by the records is ready.

        Before users are taken over from a worker that may have been ahead: their version must not go back.
        """
        for _ in range(int(CATCH_UP_SECONDS / TICK_SECONDS)):
            if all(version in self._ready for version in self._wanted()):
                return
            await asyncio.sleep(TICK_SECONDS)

    async def run(self) -> None:
        """Chart cold items and prepare versions as they come, for ever."""
        while True:
            await self._work.wait()
            self._work.clear()
            waiting = False
            for step in (self._follow_rollout, self._embed_cold):
                try:
                    await step()
                except (Unavailable, BundleError) as error:
                    log.warning("side inputs wait", extra={"why": str(error)})
                    waiting = True
            if waiting:
                await asyncio.sleep(RETRY_SECONDS)
                self._work.set()

    async def settle(self, up_to: int | None = None, without: Collection[int] = ()) -> None:
        """Chart every cold item now, or those described up to an offset of the items topic. Raises `Unavailable`.

        Texts at the offsets `without` are skipped, as if the encoder could not place them.
        """
        await self._embed_cold(up_to, without)

    def _wanted(self) -> list[int]:
        """The versions that have a part, the live one first."""
        candidate = self._versions.candidate
        wanted = [self._versions.live or self._first, candidate.version if candidate is not None else 0]
        return [version for version in dict.fromkeys(wanted) if version]

    async def _follow_rollout(self) -> None:
        """Prepare what is wanted; one that cannot be does not keep the other waiting."""
        failure: Unavailable | BundleError | None = None
        for version in self._wanted():
            if version not in self._ready:
                try:
                    await self._prepare(version)
                except (Unavailable, BundleError) as error:
                    failure = error
        if failure is not None:
            raise failure

    async def _prepare(self, version: int) -> None:
        bundle = await asyncio.to_thread(self._load, version)
        space = await asyncio.to_thread(self._space, bundle)
        cold = [text for text in self._catalogue.texts.values() if not space.is_trained(text.item_id)]
        arriving: deque[Text] = deque()
        done = 0
        self._arriving.append(arriving)
        skipped: dict[str, int] = {}
        try:
            while batch := self._embedder.batch(cold[done:]):
                _place(space, skipped, await self._embedder.vectors(batch, version))
                done += len(batch)
        finally:
            self._arriving = [texts for texts in self._arriving if texts is not arriving]
        self._make_ready(bundle, space, arriving, skipped)

    def _make_ready(self, bundle: Bundle, space: ItemSpace, texts: Iterable[Text], skipped: dict[str, int]) -> None:
        """Let a version have its part; `texts` are those that have no place in its space yet."""
        version = int(bundle.path.name)
        space.set_popularity(self._popularity.popularity())
        for item in self._catalogue.items.values():
            space.set_available(item.item_id, self._is_rankable(item, space, skipped))
        unembedded = deque(text for text in texts if not space.is_trained(text.item_id))
        side_inputs = self._side_inputs(unembedded, skipped)
        self._ready[version] = ServableVersion(
            version, bundle, space, bundle.item_index, bundle.type_index, side_inputs, unembedded, skipped
        )
        self._work.set()
        self._take_effect()

    def _take_effect(self) -> None:
        """Give the versions that are ready the parts that the records say; the live one stays until another is."""
        wanted = self._wanted()
        live = self._ready.get(wanted[0]) if wanted else None
        if live is None and self.live is None:
            live = self._ready.get(self._first)
        if live is not None and live is not self.live:
            self.live = live
            metrics.MODEL_VERSION.set(live.version)
            metrics.COLD_ITEMS.set(live.space.size - live.space.trained)
            log.info("model live", extra={"version": live.version, "items": live.space.size})
        step = self._versions.candidate
        ready = self._ready.get(step.version) if step is not None else None
        if step is None or ready is None or ready is self.live:
            self.candidate = None
        elif self.candidate is None or self.candidate.step is not step or self.candidate.ready is not ready:
            self.candidate = Candidate(step, ready)
        metrics.CANDIDATE_VERSION.set(self.candidate.step.version if self.candidate is not None else 0)
        self._ready = {v: one for v, one in self._ready.items() if v in wanted or one is self.live}

    async def _embed_cold(self, up_to: int | None = None, without: Collection[int] = ()) -> None:
        """Give the unembedded items a place in each version's space; a new step of a version goes first."""
        steps = self._steps
        for live in list(self._ready.values()):
            while live.unembedded and self._ready.get(live.version) is live and self._steps == steps:
                batch = self._embedder.batch(text for text in live.unembedded if up_to is None or text.offset <= up_to)
                if not batch:
                    break
                wanted = [text for text in batch if text.offset not in without]
                vectors = await self._embedder.vectors(wanted, live.version) if wanted else {}
                for _ in batch:
                    live.unembedded.popleft()
                _place(live.space, live.skipped, {text: vectors.get(text) for text in batch})
                for text in batch:
                    item = self._catalogue.items[text.item_id]
                    live.space.set_available(text.item_id, self._is_rankable(item, live.space, live.skipped))
                self._note_side_inputs()
                if live is self.live:
                    metrics.COLD_ITEMS.set(live.space.size - live.space.trained)

    def _load(self, version: int) -> Bundle:
        folder = self._repository / MODEL / str(version)
        return load_bundle(folder) if self._trusted is None else load_trusted(folder, self._trusted)

    def _space(self, bundle: Bundle) -> ItemSpace:
        if tuple(bundle.manifest.text_fields) != self._text_fields:
            theirs, ours = ", ".join(bundle.manifest.text_fields), ", ".join(self._text_fields)
            log.warning("texts differ", extra={"why": f"the version was trained on {theirs}, new items have {ours}"})
        return ItemSpace(bundle.item_ids, bundle.item_vectors, bundle.item_lifts)

    def _is_rankable(self, item: CatalogueItem, space: ItemSpace, skipped: Mapping[str, int]) -> bool:
        placed = bool(self._catalogue.text(item)) and item.item_id not in skipped
        return item.available and (placed or space.is_trained(item.item_id))


def _place(space: ItemSpace, skipped: dict[str, int], vectors: Mapping[Text, NDArray[np.float32] | None]) -> None:
    """Give items the places of their texts, in the order of the texts; without a vector an item is skipped."""
    placed: dict[str, NDArray[np.float32]] = {}
    for text, vector in vectors.items():
        if vector is None:
            skipped[text.item_id] = text.offset
        else:
            skipped.pop(text.item_id, None)
            placed[text.item_id] = vector
    if placed:
        space.add_cold(list(placed), np.stack(list(placed.values())))
