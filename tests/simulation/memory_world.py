"""A small world in memory: bundles, an encoder that really scores, records of a log, a pipeline over them."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from freshet.bundle.bundle import NEEDED, Bundle, Manifest, sha256, write_manifest
from freshet.core.events import Event, encode_event
from freshet.core.features import FIRST_ITEM, TOP_K, Tensors
from freshet.core.recommendation import Recommendation, decode_recommendation
from freshet.core.state import HISTORY, UserState, decode_state
from freshet.ports import Encoded, Message, Record, Unavailable
from freshet.serving.canary import CanaryAnalysis
from freshet.serving.list_publication import ListPublication
from freshet.serving.live_versions import LiveVersions
from freshet.serving.living_lists import LivingLists
from freshet.serving.pipeline import PartitionBatch, Pipeline
from freshet.settings import Settings
from numpy.typing import NDArray

from tests.memory_ports import MemoryFeatureStore, MemoryPublisher, MemoryStateStore

NOW = 1_700_000_000_000
PARTITION = 4
DIM = 64
"""Width of the fake versions' vectors."""
ITEMS = tuple(f"film-{number}" for number in range(TOP_K + 20))


def vector(text: str, version: int) -> NDArray[np.float32]:
    """A vector of whole numbers that stands for a text in a version's space."""
    return np.random.default_rng([zlib.crc32(text.encode()), version]).integers(-2, 3, DIM).astype(np.float32)


def make_bundle(version: int = 1, items: Sequence[str] = ITEMS, prior_weight: float = 1.0) -> Bundle:
    """A bundle that is not on disk; its version is in its path, as on disk."""
    manifest = Manifest(
        name="fake",
        created="2024-01-01",
        dim=DIM,
        length=HISTORY,
        types=["view", "click", "purchase"],
        prior_weight=prior_weight,
        popularity_half_life_s=86_400.0,
        metrics={},
        environment={},
        licence="none",
        files={},
    )
    vectors = np.stack([vector(item, version) for item in items])
    lifts = np.random.default_rng(version).integers(-2, 3, (len(items) + 1, 2)).astype(np.float32)
    return Bundle(Path(str(version)), manifest, list(items), vectors, lifts)


def write_bundle(repository: Path, version: int, items: Sequence[str] = ITEMS) -> Path:
    """The same on disk, as a version of `user_encoder`; its graphs are placeholders."""
    bundle = make_bundle(version, items)
    folder = repository / "user_encoder" / str(version)
    folder.mkdir(parents=True)
    for name in NEEDED:
        (folder / name).write_bytes(b"placeholder")
    (folder / "item_ids.json").write_bytes(msgspec.json.encode(bundle.item_ids))
    np.save(folder / "item_vectors.npy", bundle.item_vectors)
    digests = {name: sha256(folder / name) for name in NEEDED}
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, files=digests))
    return folder


class FakeEncoder:
    """An `Encoder`: a user's vector is the sum of the item vectors of the history.

    `away` makes it unavailable, `broken` some versions of it, `takes` are the seconds that others need, and texts
    with a word of `stumbles` have no answer; `calls` are
    the batch sizes and versions answered.
    """

    def __init__(self, *bundles: Bundle) -> None:
        self.bundles = {int(bundle.path.name): bundle for bundle in bundles}
        self.away = False
        self.broken: set[int] = set()
        self.takes: dict[int, float] = {}
        self.stumbles: set[str] = set()
        self.calls: list[tuple[int, int]] = []
        self.texts: list[tuple[str, int]] = []

    async def encode(self, tensors: Tensors, version: int) -> Encoded:
        """Score every item of the version."""
        if self.away or version in self.broken:
            raise Unavailable("gone fishing")
        if version in self.takes:
            await asyncio.sleep(self.takes[version])
        history = tensors["item_index"]
        self.calls.append((len(history), version))
        vectors = self.bundles[version].item_vectors
        table = np.concatenate([np.zeros((FIRST_ITEM, DIM), np.float32), vectors])
        embedding = table[history].sum(axis=1)
        scores = embedding @ vectors.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_K]
        top = np.take_along_axis(scores, order, axis=1)
        return Encoded((order + FIRST_ITEM).astype(np.int32), top, embedding)

    async def item_vectors(self, texts: Sequence[str], version: int) -> NDArray[np.float32]:
        """A vector per text and version."""
        if self.away or any(word in text for text in texts for word in self.stumbles):
            raise Unavailable("gone fishing")
        self.texts += [(text, version) for text in texts]
        return np.stack([vector(text, version) for text in texts])


