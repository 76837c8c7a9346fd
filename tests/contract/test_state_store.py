"""The contract of a `StateStore`, over every backend."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import NewTopic
from freshet.adapters.rocks import RocksStateStore
from freshet.core.state import empty_state, encode_state
from freshet.ports import DeliveryError, Message, StateStore
from freshet.settings import Settings

from tests.contract.topics import make_topic
from tests.memory_ports import MemoryStateStore

PARTITION = 1


@pytest.fixture
def table(broker: str, unique: Callable[[str], str], data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The worker's table on RocksDB, with its changelog on a real broker."""
    monkeypatch.setattr(sys, "argv", ["freshet"])  # importing faust reads the command line
    from freshet.adapters.kafka import KafkaPublisher  # noqa: PLC0415
    from freshet.adapters.source import changelog_topic  # noqa: PLC0415
    from freshet.serving.app import WorkerApp  # noqa: PLC0415

    settings = Settings(kafka=broker, group=unique("store"), data_dir=str(data_dir))
    make_topic(broker, NewTopic(changelog_topic(settings.group), 3))
    publisher = KafkaPublisher(settings)
    app = WorkerApp(settings, 3, None)  # type: ignore[arg-type]
    app.table.publisher = publisher
    yield app.table
    publisher.close()
    app.table.publisher = None  # Faust keeps the app, and a producer complains once its broker is gone


@pytest.fixture(params=["memory", "rocks", pytest.param("faust", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StateStore:
    """A store of each kind, empty."""
    if request.param == "memory":
        return MemoryStateStore()
    if request.param == "rocks":
        return RocksStateStore(tmp_path / "states")
    table = request.getfixturevalue("table")
    from freshet.adapters.state_table import PartitionState  # noqa: PLC0415

    return PartitionState(table, PARTITION)


def state(offset: int) -> bytes:
    """A state that can be told from others."""
    made = empty_state(PARTITION)
    made.offset = offset
    return encode_state(made)


def test_an_unknown_user_is_none(store: StateStore) -> None:
    """An unknown user reads as None, and an empty request reads nothing."""
    assert store.read(["ann", "bob"]) == [None, None]
    assert store.read([]) == []


async def test_what_was_written_is_read(store: StateStore) -> None:
    """Written states are read in the requested order, with None for unknown users."""
    await store.write({"ann": state(1), "bob": state(2)})
    assert store.read(["bob", "nobody", "ann"]) == [state(2), None, state(1)]


async def test_a_later_write_replaces(store: StateStore) -> None:
    """A later write replaces a user's state and no other user's."""
    await store.write({"ann": state(1), "bob": state(2)})
    await store.write({"ann": state(3)})
    assert store.read(["ann", "bob"]) == [state(3), state(2)]


async def test_writing_nothing_changes_nothing(store: StateStore) -> None:
    """An empty write changes nothing."""
    await store.write({"ann": state(1)})
    await store.write({})
    assert store.read(["ann"]) == [state(1)]


@pytest.mark.parametrize("user", ["ä€😀", " ", "a\x00b", "__faust\\0offset__", "x" * 256])
async def test_any_user_id_is_a_key(store: StateStore, user: str) -> None:
    """Any text is a user id, compared whole."""
    await store.write({user: state(1)})
    assert store.read([user, user[:-1] + "?", user.upper() + "!"]) == [state(1), None, None]


async def test_many_users_at_once(store: StateStore) -> None:
    """A run of the largest size is a single write."""
    users = {f"user-{number}": state(number) for number in range(2048)}
    await store.write(users)
    assert store.read(list(users)) == list(users.values())


@pytest.mark.integration
async def test_partitions_are_apart(table: Any) -> None:
    """A user written in a partition is unknown in another."""
    from freshet.adapters.state_table import PartitionState  # noqa: PLC0415

    await PartitionState(table, 0).write({"ann": state(1)})
    assert PartitionState(table, 1).read(["ann"]) == [None]
    assert PartitionState(table, 0).read(["ann"]) == [state(1)]


@pytest.mark.integration
async def test_the_local_files_name_the_changelog_offset(table: Any) -> None:
    """After each write the local files name the offset of the last changelog record."""
    from faust.types import TP  # noqa: PLC0415
    from freshet.adapters.state_table import PartitionState  # noqa: PLC0415

    store, tp = PartitionState(table, PARTITION), TP(table.changelog_topic_name, PARTITION)
    assert table.data.persisted_offset(tp) is None
    await store.write({"ann": state(1), "bob": state(1)})
    assert table.data.persisted_offset(tp) == 1
    await store.write({"ann": state(2)})
    assert table.data.persisted_offset(tp) == 2


@pytest.mark.integration
async def test_what_another_worker_wrote_in_between_is_still_to_be_recovered(table: Any) -> None:
    """After a foreign record the files keep the offset before it, so the record is still recovered."""
    from faust.types import TP  # noqa: PLC0415
    from freshet.adapters.state_table import PartitionState  # noqa: PLC0415

    store, tp = PartitionState(table, PARTITION), TP(table.changelog_topic_name, PARTITION)
    await store.write({"ann": state(1)})
    await table.publisher.publish_to(PARTITION, [Message(tp.topic, b"bob", state(2))])
    await store.write({"ann": state(3), "cyd": state(3)})
    assert store.read(["ann", "bob", "cyd"]) == [state(3), None, state(3)]
    assert table.data.persisted_offset(tp) == 0
    await store.write({"ann": state(4)})
    assert table.data.persisted_offset(tp) == 0


@pytest.mark.integration
async def test_a_write_that_the_changelog_refuses_raises_and_stays_out(table: Any) -> None:
    """A write that the changelog refuses raises and is not stored locally."""
    from freshet.adapters.state_table import PartitionState  # noqa: PLC0415

    store = PartitionState(table, 7)  # the changelog has three partitions
    with pytest.raises(DeliveryError):
        await store.write({"ann": state(1)})
    assert store.read(["ann"]) == [None]
