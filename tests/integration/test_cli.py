"""The command line against the real broker and the real Triton."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from freshet.adapters.source import changelog_topic
from freshet.cli import app
from freshet.core.events import Event, encode_event
from freshet.core.recommendation import AsOf, Item, Reason, Recommendation, SideInputs, Timings, encode_recommendation
from freshet.core.rollout import MODEL, Rollout, encode_record
from freshet.core.state import empty_state, encode_state, fold
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.partitioner.default import murmur2
from typer.testing import CliRunner, Result

from deploy.local import Stack, create_topics, load
from deploy.local.parts import SHIPPED_KEYS
from tests.integration.independent_fold import read_topic

pytestmark = pytest.mark.integration

PARTITIONS = 3
ROOT = Path(__file__).parents[2]


@pytest.fixture
def topics(
    stack: Stack, unique: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Topics of this test's own, which the environment names."""
    names = {
        name: unique(name) for name in ("events", "items", "recommendations", "dead_letters", "models", "popularity")
    }
    create_topics(stack.bootstrap, PARTITIONS, **names)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRESHET_KAFKA", stack.bootstrap)
    monkeypatch.setenv("FRESHET_FEATURE_REPO", str(ROOT / "feature_repo"))
    monkeypatch.setenv("FRESHET_TRUSTED_KEYS", str(SHIPPED_KEYS))
    monkeypatch.setenv("FRESHET_GROUP", unique("group"))
    for name, topic in names.items():
        monkeypatch.setenv(f"FRESHET_{'DLQ' if name == 'dead_letters' else name.upper()}_TOPIC", topic)
    return names


@pytest.fixture
def producer(stack: Stack) -> Iterator[KafkaProducer]:
    """A plain client."""
    client = KafkaProducer(bootstrap_servers=stack.bootstrap)
    yield client
    client.close()