def event(number: int, user: str = "ann", kind: str = "view", item: str | None = None, **fields: Any) -> Event:
    """Event `number` of the world: of its own id, and on item `number` unless told otherwise."""
    item_id = None if kind.startswith("user.") else item or ITEMS[number % len(ITEMS)]
    given: dict[str, Any] = {"event_id": f"e{number}", "ts": NOW + number * 1000, **fields}
    return Event(user_id=user, type=kind, item_id=item_id, **given)


def record(offset: int, of: Event) -> Record:
    """An event as it stands at `offset` of the events topic."""
    return Record(offset, of.ts + 5, of.user_id.encode(), encode_event(of), ())


def lists(messages: Sequence[Message], topic: str = "recommendations") -> list[Recommendation]:
    """The recommendation lists among what was published, in order."""
    return [decode_recommendation(message.value) for message in messages if message.topic == topic and message.value]


def digest(value: bytes | None) -> bytes:
    """The hex digest that a dead letter carries."""
    return hashlib.sha256(value or b"").hexdigest().encode()


def clock() -> float:
    """The time in this world: it stands still."""
    return NOW / 1000 + 60


def go_live(model: LiveVersions, bundle: Bundle) -> None:
    """Make a bundle live that was never promoted, at once."""
    model._first = int(bundle.path.name)
    model._make_ready(bundle, model._space(bundle), (), {})


class MemoryWorld:
    """A pipeline and all it stands on; any part may be replaced before `start`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.bundle = make_bundle()
        self.encoder = FakeEncoder(self.bundle)
        self.store = MemoryStateStore()
        self.features = MemoryFeatureStore(list(self.settings.behaviours))
        self.publisher = MemoryPublisher()
        self.model = LiveVersions(self.encoder, self.bundle.path)
        self.offset = 0
        self.clock = clock

    async def start(self) -> MemoryWorld:
        """Make the model live and the pipeline ready."""
        go_live(self.model, self.bundle)
        self.canary = CanaryAnalysis(self.settings, self.model, self.encoder, self.publisher, "worker", clock=clock)
        self.publication = ListPublication(self.settings, self.publisher, self.clock)
        self.pipeline = Pipeline(
            self.settings,
            self.model,
            self.encoder,
            self.features,
            self.publisher,
            self.canary,
            clock=self.clock,
            publication=self.publication,
        )
        return self

    def living(self) -> LivingLists:
        """What makes standing lists again."""
        return LivingLists(
            self.settings,
            self.model,
            self.encoder,
            self.pipeline,
            self.publication,
            lambda _: self.store,
            self.clock,
        )

    async def run(self, *events: Event) -> None:
        """Process events as one run, at the next offsets."""
        records = [record(self.offset + position, event) for position, event in enumerate(events)]
        self.offset += len(events)
        await self.process(records)

    async def process(self, records: Sequence[Record]) -> None:
        """Process records as one run."""
        await self.pipeline.process([PartitionBatch(self.store, PARTITION, records)])

    def state(self, user: str = "ann") -> UserState:
        """A user's stored state."""
        return decode_state(self.store.states[user])

    def messages(self, topic: str) -> list[Message]:
        """What was published to a topic."""
        return [message for message in self.publisher.messages if message.topic == topic]
