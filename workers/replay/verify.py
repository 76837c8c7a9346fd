"""Live against replayed: whether what was published is what the code says.

Every published list is made again (`replay.recorded`) and compared slot by slot:
item, score, source, propensity, reasons. Every user's last list must be as of
their last event, and what the online store serves must be the fold's features
and the encoder's vector. Nothing is compared with a tolerance.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workers.adapters.feast import open_feature_store
from workers.adapters.logs import Window, open_log, read_topic
from workers.adapters.onnx import OnnxEncoder
from workers.core.bundle import Bundle, load_bundle
from workers.core.evaluation.results import Mismatch, Verification
from workers.core.features import behaviour_features, behaviour_row, featurise
from workers.core.recommendation import Recommendation, decode_recommendation, recommendation_id
from workers.core.rollout import MODEL
from workers.core.state import Consent, UserState
from workers.lists import MadeList
from workers.ports import Encoder, FeatureStore
from workers.replay.models import encodable
from workers.replay.recorded import Fold, Recorded, Remaker, SideInputTopics, embeddings_equal
from workers.settings import Settings

EXAMPLES = 20
"""Mismatches that are kept in full."""
PERSONAL = ("lists", "last lists", "features", "embeddings")


async def verify(settings: Settings, source: str, text_encoder: Path, feature_users: int) -> Verification:
    """Verify a live run: its events at `source`, its lists and side inputs on the settings' topics, its online store.

    Features are compared for up to `feature_users` users. Raises `LogError`,
    `BundleError`, `Unavailable`, `SettingsError`.
    """
    log = open_log(source, settings, Window(None, None, {}))
    published = [record for record in read_topic(settings, settings.recommendations_topic) if record.value is not None]
    lists = [decode_recommendation(record.value or b"") for record in published]
    folded = Fold(log, settings, lists)
    log.close()
    topics = SideInputTopics(
        list(read_topic(settings, settings.items_topic)), list(read_topic(settings, settings.popularity_topic))
    )
    repository = Path(settings.model_repository)
    encoder = OnnxEncoder(repository, text_encoder)
    try:
        verifier = Verifier(
            settings, folded, topics, lambda version: Remaker(settings, version, encoder, repository, topics)
        )
        await verifier.lists()
        verifier.last_lists()
        if feature_users:
            store = open_feature_store(settings)
            users = sorted(folded.states, key=_by_hash)[:feature_users]
            try:
                await verifier.features(store, encoder, users, repository)
            finally:
                store.close()
    finally:
        encoder.close()
    return verifier.result()


def _by_hash(user_id: str) -> bytes:
    return hashlib.blake2b(user_id.encode(), digest_size=8).digest()


class Verifier:
    """Compares what a live run left behind with its fold. `remaker` opens a version's `Remaker`."""

    def __init__(
        self,
        settings: Settings,
        folded: Fold,
        topics: SideInputTopics,
        remaker: Callable[[int], Remaker],
    ) -> None:
        self._settings = settings
        self._fold = folded
        self._topics = topics
        self._remaker = remaker
        self._compared: Counter[str] = Counter(dict.fromkeys(PERSONAL, 0))
        self._mismatches: Counter[str] = Counter(dict.fromkeys(PERSONAL, 0))
        self._examples: list[Mismatch] = []
        self._unverifiable = 0

    def result(self) -> Verification:
        """What was found so far."""
        return Verification(dict(self._compared), dict(self._mismatches), self._unverifiable, self._examples)

    async def lists(self) -> None:
        """Make every published list again. Raises `BundleError`, `Unavailable`."""
        by_version: dict[int, list[Recorded]] = {}
        for one in self._fold.recorded:
            if one.state is None:
                self._compared["lists"] += 1
                self._differs("lists", one.list, "the log has no such event of this user")
            elif not self._topics.has(one.list.side_inputs):
                self._unverifiable += 1
            else:
                by_version.setdefault(one.list.model_version, []).append(one)
        for version, recorded in sorted(by_version.items()):
            async for one, made in self._remaker(version).make(recorded):
                self._compared["lists"] += 1
                if detail := _difference(one, made):
                    self._differs("lists", one.list, detail)

    def last_lists(self) -> None:
        """Every user whom the log ends with a list for has one as of their last event."""
        newest = {(one.list.user_id, one.list.as_of.partition, one.list.as_of.offset) for one in self._fold.recorded}
        for user, state in self._fold.states.items():
            if state.consent is Consent.ERASED:
                continue
            self._compared["last lists"] += 1
            if (user, state.partition, state.offset) not in newest:
                self._note("last lists", user, state.partition, state.offset, "no list is as of the user's last event")

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
            if encodable(state):
                await self._embedding(user, state, served, encoder, repository, bundles)

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


def _difference(one: Recorded, made: MadeList) -> str:
    """What differs between a published list and the same made again; empty where nothing does."""
    published, state = one.list, one.state
    expected_id = recommendation_id(published.user_id, published.as_of, published.model_version, published.degraded)
    if published.recommendation_id != expected_id:
        return f"recommendation_id {published.recommendation_id}, should be {expected_id}"
    if published.variant != made.variant:
        return f"variant {published.variant!r}, made again {made.variant!r}"
    personal = state is not None and encodable(state) and not published.degraded
    if published.personalised != personal:
        return f"personalised {published.personalised}, should be {personal}"
    if len(published.items) != len(made.items):
        return f"{len(published.items)} items, made again {len(made.items)}"
    for slot, (shown, again) in enumerate(zip(published.items, made.items, strict=True)):
        if shown != again:
            return f"slot {slot}: published {shown}, made again {again}"
    return ""


def _served(served: Any, folded: Any) -> bool:
    """Whether the store serves what was folded; an empty list is served as None, a float as a 32-bit one."""
    if isinstance(folded, list):
        return list(served or []) == folded
    if isinstance(folded, float):
        return served is not None and abs(served - folded) <= abs(folded) * 2.0**-23
    return bool(served == folded)
