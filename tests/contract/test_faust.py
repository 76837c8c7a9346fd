"""What the worker relies on of Faust, on a real broker: runs, acknowledgements, isolation, recovery."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from freshet.core.state import UserState, decode_state, empty_state, encode_state

from deploy import local
from tests.integration import independent_fold

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SOON = 60.0
"""Seconds that anything may take on a busy machine."""


class StubWorker:
    """The stub worker as a process, its topic and its files."""

    def __init__(self, broker: str, name: str, folder: Path, partitions: int = 2, **settings: Any) -> None:
        self.broker, self.group, self.topic, self.folder = broker, f"{name}-group", name, folder
        self.data = folder / "data"
        self.changelog = f"{self.group}-user_state-changelog"
        self.process: subprocess.Popen[bytes] | None = None
        self._producer = Producer({"bootstrap.servers": broker})
        folder.mkdir()
        given = {"kafka": broker, "group": self.group, "events_topic": name, "data_dir": str(self.data), **settings}
        (folder / "settings.json").write_text(json.dumps({**given, "partitions": partitions}))
        others = dict.fromkeys(("items", "recommendations", "dead_letters", "models", "popularity"))
        local.create_topics(broker, partitions, events=name, **{other: f"{name}-{other}" for other in others})

    def start(self) -> None:
        """Start it; it goes on where it was."""
        self._known = {partition: len(self.calls("start", partition)) for partition in (0, 1)}
        with (self.folder / "worker.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.contract.stub_worker", str(self.folder)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_held(self, count: int) -> None:
        """Start it on so many records of partition 0, and wait until it is in a run of them, which is held."""
        self.steer("hold-0")
        self.produce(0, count)
        self.start()
        self.until(lambda: bool(self.calls("start", 0)), "a run in progress")

    @contextmanager
    def frozen(self, seconds: float) -> Iterator[None]:
        """Stand still while the block runs and for so long behind it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        yield
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """What it has said, in all its lives."""
        return (self.folder / "worker.log").read_text()

    def end(self, number: int) -> int:
        """Send it a signal and wait for its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its exit status."""
        assert self.process is not None
        status = self.process.wait(SOON)
        self.process = None
        return status

    def close(self) -> None:
        """End it where it still runs, and let go of the broker before that ends: the producer would complain."""
        del self._producer
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def produce(self, partition: int, count: int, user: str = "ann", topic: str = "", value: bytes = b"x") -> None:
        """Append records of a user to a partition."""
        for _ in range(count):
            self._producer.produce(topic or self.topic, value, user.encode(), partition)
        assert self._producer.flush(SOON) == 0

    def steer(self, name: str, content: str = "") -> None:
        """Put a steering file in place."""
        (self.folder / name).write_text(content)

    def let_go(self, name: str) -> None:
        """Take a steering file away."""
        (self.folder / name).unlink()

    def calls(self, kind: str, partition: int | None = None) -> list[dict[str, Any]]:
        """What the pipeline has noted so far."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        notes = [json.loads(line) for line in lines]
        return [note for note in notes if note["what"] == kind and partition in (None, note.get("partition"))]

    def done(self, partition: int) -> list[int]:
        """The offsets processed, in the order of processing; one read again, as after a rebalance, counts once."""
        return list(dict.fromkeys(offset for call in self.calls("end", partition) for offset in call["offsets"]))

    def found(self, partition: int) -> dict[str, list[int]]:
        """What the first run of this life found: each user's count of records and offset."""
        first: dict[str, list[int]] = self.calls("start", partition)[self._known[partition]]["before"]
        return first

    def committed(self, partition: int) -> int:
        """The group's committed offset; negative for none."""
        consumer = Consumer({"bootstrap.servers": self.broker, "group.id": self.group})
        deadline = time.monotonic() + SOON
        while True:
            try:
                [at] = consumer.committed([TopicPartition(self.topic, partition)], timeout=SOON)
            except KafkaException:  # a fresh broker still makes its offsets topic
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                consumer.close()
                return int(at.offset)

    def changelog_records(self, partition: int) -> list[tuple[bytes, UserState, int]]:
        """Every record of the changelog's partition: key, state, offset."""
        consumer = Consumer({"bootstrap.servers": self.broker, "group.id": "judge", "enable.auto.commit": False})
        at = TopicPartition(self.changelog, partition, 0)
        _, end = consumer.get_watermark_offsets(at, timeout=SOON)
        consumer.assign([at])
        records = []
        while len(records) < end:
            message = consumer.poll(SOON)
            assert message is not None
            records.append((message.key(), decode_state(message.value()), message.offset()))
        consumer.close()
        return records

    def partition_folder(self, partition: int) -> Path:
        """The folder of a partition's RocksDB files."""
        [folder] = [path for path in self.data.rglob(f"*{partition}.db") if path.is_dir()]
        return folder

    def until(self, condition: Callable[[], bool], condition_text: str) -> None:
        """Wait until it holds; the worker must live meanwhile."""
        deadline = time.monotonic() + SOON
        while not condition():
            alive = self.process is not None and self.process.poll() is None
            if not alive or time.monotonic() > deadline:
                log = self.log()[-3000:]
                pytest.fail(f"{'not in time' if alive else 'the worker ended'}: {condition_text}\n{log}")
            time.sleep(0.05)

    def until_committed(self, partition: int, offset: int) -> None:
        """Wait until the group has committed exactly this offset."""
        self.until(lambda: self.committed(partition) == offset, f"{offset} committed in partition {partition}")


