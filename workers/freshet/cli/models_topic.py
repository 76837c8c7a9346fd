"""The models topic through kafka-python: rollout records, and the reports of the workers that are there."""

from __future__ import annotations

import time

from kafka import KafkaAdminClient, TopicPartition

from freshet.adapters.kafka_python import client_config
from freshet.cli.connections import open_consumer, open_producer, read_all, require_topics, said_plainly
from freshet.core.rollout import Report, Rollout, Versions, encode_record
from freshet.settings import Settings

WAIT_SECONDS = 30.0
TICK_SECONDS = 0.3


class ModelsTopic:
    """The `Records` of a release."""

    def __init__(self, settings: Settings) -> None:
        """Raises `UserError` where there is no such topic."""
        require_topics(settings, settings.models_topic)
        self._settings = settings

    def read(self) -> Versions:
        """All that the topic holds now; reports of workers that are no longer in the group are left out."""
        settings = self._settings
        found = Versions()
        with open_consumer(settings) as consumer:
            for record in read_all(consumer, [TopicPartition(settings.models_topic, 0)]):
                found.apply(record.value, record.key)
        there = members(self._settings) if found.reports else set()
        found.reports = {worker: report for worker, report in found.reports.items() if worker in there}
        return found

    def write(self, step: Rollout) -> None:
        """Write a step; it is acknowledged on return."""
        with open_producer(self._settings) as producer:
            producer.send(self._settings.models_topic, encode_record(step), step.key).get(timeout=30)

    def wait(self) -> list[str]:
        """Wait until every worker does what the records say; returns those that do not in time."""
        deadline = time.monotonic() + WAIT_SECONDS
        while behind := disobedient(self.read()):
            if time.monotonic() > deadline:
                break
            time.sleep(TICK_SECONDS)
        return behind


def members(settings: Settings) -> set[str]:
    """The members of the workers' consumer group, by the name that each has for good."""
    group = settings.group
    with said_plainly(settings):
        admin = KafkaAdminClient(**client_config(settings))
        try:
            found = admin.describe_groups([group])[group]["members"]
        finally:
            admin.close()
    return {member["group_instance_id"] for member in found}


def disobedient(found: Versions) -> list[str]:
    """The workers that make lists with other versions than the records say."""
    return sorted(worker for worker, report in found.reports.items() if not obeys(report, found))


def obeys(report: Report, found: Versions) -> bool:
    """Whether a worker does what the records say; before the first promotion they say nothing of the live version."""
    candidate = found.candidate.version if found.candidate is not None else 0
    return report.live == (found.live or report.live) and report.candidate == candidate
