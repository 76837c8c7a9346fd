"""What a worker counts for its partitions: popularity by distinct users, published as partial counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

from freshet.core.popularity import Partial, PartialPopularity, encode_partial
from freshet.ports import DeliveryError, Message, Publisher
from freshet.serving.dead_letters import publish_or_tell
from freshet.settings import Settings

INTERVAL_SECONDS = 2.0
"""Seconds between two publications of a partition's counts."""

log = logging.getLogger(__name__)


class PopularityCounts:
    """The counts of the partitions that a worker owns.

    A partition's counts go on from the newest that are known: those on the popularity topic, which `published` looks
    up, or those that this worker put aside when it gave the partition up.
    """

    def __init__(self, settings: Settings, published: Callable[[int], Partial | None], publisher: Publisher) -> None:
        self._topic = settings.popularity_topic
        self._half_life = settings.popularity_half_life
        self._published = published
        self._publisher = publisher
        self._counts: dict[int, PartialPopularity] = {}
        self._due: dict[int, float] = {}
        self._released: dict[int, Partial] = {}

    def __contains__(self, partition: int) -> bool:
        """Whether the partition is being counted."""
        return partition in self._counts

    def of(self, partition: int) -> PartialPopularity:
        """The counts of a partition."""
        counts = self._counts.get(partition)
        if counts is None:
            known = (self._published(partition), self._released.get(partition))
            newest = max((partial for partial in known if partial is not None), key=_offset, default=None)
            counts = self._counts[partition] = PartialPopularity(partition, self._half_life, newest)
        return counts

    async def publish_due(self, partitions: Sequence[int]) -> None:
        """Publish the counts of these partitions where they are due: at the first batch and then every interval."""
        now = time.monotonic()
        await self._publish([partition for partition in partitions if now >= self._due.get(partition, 0.0)])

    async def release(self, partitions: Collection[int] | None = None) -> None:
        """Publish and put aside the counts of partitions that another worker may own next: None for all."""
        held = [partition for partition in self._counts if partitions is None or partition in partitions]
        self._released |= {partition: self._counts[partition].snapshot() for partition in held}
        try:
            await self._publish(held)
        except DeliveryError as error:
            log.warning("popularity not handed over", extra={"why": str(error), "partitions": held})
        for partition in held:
            self._counts.pop(partition, None)
            self._due.pop(partition, None)

    async def _publish(self, partitions: Sequence[int]) -> None:
        due = time.monotonic() + INTERVAL_SECONDS
        messages = []
        for partition in partitions:
            counts = self._counts[partition]
            if counts.offset >= 0:
                self._due[partition] = due
                value = encode_partial(counts.snapshot())
                messages.append(Message(self._topic, str(partition).encode(), value))
        if messages:
            await publish_or_tell(self._publisher, messages)


def _offset(partial: Partial) -> int:
    return partial.offset
