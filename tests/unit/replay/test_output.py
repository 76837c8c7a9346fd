"""The parts of a replay: the order of a log, what it writes and where, what a verification compares."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from freshet.core.events import DEFAULT_BEHAVIOURS, Event, encode_event
from freshet.core.recommendation import (
    AsOf,
    Item,
    Recommendation,
    SideInputs,
    Timings,
    decode_recommendation,
    encode_recommendation,
    recommendation_id,
)
from freshet.core.state import UserState, empty_state, fold
from freshet.files import aside
from freshet.ports import Message, Record
from freshet.replay import output
from freshet.replay import states as replay_states
from freshet.replay.actions import Moment
from freshet.replay.checkpoint import CheckpointError, Folder
from freshet.replay.clock import Clock
from freshet.replay.engine import Replay
from freshet.replay.job import OutputTaken, refuse_live
from freshet.replay.list_topic import ListTopic
from freshet.replay.merge import Position, steps
from freshet.replay.output import FolderOutput, Parts
from freshet.replay.rebuild import PublishedList
from freshet.replay.states import MemoryStates, StoredStates
from freshet.replay.verify import Published, _difference
from freshet.serving.list_maker import MadeList
from freshet.settings import Settings

from tests.memory_ports import MemoryStateStore
from tests.simulation.memory_replays import SETTINGS, START, Kept, ListLog, open_replay, records, stream

SCHEMA = pa.schema([("number", pa.int64())])
AS_OF = AsOf(0, 5, START)
MADE = MadeList("live", [Item("a", 2.0, "model"), Item("b", 1.0, "cold")], SideInputs(1, 2, 3))


def record(offset: int, ts: int, user: str = "u") -> Record:
    """An event's record."""
    return Record(offset, ts, user.encode(), encode_event(Event(f"e{offset}-{user}", user, "view", ts, "i")))


def order(log: ListLog, positions: dict[int, Position] | None = None) -> list[tuple[int, int]]:
    """Partition and offset of each step."""
    return [(step.partition, step.record.offset) for step in steps(log, positions or {}, Settings())]


def test_partitions_are_merged_by_event_time() -> None:
    """Earlier first, equal times by partition; a late record and a bad one keep their place in their partition."""
    bad = Record(2, 0, None, b"{")
    log = ListLog(
        {
            0: [record(0, START), record(1, START + 40), bad, record(3, START + 10)],
            1: [record(0, START), record(1, START + 20), record(2, START + 50)],
        }
    )
    assert order(log) == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 3), (1, 2)]


def test_a_merge_goes_on_where_it_stopped() -> None:
    """From every step the rest comes in the same order: the clock of a partition is part of its position."""
    log = ListLog(
        {
            0: [record(0, START), record(1, START + 40), record(2, START + 10), record(3, START + 15)],
            1: [record(0, START + 5), record(1, START + 20), record(2, START + 41)],
        }
    )
    whole = order(log)
    positions: dict[int, Position] = {}
    for number, step in enumerate(steps(log, {}, Settings()), 1):
        positions[step.partition] = Position(step.record.offset + 1, step.clock)
        assert order(log, positions) == whole[number:]


def test_a_clock_is_the_same_after_a_checkpoint() -> None:
    """Minutes, boundaries and counts: what comes after does not tell the two apart."""
    clocks = [Clock(3600.0, (3600,), all_time=True) for _ in range(2)]
    for clock in clocks:
        for minute, item in enumerate("abac"):
            clock.advance(START + minute * 1_800_000)
            clock.add(item)
    again = Clock(3600.0, (3600,), all_time=True)
    again.restore(clocks[0].saved())
    for clock in (again, clocks[1]):
        clock.add("d")
        clock.advance(START + 9_000_000)
    for one, other in (
        (again.counts, clocks[1].counts),
        (again.all_time, clocks[1].all_time),
        (again.at_boundary[0], clocks[1].at_boundary[0]),
    ):
        assert one.items == other.items
        assert one.values.tolist() == other.values.tolist()
    assert again.all_time.values.tolist() == [2.0, 1.0, 1.0, 1.0]
    assert again.boundaries == clocks[1].boundaries


