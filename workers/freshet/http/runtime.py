"""Everything of the read service that lives in its event loop: the same side inputs and versions as a worker has."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from freshet.adapters.feast import open_feature_store
from freshet.adapters.kafka import KafkaPublisher, client_config
from freshet.adapters.kafka_python import SideInputReader
from freshet.adapters.source import SECONDS, SourceReader
from freshet.adapters.triton import TritonEncoder
from freshet.adapters.triton_address import TritonAddress
from freshet.core.catalogue import CatalogueItem
from freshet.http.events import EventSink
from freshet.http.lists import CurrentLists
from freshet.http.messages import Status, VersionStatus
from freshet.http.problems import ProblemError
from freshet.http.streams import ListStreams
from freshet.ports import Unavailable
from freshet.process.health import Health
from freshet.serving.first_version import make_live
from freshet.serving.live_versions import LiveVersions
from freshet.serving.side_inputs import POPULARITY_SECONDS
from freshet.settings import Settings

HEALTH_SECONDS = 1.0
BROKER_SECONDS = 2.0
"""How often the broker is asked for lag and dead letters."""
DELIVERY_SECONDS = 5.0
"""Events that Kafka has not taken by then are refused."""

log = logging.getLogger(__name__)


class Backlog(msgspec.Struct, frozen=True):
    """What the broker says of the workers: events that they have not committed, and dead letters."""

    lag: int | None = None
    dead_letters: int | None = None
    verdict: str = "ok"


class HttpRuntime:
    """The parts of a read service. It reads the side inputs and the published lists, and no event."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.health = Health()
        self.draining = False
        self._backlog = Backlog()

    async def start(self) -> None:
        """Open every edge and make a version live. Raises `StartError`, `Unavailable`, `ClientError`, `KafkaError`."""
        settings = self.settings
        self.features = await asyncio.to_thread(open_feature_store, settings)
        self.publisher = KafkaPublisher(settings, delivery_seconds=DELIVERY_SECONDS)
        self.encoder = TritonEncoder(TritonAddress.of(settings), settings.triton_deadline)
        self.model = LiveVersions(
            self.encoder,
            Path(settings.model_repository),
            Path(settings.trusted_keys),
            settings.text_fields,
            settings.latest_ts,
        )
        self.readers = [
            SideInputReader(settings, settings.models_topic, self.model.apply_models),
            SideInputReader(settings, settings.items_topic, self.model.apply_items),
            SideInputReader(settings, settings.popularity_topic, self.model.apply_popularity, POPULARITY_SECONDS),
        ]
        await asyncio.gather(*(reader.start() for reader in self.readers))
        await make_live(settings, self.model, self.encoder)
        self.lists = CurrentLists(settings, self.model, self.encoder, self.features)
        self.events = EventSink(settings, self.publisher)
        self.streams = ListStreams(settings, settings.http_streams)
        await asyncio.to_thread(self.streams.connect)
        self.streams.start()
        self._source = SourceReader(settings)
        self._admin = AdminClient(client_config(settings))
        await self._check()
        self._tasks = [asyncio.create_task(run()) for run in (self.model.run, self._watch, self._watch_backlog)]

    def drain(self) -> None:
        """Take no new stream, end those that are open, and say that the service is not ready."""
        self.draining = True
        self.health.renew({"drain": "the service is stopping"})
        self.streams.end_all()

    async def stop(self) -> None:
        """Close every edge."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._close_threads)
        await self.encoder.close()

    def _close_threads(self) -> None:
        self.streams.close()
        for reader in self.readers:
            reader.close()
        self.publisher.close()
        self.features.close()

    def item(self, item_id: str) -> CatalogueItem:
        """An item of the catalogue, or of the version alone. Raises `ProblemError`."""
        item = self.model.items.get(item_id)
        if item is None and item_id not in self.lists.live.space.index:
            raise ProblemError(404, f"no item {item_id!r} is in the catalogue")
        return item or CatalogueItem(item_id)

    def search(self, words: str, limit: int) -> list[CatalogueItem]:
        """The first `limit` available items whose title or id holds all of the words."""
        wanted = words.casefold().split()
        found = []
        for item in self.model.items.values():
            text = f"{item.title} {item.item_id}".casefold()
            if item.available and all(word in text for word in wanted):
                found.append(item)
                if len(found) == limit:
                    break
        return found

    async def status(self) -> Status:
        """How the stream is."""
        live, candidate = self.lists.live, self.model.candidate
        fresh = self.streams.freshness()
        steps = sorted(self.model.steps.values(), key=lambda step: -step.version)
        return Status(
            live.version,
            candidate.step.version if candidate is not None else None,
            [VersionStatus(step.version, step.stage, step.share, step.ts, step.reason) for step in steps],
            int(live.space.available.sum()),
            live.side_inputs,
            self.settings.behaviours,
            self.streams.lists,
            fresh[0] if fresh else None,
            fresh[1] if fresh else None,
            self._backlog.lag,
            self._backlog.dead_letters,
            self.health.checks(),
        )

    async def _watch(self) -> None:
        """Renew the verdicts."""
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            if not self.draining:
                await self._check()

    async def _check(self) -> None:
        """What each part says of itself. An answer does not need all of them: it says where it is degraded."""
        version = self.lists.live.version
        checks = {"encoder": "ok" if await self.encoder.ready(version) else f"version {version} is not ready at Triton"}
        try:
            await self.features.ping()
            checks["features"] = "ok"
        except Unavailable as error:
            checks["features"] = str(error)
        checks["lists"] = self.streams.verdict
        checks["kafka"] = self._backlog.verdict
        for reader in self.readers:
            if reader.failure is not None:
                checks["side_inputs"] = f"side inputs are no longer read: {reader.failure}"
        self.health.renew(checks)

    async def _watch_backlog(self) -> None:
        while True:
            self._backlog = await asyncio.to_thread(self._read_backlog)
            await asyncio.sleep(BROKER_SECONDS)

    def _read_backlog(self) -> Backlog:
        try:
            source = self._source.read()
            begun = {at: max(source.committed.get(at, -1), source.starts[at]) for at in source.ends}
            topic = self.settings.dlq_topic
            partitions = self._admin.list_topics(topic, timeout=SECONDS).topics[topic].partitions
            first, end = (
                sum(
                    answer.result().offset
                    for answer in self._admin.list_offsets(
                        {TopicPartition(topic, number): spec for number in partitions}, request_timeout=SECONDS
                    ).values()
                )
                for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
            )
        except KafkaException as error:
            return Backlog(verdict=f"Kafka at {self.settings.kafka}: {error.args[0].str()}")
        return Backlog(sum(source.ends.values()) - sum(begun.values()), end - first)