@pytest.fixture
def make_worker(broker: str, unique: Callable[[str], str], tmp_path: Path) -> Iterator[Callable[..., StubWorker]]:
    """Makes stub workers, and ends those that still run."""
    made: list[StubWorker] = []

    def make(**options: Any) -> StubWorker:
        name = unique("faust")
        made.append(StubWorker(broker, name, tmp_path / name, **options))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def test_a_fetched_run_is_one_message(make_worker: Callable[..., StubWorker]) -> None:
    """Records fetched together arrive in order as whole runs of a partition, within the set length."""
    worker = make_worker(max_batch_events=128)
    worker.produce(0, 300)
    worker.produce(1, 200, "bob")
    worker.start()
    worker.until(lambda: len(worker.done(0)) == 300 and len(worker.done(1)) == 200, "all processed")
    for partition, count in ((0, 300), (1, 200)):
        runs = [call["offsets"] for call in worker.calls("start", partition)]
        assert [offset for run in runs for offset in run] == list(range(count))
        assert max(len(run) for run in runs) <= 128
        assert len(runs) <= 12
    # the offset that a run is acknowledged by is its last record's
    worker.until_committed(0, 300)
    worker.until_committed(1, 200)
    assert worker.end(signal.SIGTERM) == 0


def test_the_commit_follows_the_acknowledgement_past_the_whole_run(make_worker: Callable[..., StubWorker]) -> None:
    """A run is committed behind its last record, and only after its acknowledgement."""
    worker = make_worker()
    worker.start_held(100)
    time.sleep(2.0)  # eight commit intervals
    assert worker.committed(0) < 0
    worker.let_go("hold-0")
    worker.until_committed(0, 100)


def test_a_failed_run_is_neither_committed_nor_skipped(make_worker: Callable[..., StubWorker]) -> None:
    """An exception ends the process with its status, and the next process reads the run again."""
    worker = make_worker()
    worker.start()
    worker.produce(0, 10)
    worker.until_committed(0, 10)
    worker.steer("fail", "42")
    worker.produce(0, 90)
    assert worker.wait() == 70
    failed = worker.calls("start", 0)[-1]["offsets"]
    assert 42 in failed
    committed = worker.committed(0)
    assert 10 <= committed <= failed[0]
    worker.let_go("fail")
    known = len(worker.calls("start", 0))
    worker.start()
    worker.until_committed(0, 100)
    assert worker.calls("start", 0)[known]["offsets"][0] == committed
    assert worker.done(0) == list(range(100))


