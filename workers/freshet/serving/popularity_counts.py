"""What a worker counts for its partitions: popularity by distinct users, published as what changed."""

from __future__ import annotations

from collections.abc import Callable, Collection

from freshet.core.popularity import PartialPopularity, PublishedCounts, encode_partial
from freshet.ports import Message, Publisher
from freshet.serving.dead_letters import publish_or_tell
from freshet.settings import Settings


class PopularityCounts:
    """The counts of the partitions that a worker owns.

    A partition's counts go on from the newest that are known: those on the popularity topic, which `published` looks
    up, or those that this worker put aside when it gave the partition up. What a batch changes is published before its
    states are written. So each first touch counts once: after a crash in between it comes again, and its offset is
    known to be counted.
    """

    def __init__(
        self, settings: Settings, published: Callable[[int], PublishedCounts | None], publisher: Publisher
    ) -> None:
        self._topic = settings.popularity_topic
        self._half_life = settings.popularity_half_life
        self._published = published
        self._publisher = publisher
        self._counts: dict[int, PartialPopularity] = {}
        self._released: dict[int, PartialPopularity] = {}

    def __contains__(self, partition: int) -> bool:
        """Whether the partition is being counted."""
        return partition in self._counts

    def of(self, partition: int) -> PartialPopularity:
        """The counts of a partition."""
        counts = self._counts.get(partition)
        if counts is None:
            counts, published = self._released.pop(partition, None), self._published(partition)
            if counts is None or (published is not None and published.offset > counts.offset):
                counts = PartialPopularity(partition, self._half_life, published)
            self._counts[partition] = counts
        return counts

    async def publish(self, partition: int) -> None:
        """Publish what has changed of a partition. Raises `DeliveryError`."""
        messages = [
            Message(self._topic, partial.key, encode_partial(partial)) for partial in self._counts[partition].changes()
        ]
        if messages:
            await publish_or_tell(self._publisher, messages)

    def release(self, partitions: Collection[int]) -> None:
        """Put aside the counts of partitions that another worker may own next."""
        for partition in partitions:
            if partition in self._counts:
                self._released[partition] = self._counts.pop(partition)