def test_parts_are_cut_when_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds at most one part; what comes behind a checkpoint is removed, half-written files too."""
    monkeypatch.setattr(output, "PART_ROWS", 3)
    parts = Parts(tmp_path / "rows", SCHEMA)
    for number in range(7):
        parts.add((number,))
    assert parts.number == 2
    parts.cut()
    assert pq.read_table(tmp_path / "rows")["number"].to_pylist() == list(range(7))
    (tmp_path / "rows" / "part-000003.parquet.partial").write_bytes(b"half")
    parts.discard_behind(1)
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["part-000000.parquet"]
    parts.add((9,))
    parts.cut()
    assert pq.read_table(tmp_path / "rows")["number"].to_pylist() == [0, 1, 2, 9]


async def test_ten_times_the_users_hold_no_more_states_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest lie in the store, and in the end it has what would be in memory."""
    monkeypatch.setattr(replay_states, "CACHED_BYTES", 100_000)
    most = []
    for users in (400, 4000):
        log = list(steps(records(stream(count=2 * users, users=users)), {}, Settings()))
        store, whole = MemoryStateStore(), MemoryStates()
        stored = StoredStates(store)
        held = []
        for states in (stored, whole):
            replay = Replay(SETTINGS, [], None, states, Clock(86_400.0), Kept())  # type: ignore[arg-type]
            for start in range(0, len(log), 64):
                await replay.feed(log[start : start + 64])
                held.append(len(stored.of(())))
        await stored.write()
        assert store.states == whole.saved()
        most.append(max(held))
    assert most[1] <= 1.1 * most[0] < 200


async def test_a_checkpoint_is_known_again(tmp_path: Path) -> None:
    """A description of the same replay opens it, whatever kinds of sequences it is written with; another does not."""

    def folder(last: int) -> Folder:
        identity = {"window": [(0, (3, last))], "settings": {"text_fields": ("title",)}}
        return Folder(tmp_path, identity, FolderOutput(tmp_path, DEFAULT_BEHAVIOURS), on_disk=False)

    replay, states = await open_replay(Kept()), MemoryStates()
    await folder(9).save(replay, states)
    assert folder(9).load().replay.counts == {}
    with pytest.raises(CheckpointError, match="holds another replay"):
        folder(8).load()


async def test_a_checkpoint_that_cannot_be_gone_on_from_is_one_line(tmp_path: Path) -> None:
    """One that is cut off, one with a byte that flipped, one of another version, one from before versions."""
    folder = Folder(tmp_path, {}, FolderOutput(tmp_path, DEFAULT_BEHAVIOURS), on_disk=False)
    await folder.save(await open_replay(Kept()), MemoryStates())
    written = folder.checkpoint.read_bytes()
    content = msgspec.msgpack.decode(written)
    flipped = written[:-9] + bytes([written[-9] ^ 1]) + written[-8:]
    for raw, message in (
        (written[:-9], "is damaged"),
        (flipped, "is damaged"),
        (b"", "is damaged"),
        (msgspec.msgpack.encode(content | {"version": 1}), "was written by another version of freshet"),
        (msgspec.msgpack.encode({"identity": {}, "number": 1}), "was written by another version of freshet"),
    ):
        folder.checkpoint.write_bytes(raw)
        with pytest.raises(CheckpointError, match=message) as refused:
            folder.load()
        assert str(refused.value).startswith(str(folder.checkpoint))
        assert "\n" not in str(refused.value)


def checkpoints(folder: Path) -> set[str]:
    """Names of what is there to go on from."""
    return {path.name for path in folder.iterdir() if path.name.startswith(("state-", "checkpoint"))}


async def test_a_save_that_was_cut_off_does_not_stand_in_the_way(tmp_path: Path) -> None:
    """States saved without their document are written again by the next save, and nothing is left in the end."""
    folder = Folder(tmp_path, {}, FolderOutput(tmp_path, DEFAULT_BEHAVIOURS), on_disk=True)
    replay, states = await open_replay(Kept()), folder.open_states()
    await folder.save(replay, states)
    folder._saved_states(2).mkdir()
    aside(folder.checkpoint).touch()
    await folder.save(replay, states)
    assert checkpoints(tmp_path) == {"state-2", "checkpoint.msgpack"}
    aside(folder.checkpoint).touch()
    folder._saved_states(1).mkdir()
    folder.finish()
    assert checkpoints(tmp_path) == set()


