"""The versions that make lists right now: the live version, and a candidate in shadow or in canary.

A version is made ready as a whole before it has a part in anything: its user vectors, its item table and the places
of cold items are always of one version. The side inputs (`serving.side_inputs`) are laid over the `ItemSpace` of each
version that is ready.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from freshet.bundle.bundle import Bundle, BundleError, load_bundle
from freshet.bundle.signature import load_trusted
from freshet.bundle.text_encoder import require_served
from freshet.core.catalogue import TEXT_FIELDS, CatalogueItem, Text
from freshet.core.item_space import ItemSpace
from freshet.core.popularity import PublishedCounts
from freshet.core.recommendation import SideInputs
from freshet.core.rollout import MODEL, Rollout
from freshet.ports import Encoder, Record, Unavailable
from freshet.process import metrics
from freshet.serving.item_texts import TextEmbedder
from freshet.serving.servable_version import Candidate, ServableVersion, place_items
from freshet.serving.side_inputs import FoldedSideInputs
from freshet.settings import Settings

RETRY_SECONDS = 1.0
CATCH_UP_SECONDS = 5.0
TICK_SECONDS = 0.05

log = logging.getLogger(__name__)


_DEFAULTS = Settings()

User = TypeVar("User")


class LiveVersions:
    """Keeps `live` and `candidate` as the side-input topics say. Not thread-safe: event loop only."""

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
        self._text_fields = tuple(text_fields)
        self._inputs = FoldedSideInputs(text_fields, latest_ts)
        self._work = asyncio.Event()
        self._first = 0
        self._ready: dict[int, ServableVersion] = {}
        self._before_start: deque[Text] = deque()
        self._arriving: list[deque[Text]] = [self._before_start]
        """Where texts are kept for versions that are not ready yet."""
        self.live: ServableVersion | None = None
        self.candidate: Candidate | None = None

    @property
    def current(self) -> ServableVersion:
        """The live version. Raises `RuntimeError` before the start."""
        if self.live is None:
            raise RuntimeError("no model is live: the pipeline was started too early")
        return self.live

    @property
    def side_inputs(self) -> SideInputs:
        """The newest applied offset of each side-input topic, and how far cold items have their place."""
        return self._inputs.named(self.live.unembedded, self.live.skipped) if self.live else self._inputs.named((), {})

    @property
    def promoted(self) -> int | None:
        """The version that the topic says is live; None where it says nothing."""
        return self._inputs.versions.live

    @property
    def steps(self) -> Mapping[int, Rollout]:
        """Each version's last step."""
        return self._inputs.versions.steps

    def parts(self, users: Sequence[User], user_id: Callable[[User], str]) -> list[tuple[ServableVersion, list[User]]]:
        """Users by the version that makes their lists; each has one. Raises `RuntimeError` before the start."""
        live, candidate = self.current, self.candidate
        if candidate is None or candidate.step.stage != "canary":
            return [(live, list(users))] if users else []
        chosen = [candidate.has(user_id(user)) for user in users]
        split = [
            (live, [user for user, canary in zip(users, chosen, strict=True) if not canary]),
            (candidate.ready, [user for user, canary in zip(users, chosen, strict=True) if canary]),
        ]
        return [(version, its_users) for version, its_users in split if its_users]

    @property
    def items(self) -> Mapping[str, CatalogueItem]:
        """The catalogue by item id."""
        return self._inputs.catalogue.items

    def title(self, item_id: str) -> str:
        """The catalogue's title of an item, or its id."""
        return self._inputs.title(item_id)

    def published_counts(self, partition: int) -> PublishedCounts | None:
        """The popularity counts of a source partition that have been read."""
        return self._inputs.published_counts(partition)

    def apply_items(self, records: Sequence[Record]) -> None:
        """Fold catalogue upserts; a tombstone makes the item unavailable."""
        self._inputs.apply_items(records, self._change_item)
        self._note_side_inputs()

    def _change_item(self, item: CatalogueItem, text: Text | None) -> None:
        if text is not None:
            self._describe(text)
        for ready in self._ready.values():
            ready.space.set_available(item.item_id, self._inputs.is_rankable(item, ready.space, ready.skipped))

    def _describe(self, text: Text) -> None:
        for texts in self._arriving:
            texts.append(text)
        for ready in self._ready.values():
            if not ready.space.is_trained(text.item_id):
                ready.unembedded.append(text)
                self._work.set()

    def apply_popularity(self, records: Sequence[Record]) -> None:
        """Fold partial counts into the prior."""
        self._inputs.apply_popularity(records)
        popularity = self._inputs.popularity()
        for ready in self._ready.values():
            ready.space.set_popularity(popularity)
        self._note_side_inputs()

    def apply_models(self, records: Sequence[Record]) -> None:
        """Fold rollout records; a version that is not ready has no part in anything until it is."""
        self._inputs.apply_models(records)
        self._take_effect()
        self._work.set()
        self._note_side_inputs()

    def _note_side_inputs(self) -> None:
        for ready in self._ready.values():
            ready.side_inputs = self._inputs.named(ready.unembedded, ready.skipped)

    async def start(self, first: int | None = None) -> ServableVersion:
        """Make the first version live, and return it: the one promoted last that can be loaded, or else `first`.

        A promoted version that cannot be loaded follows once it can. A candidate has its part from the start too,
        unless it cannot be loaded. Cold items follow in the background (`run`). Raises `BundleError`.
        """
        for version in [*self._inputs.versions.promoted, first]:
            if version is not None and self.live is None:
                self._first = version
                await self._load_first(version, is_last=version == first)
        if self.live is None:
            raise BundleError(f"none of the promoted versions {self._inputs.versions.promoted} can be loaded")
        candidate = self._inputs.versions.candidate
        if candidate is not None and candidate.version not in self._ready:
            await self._load_first(candidate.version, is_last=False)
        self._arriving = [texts for texts in self._arriving if texts is not self._before_start]
        self._before_start = deque()
        return self.current

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
        """Give cold items their place and prepare versions as they come, for ever."""
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
        """Give every cold item its place now, or those described up to an offset of the items topic.

        Texts at the offsets `without` are skipped, as if the encoder could not place them. Raises `Unavailable`.
        """
        await self._embed_cold(up_to, without)

    def _wanted(self) -> list[int]:
        """The versions that have a part, the live one first."""
        candidate = self._inputs.versions.candidate
        wanted = [self._inputs.versions.live or self._first, candidate.version if candidate is not None else 0]
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
        cold = [text for text in self._inputs.catalogue.texts.values() if not space.is_trained(text.item_id)]
        arriving: deque[Text] = deque()
        done = 0
        self._arriving.append(arriving)
        skipped: dict[str, int] = {}
        try:
            while batch := self._embedder.batch(cold[done:]):
                place_items(space, skipped, await self._embedder.vectors(batch, version))
                done += len(batch)
        finally:
            self._arriving = [texts for texts in self._arriving if texts is not arriving]
        self._make_ready(bundle, space, arriving, skipped)

    def _make_ready(self, bundle: Bundle, space: ItemSpace, texts: Iterable[Text], skipped: dict[str, int]) -> None:
        """Let a version have its part; `texts` are those that have no place in its space yet."""
        version = int(bundle.path.name)
        space.set_popularity(self._inputs.popularity())
        for item in self._inputs.catalogue.items.values():
            space.set_available(item.item_id, self._inputs.is_rankable(item, space, skipped))
        unembedded = deque(text for text in texts if not space.is_trained(text.item_id))
        side_inputs = self._inputs.named(unembedded, skipped)
        self._ready[version] = ServableVersion(
            version, bundle, space, bundle.item_index, bundle.type_index, side_inputs, unembedded, skipped
        )
        self._work.set()
        self._take_effect()

    def _take_effect(self) -> None:
        """Make a prepared version live or candidate, as the rollout records say.

        The current live version keeps serving until its successor is ready.
        """
        wanted = self._wanted()
        live = self._ready.get(wanted[0]) if wanted else None
        if live is None and self.live is None:
            live = self._ready.get(self._first)
        if live is not None and live is not self.live:
            self.live = live
            metrics.MODEL_VERSION.set(live.version)
            metrics.COLD_ITEMS.set(live.space.size - live.space.trained)
            log.info("model live", extra={"version": live.version, "items": live.space.size})
        step = self._inputs.versions.candidate
        ready = self._ready.get(step.version) if step is not None else None
        if step is None or ready is None or ready is self.live:
            self.candidate = None
        elif self.candidate is None or self.candidate.step is not step or self.candidate.ready is not ready:
            self.candidate = Candidate(step, ready)
        metrics.CANDIDATE_VERSION.set(self.candidate.step.version if self.candidate is not None else 0)
        self._ready = {
            version: ready for version, ready in self._ready.items() if version in wanted or ready is self.live
        }

    async def _embed_cold(self, up_to: int | None = None, without: Collection[int] = ()) -> None:
        """Give the unembedded items a place in each version's space; a new step of a version goes first."""
        steps = self._inputs.steps_applied
        for live in list(self._ready.values()):
            while live.unembedded and self._ready.get(live.version) is live and self._inputs.steps_applied == steps:
                batch = self._embedder.batch(text for text in live.unembedded if up_to is None or text.offset <= up_to)
                if not batch:
                    break
                wanted = [text for text in batch if text.offset not in without]
                vectors = await self._embedder.vectors(wanted, live.version) if wanted else {}
                for _ in batch:
                    live.unembedded.popleft()
                place_items(live.space, live.skipped, {text: vectors.get(text) for text in batch})
                for text in batch:
                    item = self._inputs.catalogue.items[text.item_id]
                    live.space.set_available(text.item_id, self._inputs.is_rankable(item, live.space, live.skipped))
                self._note_side_inputs()
                if live is self.live:
                    metrics.COLD_ITEMS.set(live.space.size - live.space.trained)

    def _load(self, version: int) -> Bundle:
        folder = self._repository / MODEL / str(version)
        bundle = load_bundle(folder) if self._trusted is None else load_trusted(folder, self._trusted)
        require_served(bundle, self._repository)
        return bundle

    def _space(self, bundle: Bundle) -> ItemSpace:
        if tuple(bundle.manifest.text_fields) != self._text_fields:
            theirs, ours = ", ".join(bundle.manifest.text_fields), ", ".join(self._text_fields)
            log.warning("texts differ", extra={"why": f"the version was trained on {theirs}, new items have {ours}"})
        return ItemSpace(bundle.item_ids, bundle.item_vectors, bundle.item_lifts)
