"""Compare what a live run published with what the code says.

Every published list is made again (`replay.rebuild`) and compared slot by slot: item, score, source, propensity,
reasons. Every user's newest list must be as of their last event. An erased user's newest record must be a tombstone.
The online store must serve the fold's features and the encoder's vector. Nothing is compared with a tolerance.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from freshet.adapters.feast import open_feature_store
from freshet.bundle.bundle import Bundle, load_bundle
from freshet.core.evaluation.results import Mismatch, Verification
from freshet.core.features import behaviour_features, behaviour_row, featurise
from freshet.core.recommendation import OWN_CAUSES, Recommendation, decode_recommendation, recommendation_id
from freshet.core.rollout import MODEL
from freshet.core.state import Consent, UserState
from freshet.logs.kafka import behind
from freshet.logs.source import open_log, read_topic
from freshet.ports import Encoder, FeatureStore, LogError, Record
from freshet.replay.models import encodable
from freshet.replay.rebuild import FoldedLog, PublishedList, Rebuilder, SideInputTopics, embeddings_equal
from freshet.serving.list_maker import MadeList
from freshet.settings import Settings

EXAMPLES = 20
"""Mismatches that are kept in full."""
STANDSTILL_SECONDS = 10.0
"""How long workers may commit nothing before they are taken to have stopped."""
PERSONAL = ("lists", "last lists", "features", "embeddings")


async def verify(settings: Settings, source: str, encoder: Encoder, feature_users: int) -> Verification:
    """Verify a live run. Its events are at `source`, its lists and side inputs on the settings' topics.

    Features are compared for up to `feature_users` users. Raises `LogError`, `BundleError`, `Unavailable`,
    `SettingsError`.
    """
    await _idle(settings)
    with closing(open_log(source, settings)) as log:
        starts = log.starts
        if starts is None:
            raise LogError(
                f"{source} has no offsets: `freshet verify` reads `kafka` or the archive of the events topic"
            )
        published = Published(read_topic(settings, settings.recommendations_topic))
        folded = FoldedLog(log, settings, published.lists)
    for partition, first in starts.items():
        if first:
            raise LogError(
                f"{source}, partition {partition}, begins at offset {first}: no state can be folded from its "
                "beginning, verify against an archive that has it"
            )
    topics = SideInputTopics(
        list(read_topic(settings, settings.items_topic)), list(read_topic(settings, settings.popularity_topic))
    )
    repository = Path(settings.model_repository)
    verifier = Verifier(
        settings, folded, published, topics, lambda version: Rebuilder(settings, version, encoder, repository, topics)
    )
    await verifier.lists()
    verifier.last_lists()
    if feature_users:
        with closing(open_feature_store(settings)) as store:
            users = sorted(folded.states, key=_by_hash)[:feature_users]
            await verifier.features(store, encoder, users, repository)
    return verifier.result()


async def _idle(settings: Settings) -> None:
    """Wait until the workers have come to the end of the log. Raises `LogError` where they stand still before it."""
    fewest, since = behind(settings, settings.events_topic), time.monotonic()
    while fewest:
        if time.monotonic() - since > STANDSTILL_SECONDS:
            raise LogError(
                f"group {settings.group} stands {fewest:,} records before the end of {settings.events_topic}: "
                "verify once its workers have come there"
            )
        await asyncio.sleep(0.2)
        if (left := behind(settings, settings.events_topic)) < fewest:
            fewest, since = left, time.monotonic()


class Published:
    """The recommendations topic: all lists, and each user's newest list (None for a tombstone).

    `degraded` are the users whose newest list of their own event or visit was made without the encoder: no vector of
    that state was stored. A list that was made again since stores none either.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.lists: list[Recommendation] = []
        self.newest: dict[str, Recommendation | None] = {}
        self.degraded: set[str] = set()
        self.unreadable: list[tuple[Record, str]] = []
        for record in records:
            made = None
            if record.value is not None:
                decoded = decode_recommendation(record.value)
                if isinstance(decoded, str):
                    self.unreadable.append((record, decoded))
                    continue
                self.lists.append(decoded)
                made = decoded
                if made.cause in OWN_CAUSES:
                    (self.degraded.add if made.degraded else self.degraded.discard)(made.user_id)
            self.newest[(record.key or b"").decode(errors="replace")] = made


def _by_hash(user_id: str) -> bytes:
    return hashlib.blake2b(user_id.encode(), digest_size=8).digest()


