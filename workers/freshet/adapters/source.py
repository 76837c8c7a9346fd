"""The events topic and the changelog of its states, as the broker has them: what fits and what was lost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from freshet.adapters.kafka import client_config
from freshet.adapters.topics import topic_config
from freshet.settings import Settings

SECONDS = 3.0
"""Longest wait for an answer of the broker."""
LOOK_SECONDS = 0.05
"""Between two looks whether the brokers know a topic that was created."""


def changelog_topic(group: str) -> str:
    """Name of the topic that holds every user's state."""
    return f"{group}-user_state-changelog"


class Source(NamedTuple):
    """The events topic by partition: where it starts and ends, and what the group has committed (-1 for nothing)."""

    topic_id: str
    starts: Mapping[int, int]
    ends: Mapping[int, int]
    committed: Mapping[int, int]

    def lost(self) -> dict[int, tuple[int, int]]:
        """Offsets from, and up to without, that retention took before they were folded, by partition."""
        return {
            partition: (offset, self.starts[partition])
            for partition, offset in self.committed.items()
            if 0 <= offset < self.starts[partition]
        }

    def losses(self, topic: str) -> list[str]:
        """What was lost, a sentence each."""
        return [
            f"records {start} to {end - 1} of {topic}, partition {partition}, were deleted by retention before they "
            "were folded: raise its retention.ms, or run more workers"
            for partition, (start, end) in self.lost().items()
        ]


def group_members(settings: Settings) -> int:
    """How many workers the group has now. Raises `KafkaException`."""
    admin = AdminClient(client_config(settings))
    described = admin.describe_consumer_groups([settings.group], request_timeout=SECONDS)[settings.group]
    try:
        return len(described.result().members)
    except KafkaException as error:
        if error.args[0].code() in (KafkaError.GROUP_ID_NOT_FOUND, *_NO_COORDINATOR):
            return 0
        raise


class SourceReader:
    """Asks the broker about the events topic."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.events_topic
        self._admin = AdminClient(client_config(settings))
        self._group = Consumer(client_config(settings) | {"group.id": settings.group})  # never joins

    def read(self) -> Source:
        """The topic as it is now. Raises `KafkaException`.

        The committed offsets are read before the ends: what is committed then is below the ends that are read after.
        """
        names = TopicCollection([self._topic])
        described = self._admin.describe_topics(names, request_timeout=SECONDS)[self._topic].result()
        partitions = [TopicPartition(self._topic, partition.id) for partition in described.partitions]
        committed = self._committed(partitions)
        starts, ends = (self._offsets(partitions, at) for at in (OffsetSpec.earliest(), OffsetSpec.latest()))
        return Source(str(described.topic_id), starts, ends, committed)

    def _offsets(self, partitions: Sequence[TopicPartition], at: OffsetSpec) -> dict[int, int]:
        """An offset of each partition; a partition without a leader has none for a while. Raises `KafkaException`."""
        answers = self._admin.list_offsets(dict.fromkeys(partitions, at), request_timeout=SECONDS)
        offsets = {partition.partition: answer.result().offset for partition, answer in answers.items()}
        if without := sorted(partition for partition, offset in offsets.items() if offset < 0):
            why = f"partitions {without} of {self._topic} have no leader"
            raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, why))
        return offsets

    def _committed(self, partitions: list[TopicPartition]) -> dict[int, int]:
        try:
            committed = self._group.committed(partitions, timeout=SECONDS)
        except KafkaException as error:
            if error.args[0].code() in _NO_COORDINATOR:
                return {}
            raise
        return {at.partition: max(-1, at.offset) for at in committed}


_NO_COORDINATOR = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)
"""A fresh broker still makes its topic of offsets: a group has none yet, or they are read at the next look."""


def source_faults(settings: Settings, source: Source, known_id: str | None = None) -> list[str]:
    """Why the events topic is not the one that the states are of, a sentence each; `known_id` was its id before."""
    topic = settings.events_topic
    new_group = (
        "stop the workers, count anew with `freshet popularity repair`, and set another `group`, "
        "whose workers fold the topic from its start"
    )
    if known_id is not None and known_id != source.topic_id:
        return [f"topic {topic} was deleted and made again, its offsets are no longer those of the states: {new_group}"]
    return [
        f"topic {topic} was deleted and made again: offset {offset} of partition {partition} is committed, and it ends "
        f"at {source.ends[partition]}: {new_group}"
        for partition, offset in source.committed.items()
        if offset > source.ends[partition]
    ]


def changelog_faults(settings: Settings, admin: AdminClient, partitions: int) -> list[str]:
    """What is wrong with a changelog that is there, a sentence each. Raises `KafkaException`."""
    name = changelog_topic(settings.group)
    found = admin.list_topics(timeout=SECONDS).topics.get(name)
    if found is None:
        return []
    faults = []
    if (count := len(found.partitions)) != partitions:
        faults.append(
            f"topic {settings.events_topic} has {partitions} partitions and the states of group {settings.group} are "
            f"kept in {count}, so that users who moved would begin with nothing: stop the workers and set another "
            "`group`, whose workers fold the topic from its start"
        )
    replicas, asked = min(len(at.replicas) for at in found.partitions.values()), settings.changelog_replication_factor
    if asked is not None and replicas < asked:
        faults.append(f"topic {name} has {replicas} replicas and changelog_replication_factor is {asked}: reassign it")
    config = topic_config(admin, name)
    if config is None:
        return faults
    if "compact" not in config["cleanup.policy"] or "delete" in config["cleanup.policy"]:
        faults.append(f"topic {name} has cleanup.policy={config['cleanup.policy']}: set cleanup.policy=compact")
    in_sync, wanted = int(config["min.insync.replicas"]), settings.changelog_min_insync_replicas
    shape = f"topic {name} has {replicas} replicas and min.insync.replicas={in_sync}"
    if wanted is not None and in_sync != wanted:
        faults.append(f"{shape}: set it to {wanted} as changelog_min_insync_replicas is")
    if in_sync > replicas:
        faults.append(f"{shape}: no state could be written, lower it or add replicas")
    return faults


def create_changelog(settings: Settings, admin: AdminClient, partitions: int) -> None:
    """Create the changelog, where it is not there, as the settings say, and wait until the brokers know it.

    Raises `KafkaException`.
    """
    name = changelog_topic(settings.group)
    if name in admin.list_topics(timeout=SECONDS).topics:
        return
    [created] = admin.create_topics([new_changelog(settings, partitions)]).values()
    try:
        created.result(10 * SECONDS)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # of a worker that started at the same time
            raise
    deadline = time.monotonic() + 10 * SECONDS
    while name not in admin.list_topics(timeout=SECONDS).topics:
        if time.monotonic() > deadline:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, f"{name} was created and is not there"))
        time.sleep(LOOK_SECONDS)


def new_changelog(settings: Settings, partitions: int) -> NewTopic:
    """The changelog as it is created: compacted, replicated as the settings say or else by the broker's own default."""
    config = {"cleanup.policy": "compact"}
    if settings.changelog_min_insync_replicas is not None:
        config["min.insync.replicas"] = str(settings.changelog_min_insync_replicas)
    factor = settings.changelog_replication_factor or -1
    return NewTopic(changelog_topic(settings.group), partitions, factor, config=config)