def freshet(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Run a verb in this process."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def partition_of(key: str) -> int:
    """The partition of a key, by Kafka's own rule."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % PARTITIONS


def event(number: int, user: str) -> Event:
    return Event(f"e{number}", user, "click", 881_250_949_000 + number * 1000, item_id=f"i{number}")


def made(user: str, offset: int) -> bytes:
    """A list for a user."""
    reason = Reason("i0", "click", 881_250_949_000, 0.7)
    items = [Item("i1", 2.5, "model", reasons=(reason,)), Item("i2", 1.5, "cold")]
    as_of = AsOf(partition_of(user), offset, 881_250_949_000)
    timings = Timings(881_250_949_000, 1_000_000_000_000, 1_000_000_000_001, 1_000_000_000_005, 1_000_000_000_007)
    return encode_recommendation(
        Recommendation(
            f"r{offset}", user, items, 4, as_of, SideInputs(1, 2, 3), timings, degraded=False, personalised=True
        )
    )


def test_produce_keys_by_user_and_loses_no_good_line(stack: Stack, topics: dict[str, str], tmp_path: Path) -> None:
    """`produce` keeps each user's order in the user's partition, and bad lines are named with status 1."""
    lines = [encode_event(event(n, f"u{n % 7}")) for n in range(200)]
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join([*lines[:50], b"nonsense", *lines[50:]]) + b"\n")
    result = freshet("produce", str(file), "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith("line 51: not_json")
    assert json.loads(result.stdout)["sent"] == 200
    records = read_topic(stack.bootstrap, topics["events"])
    assert sorted(record.value for record in records) == sorted(lines)
    for user in {f"u{n}" for n in range(7)}:
        own = [record for record in records if record.key == user.encode()]
        assert {record.partition for record in own} == {partition_of(user)}
        assert [record.value for record in own] == [line for n, line in enumerate(lines) if f"u{n % 7}" == user]


def test_produce_keeps_its_rate(stack: Stack, topics: dict[str, str]) -> None:
    """`--rate` paces the lines, and `--strict` stops at a bad line."""
    lines = b"\n".join(encode_event(event(n, "u")) for n in range(20))
    began = time.monotonic()
    assert freshet("produce", "-", "--rate", "20", stdin=lines).exit_code == 0
    assert time.monotonic() - began >= 0.95
    result = freshet("produce", "-", "--strict", stdin=lines + b"\n{}\n" + lines)
    assert result.exit_code == 1
    assert "line 21" in result.stderr
    assert len(read_topic(stack.bootstrap, topics["events"])) == 40


def test_produce_items_and_raw(stack: Stack, topics: dict[str, str]) -> None:
    """Catalogue lines go to the items topic by item id, and raw lines go out unchanged."""
    assert freshet("produce", "-", "--items", stdin='{"item_id":"i1","title":"One"}\n').exit_code == 0
    assert [(r.key, r.value) for r in read_topic(stack.bootstrap, topics["items"])] == [
        (b"i1", b'{"item_id":"i1","title":"One"}')
    ]
    assert freshet("produce", "-", "--raw", stdin="nonsense\n").exit_code == 0
    assert [(r.key, r.value) for r in read_topic(stack.bootstrap, topics["events"])] == [(None, b"nonsense")]


def test_a_missing_topic_is_one_line(topics: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb names a missing topic in one line."""
    for name in ("EVENTS", "RECOMMENDATIONS", "DLQ"):
        monkeypatch.setenv(f"FRESHET_{name}_TOPIC", "no-such-topic")
    for arguments in (["produce", "-"], ["tail"], ["dlq", "list"], ["dlq", "replay"]):
        result = freshet(*arguments, stdin="{}")
        assert result.exit_code == 1
        assert "topic no-such-topic does not exist" in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_tail_shows_one_user_or_all(producer: KafkaProducer, topics: dict[str, str]) -> None:
    """`tail` shows whole lists as JSON, and titles, reasons and erasures in the pretty form."""
    freshet("produce", "-", "--items", stdin='{"item_id":"i1","title":"Alien\\u001b[2J"}\n')
    for offset, user in enumerate(["ada", "bob", "ada"]):
        producer.send(topics["recommendations"], made(user, offset), user.encode())
    producer.send(topics["recommendations"], None, b"bob")
    producer.flush()
    lines = freshet("tail", "--from-beginning", "--max", "2", "--user", "ada", "--json").stdout.splitlines()
    assert [json.loads(line)["list"]["recommendation_id"] for line in lines] == ["r0", "r2"]
    pretty = freshet("tail", "--from-beginning", "--max", "1", "--user", "ada").stdout
    assert "user ada  v4" in pretty
    assert "Alien\\x1b[2J" in pretty
    assert "i0 (click 70%)" in pretty
    assert "erased" in freshet("tail", "--from-beginning", "--max", "4").stdout
    there = freshet("tail", "--from-beginning", "--max", "99", "--until-end", "--json").stdout.splitlines()
    assert len(there) == 4
    raw = freshet("tail", "--from-beginning", "--max", "1", "--user", "ada", "--raw").stdout_bytes
    assert raw == made("ada", 0) + b"\n"


def test_a_replay_of_the_topic_takes_the_promoted_version(
    producer: KafkaProducer, topics: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay of the topic takes the version that is promoted on the models topic."""
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(ROOT / "triton_models"))
    promoted = Rollout(MODEL, 7, "promoted", 1_000_000_000_000)
    producer.send(topics["models"], encode_record(promoted), promoted.key)
    producer.send(topics["events"], encode_event(event(0, "ada")), b"ada")
    producer.flush()
    result = freshet("replay", "kafka", "--out", "replayed")
    assert result.exit_code == 1
    assert "user_encoder/7" in result.stderr


def test_inspect_finds_the_newest_state_and_lists(
    stack: Stack, producer: KafkaProducer, topics: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`inspect` finds the user's newest changelog record and lists."""
    monkeypatch.setattr("freshet.client.reader.FIRST_WINDOW", 50)
    admin = KafkaAdminClient(bootstrap_servers=stack.bootstrap)
    changelog = changelog_topic(os.environ["FRESHET_GROUP"])
    admin.create_topics({changelog: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    user, partition = "ada", partition_of("ada")
    state = empty_state(partition)
    for number in range(3):
        fold(state, event(number, user), partition, number)
        producer.send(changelog, encode_state(state), user.encode(), partition=partition)
    for number in range(500):
        producer.send(changelog, encode_state(empty_state(partition)), b"x%d" % number, partition=partition)
    for offset in range(3):
        producer.send(topics["recommendations"], made(user, offset), user.encode())
    producer.flush()
    result = freshet("inspect", user, "--json", "--lists", "2")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["state"]["items"] == ["i0", "i1", "i2"]
    assert answer["state"]["folded"] == 3
    assert answer["state"]["times"] == list(state.times)
    assert answer["features_error"] is None
    assert [entry["list"]["recommendation_id"] for entry in answer["lists"]] == ["r2", "r1"]
    assert "3 click" in freshet("inspect", user).stdout
    stranger = freshet("inspect", "nobody")
    assert (stranger.exit_code, stranger.stderr) == (1, "freshet: nothing is held of user nobody\n")


def test_dead_letters_go_back_byte_for_byte_once(stack: Stack, producer: KafkaProducer, topics: dict[str, str]) -> None:
    """`dlq replay` sends each distinct letter once, with its bytes, key and a mark."""
    letters = [("not_json", b"\xff\x00", None), ("unknown_type", b'{"a":1}', b"u"), ("unknown_type", b'{"a":1}', b"u")]
    for number, (reason, value, key) in enumerate(letters):
        headers = {
            "reason": reason,
            "detail": "why",
            "origin_topic": topics["events"],
            "origin_partition": "0",
            "origin_offset": str(number),
            "sha256": "00",
        }
        encoded = [(name, text.encode()) for name, text in headers.items()]
        producer.send(topics["dead_letters"], value, key, encoded, partition=0)
    producer.flush()
    listed = [json.loads(line) for line in freshet("dlq", "list", "--json").stdout.splitlines()]
    assert {(letter["reason"], letter["origin_offset"]) for letter in listed} == {
        ("not_json", "0"),
        ("unknown_type", "1"),
        ("unknown_type", "2"),
    }
    assert len(freshet("dlq", "list", "--json", "--max", "1").stdout.splitlines()) == 1
    assert "2 unknown_type" in freshet("dlq", "list").stdout
    assert json.loads(freshet("dlq", "replay", "--dry-run", "--json").stdout)["replayed"] == 2
    assert read_topic(stack.bootstrap, topics["events"]) == []
    counts = json.loads(freshet("dlq", "replay", "--reason", "unknown_type", "--json").stdout)
    assert (counts["replayed"], counts["repeats_left_out"]) == (1, 1)
    [record] = read_topic(stack.bootstrap, topics["events"])
    assert (record.key, record.value) == (b"u", b'{"a":1}')
    assert dict(record.headers)["replayed_from"].startswith(topics["dead_letters"].encode() + b"/0/")
    freshet("dlq", "replay", "--reason", "not_json")
    assert b"\xff\x00" in {record.value for record in read_topic(stack.bootstrap, topics["events"])}


def test_dead_letters_go_to_no_other_topic(stack: Stack, producer: KafkaProducer, topics: dict[str, str]) -> None:
    """`dlq replay` refuses a letter that claims another topic."""
    forged = [("reason", b"not_json"), ("origin_topic", topics["models"].encode())]
    producer.send(topics["dead_letters"], b'{"version":1,"stage":"promoted"}', b"user_encoder", forged, partition=0)
    producer.flush()
    counts = json.loads(freshet("dlq", "replay", "--json").stdout)
    assert (counts["replayed"], counts["foreign_left_out"]) == (0, 1)
    assert read_topic(stack.bootstrap, topics["models"]) == []


# --- the demo ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_dir(parts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a demo, with nothing left running in it."""
    directory = tmp_path_factory.mktemp("demo") / "stack"
    yield directory
    subprocess.run([sys.executable, "-m", "freshet.cli", "down", "--dir", str(directory)], check=False)


def start_demo(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    patient = "import deploy.demo.run as run; run.INTERRUPTED_DRAIN_SECONDS = 30; from freshet.cli import app; app()"
    command = [sys.executable, "-c", patient, "demo", "--dir", str(directory), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_demo_ends_by_itself_with_every_list_out(demo_dir: Path) -> None:
    """The demo exits with 0 once every user's list is as of the user's last event."""
    demo = start_demo(demo_dir, "--seconds", "6", "--speed", "100")
    out, err = demo.communicate(timeout=200)
    assert demo.returncode == 0, err
    assert len(re.findall(r"^ +\d+s  in \d+/s  out \d+/s", out, re.MULTILINE)) >= 5
    assert "every user's list is as of their last event" in err
    assert not any(process.is_alive() for process in load(demo_dir).processes.values())


def look_inside(directory: Path) -> None:
    """While a worker runs, every part passes its check, and `inspect` agrees with the list it is asked about."""
    at = ("--dir", str(directory))
    patient = {"FRESHET_TRITON_DEADLINE": "10"}
    checked = json.loads(CliRunner().invoke(app, ["check", "--json", *at], env=patient).stdout)
    assert checked["ok"], checked["checks"]
    user = json.loads(freshet("tail", "--max", "1", "--json", *at).stdout)["user_id"]
    seen = json.loads(freshet("inspect", user, "--json", *at).stdout)
    assert seen["state"]["folded"] == sum(seen["state"]["counts"].values()) > 0
    assert seen["features"]["model_version"] == 1
    assert seen["lists"][0]["list"]["user_id"] == user


def test_an_interrupt_stops_all_that_the_demo_started(demo_dir: Path) -> None:
    """Ctrl-C ends the demo in order, and a second run continues."""
    demo = start_demo(demo_dir, "--speed", "100")
    assert demo.stdout is not None
    for line in demo.stdout:
        if "out" in line and "lag" in line:
            break
    look_inside(demo_dir)
    processes = load(demo_dir).processes
    assert set(processes) == {"kafka", "triton", "worker-1", "serve"}
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=100)
    assert demo.returncode == 0, err
    assert not any(process.is_alive() for process in processes.values())
