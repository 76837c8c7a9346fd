"""What happens to the events topic while a worker runs: the broker away, partitions added, records lost, made again."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException

from freshet.adapters.source import Source, SourceReader, source_faults
from freshet.errors import FreshetError
from freshet.files import write_whole
from freshet.process import metrics
from freshet.settings import Settings

log = logging.getLogger(__name__)


class OtherTopicError(FreshetError):
    """The events topic is not the one that the states are of; the message says what to do."""


class SourceWatch:
    """Asks the broker, in `look`, what has become of the topic that a worker reads."""

    def __init__(self, settings: Settings, partitions: int) -> None:
        """`partitions` are those that the states are kept in."""
        self._settings = settings
        self._partitions = partitions
        self._reader = SourceReader(settings)
        self._told: dict[int, int] = {}

    def look(self, assigned: Collection[int] | None) -> dict[str, str]:
        """Ask once, and return a verdict for each check of `/readyz`.

        Records that were lost are counted, of `assigned` partitions (None: of all).
        Raises `OtherTopicError` where the topic was made again.
        """
        topic = self._settings.events_topic
        try:
            source = self._reader.read()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return {"kafka": "ok", "events": f"topic {topic} does not exist any more"}
            return {"kafka": f"Kafka at {self._settings.kafka} does not answer: {error.args[0].str()}"}
        if faults := source_faults(self._settings, source, known_topic_id(self._settings)):
            raise OtherTopicError("; ".join(faults))
        remember_topic_id(self._settings, source.topic_id)
        self._tell_losses(source, assigned)
        if (count := len(source.ends)) != self._partitions:
            why = f"topic {topic} has {count} partitions, of which {self._partitions} are read: set another `group`"
            return {"kafka": "ok", "events": why}
        return {"kafka": "ok", "events": "ok"}

    def _tell_losses(self, source: Source, assigned: Collection[int] | None) -> None:
        """Count and log each lost record once, by how far the partition's loss was told already."""
        for partition, (committed, start) in source.lost().items():
            told = max(committed, self._told.get(partition, 0))
            if start > told and (assigned is None or partition in assigned):
                self._told[partition] = start
                metrics.LOST.labels(partition).inc(start - told)
                log.error(
                    "records were deleted by retention before they were folded",
                    extra={"partition": partition, "start": told, "end": start},
                )


def known_topic_id(settings: Settings) -> str | None:
    """The id that the events topic had when a worker last ran on this folder."""
    file = _file(settings)
    return file.read_text() if file.exists() else None


def remember_topic_id(settings: Settings, topic_id: str) -> None:
    """Keep the events topic's id in the worker's folder: a topic made again has the same name and another id."""
    file = _file(settings)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, topic_id.encode())


def _file(settings: Settings) -> Path:
    return Path(settings.data_dir) / settings.group / f"{settings.events_topic}.id"