def test_a_killed_run_is_read_again(make_worker: Callable[..., StubWorker]) -> None:
    """A process killed in a run has committed nothing of the run."""
    worker = make_worker()
    worker.start_held(50)
    worker.end(signal.SIGKILL)
    assert worker.committed(0) < 0
    worker.let_go("hold-0")
    worker.start()
    worker.until_committed(0, 50)
    assert worker.done(0) == list(range(50))


def test_a_stop_lets_the_run_in_progress_end(make_worker: Callable[..., StubWorker]) -> None:
    """On SIGTERM the run is finished, acknowledged and committed, and the process exits with status 0."""
    worker = make_worker()
    worker.start_held(50)
    assert worker.process is not None
    worker.process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert worker.committed(0) < 0
    assert worker.process.poll() is None
    worker.let_go("hold-0")
    assert worker.wait() == 0
    done = worker.done(0)
    assert done
    assert worker.committed(0) == done[-1] + 1


def test_what_waits_is_taken_together_and_each_partition_keeps_its_order(
    make_worker: Callable[..., StubWorker],
) -> None:
    """Runs that wait form the next batch over all partitions, and commits keep each partition's order."""
    worker = make_worker()
    worker.start_held(20)
    worker.produce(0, 10)
    worker.until(lambda: len(worker.calls("taken")) == 2, "a second batch is begun beside one that takes long")
    taken = sum(sum(call["sizes"].values()) for call in worker.calls("taken"))
    worker.produce(0, 10)
    worker.produce(1, 30, "bob")
    worker.until(lambda: sum(call["size"] for call in worker.calls("queued")) == 70, "all is fetched")
    time.sleep(0.5)
    assert len(worker.calls("taken")) == 2
    assert worker.committed(0) < 0
    assert worker.committed(1) < 0
    worker.let_go("hold-0")
    worker.until_committed(0, 40)
    worker.until_committed(1, 30)
    assert worker.calls("taken")[2]["sizes"] == {"0": 40 - taken, "1": 30}
    assert worker.done(0) == list(range(40))
    assert worker.done(1) == list(range(30))


def test_with_a_backlog_two_batches_are_under_way(make_worker: Callable[..., StubWorker]) -> None:
    """With a backlog two batches are under way, never three, and commits keep the order."""
    worker = make_worker(max_batch_events=100)
    worker.start_held(20)
    worker.produce(1, 500, "bob")
    worker.until(lambda: len(worker.calls("taken")) == 2, "a second batch handed on")
    time.sleep(1.0)
    assert len(worker.calls("taken")) == 2
    assert worker.committed(0) < 0
    assert worker.committed(1) < 0
    worker.let_go("hold-0")
    worker.until_committed(0, 20)
    worker.until_committed(1, 500)
    assert worker.done(1) == list(range(500))


def fetched_before_the_flow_resumes(worker: StubWorker) -> None:
    """Have a run of nine records wait in Faust's queue while a recovery ends, then let it be processed."""
    worker.start()
    worker.produce(0, 1)
    worker.until_committed(0, 1)
    worker.end(signal.SIGKILL)
    shutil.rmtree(worker.data)  # with nothing to recover Faust fetches only later
    for file in ("slow-seek", "slow-inbox", "hold-0"):
        worker.steer(file)
    worker.produce(0, 1)
    worker.start()
    worker.until(lambda: bool(worker.calls("in front of the inbox")), "a run taken from Faust's queue")
    worker.produce(0, 9)
    worker.until(lambda: bool(worker.calls("sought")), "the recovery at its end")
    time.sleep(1.0)
    worker.let_go("hold-0")


def test_what_is_fetched_while_a_recovery_ends_is_processed(make_worker: Callable[..., StubWorker]) -> None:
    """Records queued between the seek that ends a recovery and the resuming of the flow are processed."""
    worker = make_worker()
    fetched_before_the_flow_resumes(worker)
    worker.until_committed(0, 11)
    assert worker.done(0) == list(range(11))