class Verifier:
    """Compares what a live run left behind with the fold of its log. `rebuilder` opens a version's `Rebuilder`."""

    def __init__(
        self,
        settings: Settings,
        folded: FoldedLog,
        published: Published,
        topics: SideInputTopics,
        rebuilder: Callable[[int], Rebuilder],
    ) -> None:
        self._settings = settings
        self._fold = folded
        self._published = published
        self._topics = topics
        self._rebuilder = rebuilder
        self._compared: Counter[str] = Counter(dict.fromkeys(PERSONAL, 0))
        self._mismatches: Counter[str] = Counter(dict.fromkeys(PERSONAL, 0))
        self._examples: list[Mismatch] = []
        self._unverifiable = 0

    def result(self) -> Verification:
        """What was found so far."""
        return Verification(dict(self._compared), dict(self._mismatches), self._unverifiable, self._examples)

    async def lists(self) -> None:
        """Make every published list again. Raises `BundleError`, `Unavailable`."""
        for record, why in self._published.unreadable:
            self._compared["lists"] += 1
            user = (record.key or b"").decode(errors="replace")
            self._note("lists", user, -1, -1, f"record {record.offset} of the topic is {why}")
        by_version: dict[int, list[PublishedList]] = {}
        for published in self._fold.recorded:
            if published.state is None and published.list.as_of.offset <= self._fold.erased.get(
                published.list.user_id, -1
            ):
                self._unverifiable += 1  # an archive holds nothing of them any more
            elif published.state is None:
                self._compared["lists"] += 1
                self._differs("lists", published.list, "the log has no such event of this user")
            elif not self._topics.has(published.list.side_inputs):
                self._unverifiable += 1
            else:
                by_version.setdefault(published.list.model_version, []).append(published)
        for version, recorded in sorted(by_version.items()):
            async for published, made in self._rebuilder(version).make(recorded):
                self._compared["lists"] += 1
                if detail := _difference(published, made):
                    self._differs("lists", published.list, detail)

    def last_lists(self) -> None:
        """Every user's newest list is as of their last event; an erased user has none."""
        for user, state in self._fold.states.items():
            self._compared["last lists"] += 1
            newest = self._published.newest.get(user)
            if state.consent is Consent.ERASED:
                if newest is not None:
                    self._note("last lists", user, state.partition, state.offset, "erased, and still has a list")
            elif newest is None:
                self._note("last lists", user, state.partition, state.offset, "has no list")
            elif (newest.as_of.partition, newest.as_of.offset) != (state.partition, state.offset):
                detail = f"the newest list is as of {newest.as_of.partition}:{newest.as_of.offset}"
                self._note("last lists", user, state.partition, state.offset, detail)

    async def features(self, store: FeatureStore, encoder: Encoder, users: Sequence[str], repository: Path) -> None:
        """What the store serves for these users."""
        bundles: dict[int, Bundle] = {}
        names = [feature.name for feature in behaviour_features(self._settings.behaviours)]
        for user in users:
            state = self._fold.states[user]
            served = await store.read(user)
            expected: dict[str, Any] = dict.fromkeys(names)
            if not state.consent:
                expected = dict(zip(names, behaviour_row(state, self._settings.behaviours), strict=True))
            self._compared["features"] += 1
            wrong = [name for name, value in expected.items() if not _served(served.get(name), value)]
            if wrong:
                detail = f"{wrong[0]}: served {served.get(wrong[0])!r}, folded {expected[wrong[0]]!r}"
                self._note("features", user, state.partition, state.offset, detail)
            if encodable(state) and (encoded := self._last_encoded(user, state)) is not None:
                await self._embedding(user, encoded, served, encoder, repository, bundles)

    def _last_encoded(self, user: str, state: UserState) -> UserState | None:
        """The state that the user's vector is of: the last one, or the one before the encoder was away."""
        if user not in self._published.degraded:
            return state
        known = [
            published.state
            for published in self._fold.recorded
            if published.list.user_id == user and _stored_a_vector(published.list)
        ]
        return max(filter(None, known), key=_offset, default=None)

    async def _embedding(
        self,
        user: str,
        state: UserState,
        served: dict[str, Any],
        encoder: Encoder,
        repository: Path,
        bundles: dict[int, Bundle],
    ) -> None:
        self._compared["embeddings"] += 1
        version = served.get("model_version")
        if version is None:
            self._note("embeddings", user, state.partition, state.offset, "the store has none")
            return
        bundle = bundles.get(version)
        if bundle is None:
            bundle = bundles[version] = load_bundle(repository / MODEL / str(version))
        tensors = featurise([state], bundle.item_index, bundle.type_index, bundle.manifest.length)
        encoded = await encoder.encode(tensors, version)
        if not embeddings_equal(served.get("embedding"), encoded.embedding[0]):
            self._note("embeddings", user, state.partition, state.offset, f"not what version {version} gives")

    def _differs(self, kind: str, made: Recommendation, detail: str) -> None:
        self._note(kind, made.user_id, made.as_of.partition, made.as_of.offset, detail)

    def _note(self, kind: str, user: str, partition: int, offset: int, detail: str) -> None:
        self._mismatches[kind] += 1
        if len(self._examples) < EXAMPLES:
            self._examples.append(Mismatch(kind, user, partition, offset, detail))


def _stored_a_vector(made: Recommendation) -> bool:
    return made.personalised and not made.degraded and made.cause in OWN_CAUSES


def _offset(state: UserState) -> int:
    return state.offset


def _difference(published_list: PublishedList, made: MadeList) -> str:
    """Say how a published list differs from the same list made again. The answer is empty if nothing differs."""
    published, state = published_list.list, published_list.state
    expected_id = recommendation_id(
        published.user_id,
        published.as_of,
        published.model_version,
        published.degraded,
        published.cause,
        published.side_inputs,
    )
    if published.recommendation_id != expected_id:
        return f"recommendation_id {published.recommendation_id}, should be {expected_id}"
    if published.variant != made.variant:
        return f"variant {published.variant!r}, made again {made.variant!r}"
    personal = state is not None and encodable(state)
    if published.personalised != personal:
        return f"personalised {published.personalised}, should be {personal}"
    if len(published.items) != len(made.items):
        return f"{len(published.items)} items, made again {len(made.items)}"
    for slot, (shown, again) in enumerate(zip(published.items, made.items, strict=True)):
        if shown != again:
            return f"slot {slot}: published {shown}, made again {again}"
    return ""


def _served(served: Any, folded: Any) -> bool:
    """Say whether the store serves what was folded. The store serves an empty list as None and a float as 32 bits."""
    if isinstance(folded, list):
        return list(served or []) == folded
    if isinstance(folded, float):
        return served is not None and abs(served - folded) <= abs(folded) * 2.0**-23
    return bool(served == folded)
