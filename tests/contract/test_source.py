"""The events topic and the changelog at a real broker: a misfit is refused, and a loss is reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from freshet.adapters.kafka import client_config
from freshet.adapters.source import SourceReader, changelog_topic
from freshet.cli import app
from freshet.cli.check import TESTS, judge
from freshet.process import metrics
from freshet.serving.first_version import StartError
from freshet.serving.source_watch import OtherTopicError, SourceWatch
from freshet.serving.start import events_partitions
from freshet.settings import Settings
from typer.testing import CliRunner

from tests.contract.test_side_inputs import TOPICS, make_topics
from tests.contract.topics import make_topic

pytestmark = pytest.mark.integration

OK = {"kafka": "ok", "events": "ok"}


@pytest.fixture
def settings(broker: str, unique: Callable[[str], str], data_dir: Path) -> Settings:
    """Settings whose topics exist, `events` with two partitions."""
    names = {f"{name}_topic": unique(name) for name in TOPICS}
    made = Settings(kafka=broker, group=unique("group"), data_dir=str(data_dir), **names)
    make_topics(made, events=(2, {}))
    return made


@pytest.fixture
def admin(settings: Settings) -> AdminClient:
    """An operator."""
    return AdminClient(client_config(settings))


def commit(settings: Settings, count: int, offset: int) -> None:
    """Have so many records in partition 0, up to an offset of which the group has committed."""
    producer = Producer(client_config(settings))
    for _ in range(count):
        producer.produce(settings.events_topic, b"x", b"ann", 0)
    assert producer.flush(60) == 0
    consumer = Consumer(client_config(settings) | {"group.id": settings.group})
    deadline = time.monotonic() + 60
    while True:
        try:
            consumer.commit(offsets=[TopicPartition(settings.events_topic, 0, offset)], asynchronous=False)
        except KafkaException:  # a fresh broker still makes its offsets topic
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            return consumer.close()


def until(holds: Callable[[], bool]) -> None:
    """Wait until the broker has it; meanwhile it may not know."""
    deadline = time.monotonic() + 60
    while True:
        with suppress(KafkaException):
            if holds():
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def refusal(settings: Settings) -> str:
    """Why a worker does not start; `freshet check` says the same."""
    with pytest.raises(StartError) as refused:
        events_partitions(settings)
    return str(refused.value)


def checked(settings: Settings) -> str:
    """What `freshet check` finds."""
    verdict = judge("kafka", TESTS["kafka"], settings)
    assert not verdict.ok
    return verdict.detail


def test_all_is_well(settings: Settings) -> None:
    """A worker makes its changelog, continues at its offsets and loses nothing."""
    assert events_partitions(settings) == 2
    commit(settings, 5, 5)
    watch = SourceWatch(settings, 2)
    assert watch.look(None) == watch.look({0, 1}) == OK
    assert events_partitions(settings) == 2
    assert judge("kafka", TESTS["kafka"], settings).ok


def test_partitions_that_were_added_are_told_and_refused(settings: Settings, admin: AdminClient) -> None:
    """Added partitions are reported by `/readyz` while a worker runs and refused at a start."""
    assert events_partitions(settings) == 2
    watch = SourceWatch(settings, 2)
    admin.create_partitions([NewPartitions(settings.events_topic, 4)])[settings.events_topic].result(60)
    until(lambda: len(SourceReader(settings).read().ends) == 4)
    verdict = watch.look(None)["events"]
    assert "has 4 partitions, of which 2 are read" in verdict
    for told in (refusal(settings), checked(settings)):
        assert "has 4 partitions and the states" in told
        assert "are kept in 2" in told
        assert "set another `group`" in told


def test_another_group_folds_the_widened_topic_from_its_start(settings: Settings, admin: AdminClient) -> None:
    """Another group folds the widened topic from its start, as the refusal advises."""
    assert events_partitions(settings) == 2
    admin.create_partitions([NewPartitions(settings.events_topic, 4)])[settings.events_topic].result(60)
    until(lambda: len(SourceReader(settings).read().ends) == 4)
    assert events_partitions(msgspec.structs.replace(settings, group=settings.group + "-2")) == 4


def test_records_that_retention_took_are_counted_once(settings: Settings, admin: AdminClient) -> None:
    """Records lost to retention are counted once and reported by metric, log and `check`."""
    commit(settings, 50, 10)
    deleted = TopicPartition(settings.events_topic, 0, 35)
    for result in admin.delete_records([deleted]).values():
        result.result(60)
    lost = metrics.LOST.labels(0)
    before, watch = lost._value.get(), SourceWatch(settings, 2)
    assert watch.look({1}) == OK
    assert lost._value.get() == before
    for _ in range(2):
        assert watch.look(None) == OK
        assert lost._value.get() == before + 25
    for result in admin.delete_records([TopicPartition(settings.events_topic, 0, 40)]).values():
        result.result(60)
    watch.look({0})
    assert lost._value.get() == before + 30
    assert f"records 10 to 39 of {settings.events_topic}, partition 0" in checked(settings)


@pytest.mark.parametrize("records", [3, 30])
def test_a_topic_made_again_is_refused(settings: Settings, admin: AdminClient, records: int) -> None:
    """A topic that was made again is refused, running or at a start, shorter or longer than before."""
    assert events_partitions(settings) == 2
    commit(settings, 10, 10)
    watch = SourceWatch(settings, 2)
    assert watch.look(None) == OK
    admin.delete_topics([settings.events_topic])[settings.events_topic].result(60)
    until(lambda: watch.look(None)["events"] == f"topic {settings.events_topic} does not exist any more")
    make_topic(settings.kafka, NewTopic(settings.events_topic, 2))
    commit(settings, records, 10)
    with pytest.raises(OtherTopicError, match="was deleted and made again"):
        watch.look(None)
    assert "was deleted and made again" in refusal(settings)


def test_a_topic_made_again_shorter_is_seen_from_any_folder(settings: Settings, tmp_path: Path) -> None:
    """A topic shorter than the committed offset is refused from any folder."""
    commit(settings, 3, 10)
    elsewhere = msgspec.structs.replace(settings, data_dir=str(tmp_path / "other"))
    assert "offset 10 of partition 0 is committed, and it ends at 3" in refusal(elsewhere)
    assert "set another `group`" in checked(elsewhere)


def test_the_changelog_is_made_as_the_settings_say(settings: Settings, admin: AdminClient) -> None:
    """The changelog is compacted, with the set or the broker's replication, and a mismatch is reported."""
    assert events_partitions(settings) == 2
    topic = admin.list_topics(timeout=10).topics[changelog_topic(settings.group)]
    assert [len(partition.replicas) for partition in topic.partitions.values()] == [1, 1]
    wished = msgspec.structs.replace(settings, changelog_replication_factor=3, changelog_min_insync_replicas=2)
    for told in (refusal(wished), checked(wished)):
        assert "has 1 replicas and changelog_replication_factor is 3" in told
        assert "min.insync.replicas=1: set it to 2 as" in told
    made = msgspec.structs.replace(wished, group=settings.group + "-2", changelog_replication_factor=1)
    assert "no state could be written" in refusal(made)
    unmade = msgspec.structs.replace(wished, group=settings.group + "-3")
    assert "eplication factor" in refusal(unmade)


def test_features_are_pushed_by_workers_alone(settings: Settings) -> None:
    """Without a worker `freshet features push` says what to start."""
    given = {"FRESHET_KAFKA": settings.kafka, "FRESHET_GROUP": settings.group}
    result = CliRunner().invoke(app, ["features", "push"], env=given)
    assert result.exit_code == 1
    assert f"no worker of group {settings.group} runs: start one with `freshet worker`" in result.stderr


def test_a_changelog_that_is_not_compacted_is_refused(settings: Settings) -> None:
    """A changelog that is not compacted is refused."""
    make_topic(settings.kafka, NewTopic(changelog_topic(settings.group), 2))
    assert "set cleanup.policy=compact" in refusal(settings)


def test_a_broker_that_is_away_is_told(settings: Settings) -> None:
    """`/readyz` names a broker that does not answer."""
    watch = SourceWatch(msgspec.structs.replace(settings, kafka="127.0.0.1:1"), 2)
    assert "does not answer" in watch.look(None)["kafka"]