def test_fausts_own_flow_control_loses_queued_records(make_worker: Callable[..., StubWorker]) -> None:
    """Failing control: Faust's flow control empties the queue, and the next commit passes over its records."""
    worker = make_worker()
    worker.steer("faust-flow-control")
    fetched_before_the_flow_resumes(worker)
    worker.produce(0, 1)
    worker.until_committed(0, 12)
    assert len(worker.done(0)) < 12


def test_state_comes_back_from_files_and_from_the_changelog_alone(make_worker: Callable[..., StubWorker]) -> None:
    """A killed worker goes on from its written state, with its files and without them."""
    worker = make_worker()
    worker.start()
    worker.produce(0, 40)
    worker.produce(1, 7, "bob")
    worker.until_committed(0, 40)
    worker.until_committed(1, 7)
    for restart, wiped in enumerate((False, True), 1):
        worker.end(signal.SIGKILL)
        if wiped:
            shutil.rmtree(worker.data)
        worker.start()
        worker.produce(0, 1)
        worker.produce(1, 1, "bob")
        worker.until_committed(0, 40 + restart)
        worker.until_committed(1, 7 + restart)
        assert worker.found(0) == {"ann": [40 + restart - 1, 40 + restart - 2]}
        assert worker.found(1) == {"bob": [7 + restart - 1, 7 + restart - 2]}


def test_recovery_keeps_the_newest_source_offset(make_worker: Callable[..., StubWorker]) -> None:
    """Recovery keeps the state of the newest source offset, whatever its position in the changelog."""
    worker = make_worker()
    worker.start()
    worker.produce(0, 5)
    worker.produce(0, 5, "bob")
    worker.until_committed(0, 10)
    worker.end(signal.SIGKILL)
    older, newer = empty_state(0), empty_state(0)
    older.offset, older.folded = 1, 1000
    newer.offset, newer.folded = 1_000_000, 2000
    worker.produce(0, 1, "ann", worker.changelog, encode_state(older))
    worker.produce(0, 1, "bob", worker.changelog, encode_state(newer))
    committed = 10
    for wiped in (False, True):
        worker.start()
        worker.produce(0, 1, "ann")
        committed += 1
        worker.until_committed(0, committed)
        assert worker.found(0)["ann"][0] == committed - 6
        worker.end(signal.SIGKILL)
        if not wiped:
            shutil.rmtree(worker.data)
    worker.start()
    worker.produce(0, 1, "bob")
    worker.until_committed(0, committed + 1)
    assert worker.found(0) == {"bob": [2000, 1_000_000]}


def test_a_write_is_durable_with_the_offset_it_is_good_for(make_worker: Callable[..., StubWorker]) -> None:
    """After a kill the local files are a prefix of the changelog and name its end offset."""
    worker = make_worker()
    worker.start()
    for number in range(30):
        worker.produce(0, 3, f"user-{number % 7}")
    worker.until(lambda: len(worker.calls("end", 0)) >= 1, "a run written")
    worker.end(signal.SIGKILL)
    reached, held = independent_fold.local_files(worker.partition_folder(0))
    records = worker.changelog_records(0)
    prefix = {key: encode_state(state) for key, state, offset in records if offset <= reached}
    assert held == prefix
    assert held
    # what was acknowledged to the pipeline is in the changelog
    last = {key: state.offset for key, state, _ in records}
    assert max(last.values()) >= max(worker.done(0))