def test_who_left_is_in_no_features_and_training_rows(tmp_path: Path) -> None:
    """Rows up to when they left are taken out; later ones, and those of others, stay."""
    folder = FolderOutput(tmp_path, DEFAULT_BEHAVIOURS, features=True, training_rows=True)
    for user in ("gone", "stays"):
        state = empty_state(0)
        for number in range(3):
            event = Event(f"e{number}", user, "view", START + number, "i")
            folder.training_row(state, event)
            fold(state, event, 0, number)
            folder.features(Moment(user, state, event, Clock(1.0).counts, (), judged=False))
    folder.cut()
    folder.forget({"gone": START + 1})
    rows = pq.read_table(tmp_path / "training_rows").to_pylist()
    assert [(row["user_id"], row["next_ts"] - START) for row in rows] == [
        ("gone", 2),
        ("stays", 0),
        ("stays", 1),
        ("stays", 2),
    ]
    features = pq.read_table(tmp_path / "features")["user_id"].to_pylist()
    assert features == ["gone", "stays", "stays", "stays"]


class Heard:
    """A publisher that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def publish(self, messages: list[Message]) -> None:
        """Keep it."""
        self.messages += messages


async def test_a_topic_gets_lists_as_a_worker_publishes_them() -> None:
    """Keyed by user, with id and place in the log, all times the event's; a tombstone for who was erased."""
    heard = Heard()
    topic = ListTopic("mine", heard)
    event = Event("e", "ann", "view", START, "i")
    state = empty_state(0)
    fold(state, event, 0, 5)
    moment = Moment("ann", state, event, Clock(1.0).counts, (), judged=False)
    topic.add(3, [(moment, MADE), (moment._replace(user_id="bob"), None)])
    assert heard.messages == []
    await topic.publish()
    await topic.publish()
    first, second = heard.messages
    assert (first.topic, first.key, second) == ("mine", b"ann", Message("mine", b"bob", None))
    made = decode_recommendation(first.value or b"")
    assert made.recommendation_id == recommendation_id("ann", AS_OF, 3, degraded=False)
    assert (made.items, made.as_of, made.model_version, made.personalised) == (MADE.items, AS_OF, 3, True)
    assert made.timings == Timings(START, START, START, START, START)


@pytest.mark.parametrize("topic", ["events", "items", "recommendations", "events.dlq", "models", "popularity"])
def test_live_topics_are_refused(topic: str) -> None:
    """And so is whatever belongs to the live group; any other name is free."""
    with pytest.raises(OutputTaken, match="is the live"):
        refuse_live(Settings(), topic)
    with pytest.raises(OutputTaken, match="belongs to the live group"):
        refuse_live(Settings(), "freshet-user_state-changelog")
    refuse_live(Settings(), f"{topic}.again")


def published(**changed: object) -> Recommendation:
    """A list as it was published."""
    fields: dict[str, object] = {
        "recommendation_id": recommendation_id("ann", AS_OF, 3, degraded=False),
        "user_id": "ann",
        "items": MADE.items,
        "model_version": 3,
        "as_of": AS_OF,
        "side_inputs": MADE.side_inputs,
        "timings": Timings(START, 1, 2, 3, 4),
        "degraded": False,
        "personalised": True,
    }
    return Recommendation(**(fields | changed))  # type: ignore[arg-type]


def state() -> UserState:
    """The state that the list is as of."""
    state = empty_state(0)
    fold(state, Event("e", "ann", "view", START, "i"), 0, 5)
    return state


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"timings": Timings(START, 9, 9, 9, 9)}, ""),
        ({"recommendation_id": "x"}, "recommendation_id x, should be "),
        ({"variant": "bold"}, "variant 'bold', made again 'live'"),
        ({"personalised": False}, "personalised False, should be True"),
        ({"items": MADE.items[:1]}, "1 items, made again 2"),
        ({"items": MADE.items[::-1]}, "slot 0: published Item(item_id='b'"),
        ({"items": [MADE.items[0], Item("b", 1.00001, "cold")]}, "slot 1: published Item(item_id='b', score=1.00001"),
        ({"items": [MADE.items[0], Item("b", 1.0, "cold", 0.5)]}, "slot 1: "),
    ],
)
def test_every_difference_is_named(changed: dict[str, object], said: str) -> None:
    """Id, variant, length and each slot, to the last digit; wall-clock times are the run's own."""
    assert _difference(PublishedList(published(**changed), state()), MADE).startswith(said)
    assert bool(_difference(PublishedList(published(**changed), state()), MADE)) == bool(said)


def test_the_newest_of_the_topic_counts() -> None:
    """A tombstone ends a user's lists, and what is no list is kept apart."""
    value = encode_recommendation(published())
    found = Published([Record(0, 0, b"ann", value), Record(1, 0, b"bob", b"{}"), Record(2, 0, b"ann", None)])
    assert found.newest == {"ann": None}
    assert len(found.lists) == 1
    assert [record.offset for record, _ in found.unreadable] == [1]