@pytest.mark.parametrize("harm", ["garbage in every file", "no CURRENT", "torn tables and logs", "flipped data"])
def test_a_corrupt_partition_folder_is_rebuilt(make_worker: Callable[..., StubWorker], harm: str) -> None:
    """A partition whose files cannot be opened is rebuilt from the changelog."""
    worker = make_worker()
    worker.start()
    worker.produce(0, 25)
    worker.produce(1, 5, "bob")
    worker.until_committed(0, 25)
    worker.until_committed(1, 5)
    worker.end(signal.SIGTERM)
    folder = worker.partition_folder(0)
    files = [path for path in folder.iterdir() if path.is_file() and path.name != "LOCK"]
    if harm == "no CURRENT":
        (folder / "CURRENT").unlink()
    elif harm == "garbage in every file":
        for path in files:
            path.write_bytes(b"garbage" * 100)
    elif harm == "flipped data":
        for path in folder.glob("*.sst"):
            content = path.read_bytes()
            path.write_bytes(bytes(byte ^ 0xFF for byte in content[:20]) + content[20:])
    else:
        for path in files:
            if path.suffix in (".sst", ".log") or path.name.startswith("MANIFEST"):
                path.write_bytes(path.read_bytes()[:-7])
    worker.start()
    worker.produce(0, 1)
    worker.produce(1, 1, "bob")
    worker.until_committed(0, 26)
    worker.until_committed(1, 6)
    assert worker.found(0) == {"ann": [25, 24]}
    assert worker.found(1) == {"bob": [5, 4]}


def test_a_changelog_record_that_is_no_state_is_left_out(make_worker: Callable[..., StubWorker]) -> None:
    """A changelog record that is no state is told with its offset, and the states around it are recovered."""
    worker = make_worker()
    worker.start()
    worker.produce(0, 5)
    worker.until_committed(0, 5)
    worker.end(signal.SIGKILL)
    worker.produce(0, 1, "bob", worker.changelog, b"no state")
    worker.start()
    worker.produce(0, 1)
    worker.until_committed(0, 6)
    assert worker.found(0)["ann"] == [5, 4]
    assert "a record of the changelog is left out" in worker.log()
    assert worker.end(signal.SIGTERM) == 0


def test_a_changelog_that_does_not_come_ends_the_worker(make_worker: Callable[..., StubWorker]) -> None:
    """A recovery that receives nothing ends the worker, and the next worker finishes the recovery."""
    worker = make_worker()
    worker.start()
    worker.produce(0, 5)
    worker.until_committed(0, 5)
    worker.end(signal.SIGKILL)
    shutil.rmtree(worker.data)
    for steered in ("impatient", "deaf"):
        worker.steer(steered)
    worker.start()
    assert worker.wait() == 70
    assert "records of the changelog did not come in 3 s" in worker.log()
    for steered in ("impatient", "deaf"):
        worker.let_go(steered)
    worker.start()
    worker.produce(0, 1)
    worker.until_committed(0, 6)
    assert worker.found(0) == {"ann": [5, 4]}


def test_a_stop_that_does_not_end_is_ended(make_worker: Callable[..., StubWorker]) -> None:
    """A run that never finishes is left uncommitted after the time limit of the stop."""
    worker = make_worker()
    worker.steer("impatient")
    worker.start_held(5)
    assert worker.end(signal.SIGTERM) == 70
    assert worker.committed(0) < 0
    assert "the stop took longer than 3 s" in worker.log()


def test_a_worker_that_was_frozen_says_nothing_more(make_worker: Callable[..., StubWorker]) -> None:
    """A worker frozen beyond its session ends without writing, and another worker writes the run."""
    worker = make_worker()
    worker.steer("short-session")
    worker.start_held(5)
    with worker.frozen(5.0):
        worker.let_go("hold-0")
    assert worker.wait() == 70
    assert "its partitions may be another worker's" in worker.log()
    assert worker.changelog_records(0) == []
    worker.let_go("short-session")
    worker.start()
    worker.until_committed(0, 5)
    assert [state.folded for _, state, _ in worker.changelog_records(0)][-1] == 5


def test_a_short_pause_changes_nothing(make_worker: Callable[..., StubWorker]) -> None:
    """A worker frozen for less than its session goes on."""
    worker = make_worker()
    worker.start()
    worker.produce(0, 5)
    worker.until_committed(0, 5)
    with worker.frozen(2.0):
        pass
    worker.produce(0, 5)
    worker.until_committed(0, 10)
