"""Replays on real parts: the same lists from every source, and a live run with kills that the code accounts for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from freshet.adapters.feast import open_feature_store
from freshet.cli import app
from freshet.core.events import Event, encode_event
from freshet.core.features import behaviour_features
from freshet.core.recommendation import decode_recommendation
from freshet.ports import FeatureRow
from freshet.settings import load_settings
from kafka import KafkaAdminClient
from typer.testing import CliRunner, Result

from deploy.local import Stack
from tests.integration.deployment import Deployment, until
from tests.integration.event_stream import stream
from tests.integration.independent_fold import read_topic
from tests.integration.read_service import Service

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
EVENTS = stream(8, 500, users=30)
POISON = [(b"{", b"user-1"), (b'{"event_id":"x"}', b"user-2"), (None, b"user-3")]
LAST = EVENTS[-1].ts
KILLS = 2


@pytest.fixture(scope="module")
def deployment(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A live run that is over: poison among its events, items that came meanwhile, one kill and one kill with a wipe.

    Its settings are in the environment of the whole module.
    """
    folder = tmp_path_factory.mktemp("replayed")
    deployment = Deployment(stack, folder, f"replayed-{time.time_ns()}", FRESHET_EXPLORATION="0.3")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in deployment.settings.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        try:
            _live(deployment)
            yield deployment
        finally:
            deployment.close()


def _live(deployment: Deployment) -> None:
    third = len(EVENTS) // 3
    for round_ in range(KILLS + 1):
        worker = deployment.worker()
        folded = partial(worker.metric, "freshet_events_folded_total")
        deployment.item(f"new-{round_}", title=f"Star Wars part {round_}", category="Sci-Fi")
        deployment.item("new-0", title=f"Titanic, cut {round_}", category="Drama")
        deployment.send(EVENTS[round_ * third : (round_ + 1) * third if round_ < KILLS else None])
        deployment.raw(*POISON[round_])
        if round_ == KILLS:
            deployment.send([Event("c1", "user-4", "user.erase", LAST), Event("c2", "user-5", "user.opt_out", LAST)])
            until(partial(_is_committed, deployment), "all is processed", worker)
            assert worker.terminate() == 0
            return
        until(lambda folded=folded: folded() > third / 3, "the worker is in mid-stream", worker)
        worker.kill()
        if round_:
            shutil.rmtree(worker.data)


def _is_committed(deployment: Deployment) -> bool:
    admin = KafkaAdminClient(bootstrap_servers=deployment.stack.bootstrap)
    try:
        offsets = admin.list_group_offsets({deployment.group: None})[deployment.group]
    finally:
        admin.close()
    return sum(offset.offset for offset in offsets.values()) == len(deployment.records("events"))


def freshet(*arguments: str) -> Result:
    """Run a verb in this process."""
    return CliRunner().invoke(app, list(arguments))


def replayed(*arguments: str) -> dict[str, Any]:
    """The summary of a replay."""
    result = freshet("replay", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def verified(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and finding of a verification."""
    result = freshet("verify", "kafka", "--json", *arguments)
    return result.exit_code, json.loads(result.stdout)


def test_a_live_run_with_kills_is_what_the_code_says(deployment: Deployment) -> None:
    """Lists, features and embeddings of a live run with kills equal the replay's."""
    status, found = verified()
    users = {event.user_id for event in EVENTS}
    assert (status, found["unverifiable"], found["examples"]) == (0, 0, [])
    assert not any(found["mismatches"].values())
    assert found["compared"]["lists"] == sum(
        record.value is not None for record in deployment.records("recommendations")
    )
    assert found["compared"]["last lists"] == found["compared"]["features"] == len(users)
    assert found["compared"]["embeddings"] == len(users) - 2
    assert verified("--feature-users", "0", "--encoder", "triton")[1]["mismatches"] == dict.fromkeys(
        found["compared"], 0
    )


def test_an_archive_verifies_the_run_and_holds_nothing_of_who_was_erased(deployment: Deployment) -> None:
    """The archive verifies the run, and lists of the erased user count as unverifiable."""
    archive = deployment.archived()
    result = freshet("verify", str(archive), "--json", "--feature-users", "0")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["examples"]) == (0, [])
    lists = [decode_recommendation(record.value) for record in deployment.records("recommendations") if record.value]
    assert found["unverifiable"] == sum(published.user_id == "user-4" for published in lists) > 0
    assert found["compared"]["lists"] == len(lists) - found["unverifiable"]
    rows = [row for file in (archive / deployment.topics["events"]).rglob("*.parquet") for row in _rows(file)]
    assert len(rows) == len(deployment.records("events"))
    assert [row["type"] for row in rows if b"user-4" in (row["key"] or b"") + (row["value"] or b"")] == ["user.erase"]
    assert sum(row["bad_reason"] == "erased" for row in rows) == sum(event.user_id == "user-4" for event in EVENTS)


def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(file).read().to_pylist()
    return rows


def test_an_item_is_explained_by_the_user_s_own_events(deployment: Deployment) -> None:
    """`explain` names the user's own events by loss, and the reason where a user opted out."""
    found = json.loads(freshet("explain", "user-7", "--json", "--top", "2").stdout)
    state = deployment.states()["user-7"]
    shown = [item["item_id"] for item in deployment.lists()["user-7"]["items"]]
    assert [explanation["item_id"] for explanation in found["items"]] == shown
    events = set(zip(state.items, state.types, state.times, strict=True))
    raised = [event for explanation in found["items"] for event in explanation["raised_by"]]
    assert raised
    assert {(event["item_id"], event["type"], event["ts"]) for event in raised} <= events
    for explanation in found["items"]:
        losses = [event["loss"] for event in explanation["raised_by"]]
        assert losses == sorted(losses, reverse=True)[:2]
        assert all(loss > 0 for loss in losses)
    assert "+" in freshet("explain", "user-7", shown[0]).stdout
    assert "no events are held of user user-5" in freshet("explain", "user-5").stderr
    assert "no place for item nothing" in freshet("explain", "user-7", "nothing").stderr


def test_what_differs_is_reported(deployment: Deployment, tmp_path: Path) -> None:
    """A changed list, a broken list, a feature and a vector that differ are named."""
    record = next(
        candidate
        for candidate in deployment.records("recommendations")
        if candidate.value and b'"user-7"' in candidate.value
    )
    changed = json.loads(record.value)
    changed["items"][0]["score"] += 0.00001
    topic = deployment.topics["recommendations"]
    deployment.producer.send(topic, json.dumps(changed).encode(), b"user-7")
    deployment.producer.send(topic, b"{}", b"user-8")
    deployment.producer.flush()
    settings = load_settings()
    store = open_feature_store(settings)
    try:
        served = _run(store.read("user-9"))
        names = [feature.name for feature in behaviour_features(settings.behaviours)]
        values = tuple(served[name] if name != "view_count" else 99 for name in names)
        newer = served["last_event_time"] * 1000 + 10_000_000
        _run(store.write([FeatureRow("user-9", newer, values)]))
        vector = [-number for number in served["embedding"]]
        _run(store.write((), [FeatureRow("user-9", newer, (vector, served["model_version"]))]))
    finally:
        store.close()
    out = tmp_path / "verification.json"
    status, found = verified("--out", str(out))
    assert status == 1
    assert found["mismatches"] == {"lists": 2, "last lists": 1, "features": 1, "embeddings": 1}
    details = {(example["kind"], example["user_id"]): example["detail"] for example in found["examples"]}
    assert details["lists", "user-7"].startswith("slot 0: published Item(")
    assert details["lists", "user-8"].startswith("record ")
    assert details["last lists", "user-7"].startswith("the newest list is as of ")
    assert details["features", "user-9"].startswith("view_count: served 99, folded ")
    assert details["embeddings", "user-9"] == f"not what version {served['model_version']} gives"
    assert json.loads(out.read_text())["verification"] == found


def _run(reading: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(reading)


def test_every_way_gives_the_same_lists(deployment: Deployment, tmp_path: Path) -> None:
    """In process and through Triton, in memory and on RocksDB, from four partitions, one, and a file: one digest.

    Poison is a dead letter of the replay with the very bytes and headers that the live worker gave it.
    """
    topic = deployment.topics["events"]
    from_one_topic = replayed("kafka", "--items", "kafka", "--out", str(tmp_path / "one"))
    assert from_one_topic["counts"]["dead letters"] == len(POISON)
    ways = [
        ("--encoder", "triton"),
        ("--state", "rocksdb", "--batch", "17"),
        ("--topic", f"{topic}.again"),
    ]
    for number, way in enumerate(ways):
        again = replayed("kafka", "--items", "kafka", "--out", str(tmp_path / str(number)), *way)
        assert again["digests"] == from_one_topic["digests"], way
        assert again["counts"] == from_one_topic["counts"]
    _same_lists(deployment, f"{topic}.again", tmp_path / "one")
    written = pq.read_table(tmp_path / "one" / "dead_letters").to_pylist()
    live = {(r.key, r.value, tuple(r.headers)) for r in deployment.records("events.dlq")}
    assert {(r["key"], r["value"], tuple(r["headers"])) for r in written} == live

    file = tmp_path / "events.jsonl"
    file.write_bytes(b"".join(encode_event(event) + b"\n" for event in EVENTS))
    from_file = replayed(str(file), "--out", str(tmp_path / "file"))
    narrow = Deployment(deployment.stack, tmp_path / "narrow", f"{deployment.group}-narrow", partitions=1)
    narrow.send(EVENTS)
    narrow.producer.close()
    from_one = replayed(f"kafka:{narrow.topics['events']}", "--out", str(tmp_path / "from-one"))
    assert from_one["digests"] == from_file["digests"]
    assert from_one["counts"] == from_file["counts"]


def _same_lists(deployment: Deployment, topic: str, folder: Path) -> None:
    """The topic holds the lists that the folder's Parquet files hold, and a tombstone for whom they have none."""
    records = read_topic(deployment.stack.bootstrap, topic)
    lists = [decode_recommendation(record.value) for record in records if record.value is not None]
    assert {record.key for record in records if record.value is None} == {b"user-4"}
    published = {
        (published.user_id, published.as_of.ts): [(item.item_id, item.score) for item in published.items]
        for published in lists
    }
    rows = pq.read_table(folder / "lists").to_pylist()
    assert len(rows) == len(lists)
    assert published == {(r["user_id"], r["ts"]): list(zip(r["items"], r["scores"], strict=True)) for r in rows}


@pytest.mark.parametrize("state", ["memory", "rocksdb"])
def test_going_on_after_a_kill_is_as_if_never_cut_off(deployment: Deployment, tmp_path: Path, state: str) -> None:
    """A resumed replay has the digest, counts and rows of a replay without a kill."""
    at = ("kafka", "--items", "kafka", "--state", state, "--features", "--training-rows")
    whole = replayed(*at, "--out", str(tmp_path / "whole"))
    often = "import freshet.replay.pace as run; run.CHECKPOINT_SECONDS = 0.2; from freshet.cli import app; app()"
    cut = tmp_path / "cut"
    command = [sys.executable, "-c", often, "replay", *at, "--batch", "20", "--speed", "200x", "--out", str(cut)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        until(lambda: len(list(cut.glob("lists/*.parquet"))) > 1, "there are checkpoints")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (cut / "replay.json").exists()
    refused = freshet("replay", *at, "--out", str(cut))
    assert "was cut off: --resume goes on" in refused.stderr
    foreign = freshet("replay", *at, "--out", str(cut), "--resume", "--model", "1", "--burn-in", "0.5")
    assert "holds another replay" in foreign.stderr
    again = replayed(*at, "--out", str(cut), "--resume")
    assert (again["digests"], again["counts"]) == (whole["digests"], whole["counts"])
    for kind in ("lists", "features", "training_rows", "dead_letters"):
        assert pq.read_table(cut / kind).equals(pq.read_table(tmp_path / "whole" / kind)), kind
    assert sorted(path.name for path in cut.iterdir() if path.is_file()) == ["replay.json"]


def test_what_cannot_be_replayed_is_one_line(deployment: Deployment, tmp_path: Path) -> None:
    """A replay that cannot run is one line with the remedy and leaves nothing behind."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    lines = tmp_path / "events.jsonl"
    lines.write_bytes(encode_event(EVENTS[0]) + b"\n")
    out = ("--out", str(tmp_path / "out"))
    live, events = deployment.topics["recommendations"], deployment.topics["events"]
    refusals = {
        ("kafka:nowhere", *out): "topic nowhere does not exist",
        ("nowhere.jsonl", *out): "nowhere.jsonl does not exist",
        (str(tmp_path / "full"), *out): "holds no archived events",
        ("kafka", "--model", "9", *out): "user_encoder/9",
        ("kafka", "--offsets", "7:0-9", *out): f"topic {events} has no partition 7",
        ("kafka", "--offsets", "0:5", *out): "--offsets is PARTITION:FIRST-LAST",
        ("kafka", "--from", "2090-01-01", *out): "holds no records in the window",
        ("kafka", "--out", str(tmp_path / "full")): "is not empty",
        ("kafka", "--topic", live, *out): "is the live recommendations topic",
        ("kafka", "--topic", events, *out): "is the live events topic",
        ("kafka", "--topic", f"{deployment.group}-user_state-changelog", *out): "belongs to the live group",
        ("kafka", "--topic", "x", "--model", "1", "--model", "2", *out): "--topic takes the lists of one --model",
        ("kafka", "--fold-only", "--evaluate", *out): "--fold-only makes no lists",
        ("kafka", "--speed", "fast", *out): "--speed is a number of times",
        ("kafka", "--verify"): "`freshet verify SOURCE` compares a live run with its log",
    }
    commands = {("replay", *arguments): line for arguments, line in refusals.items()}
    commands["verify", str(lines)] = "has no offsets"
    commands["verify", "kafka", "--out", str(lines)] = "exists: choose another --out"
    for arguments, line in commands.items():
        result = freshet(*arguments)
        assert result.exit_code == 1, arguments
        assert line in result.stderr, (arguments, result.stderr)
        assert len(result.stderr.splitlines()) == 1, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "full"]


def test_windows_and_offsets(deployment: Deployment, tmp_path: Path) -> None:
    """Only records in the window and the offsets are replayed."""
    fold = ("kafka", "--fold-only")
    windowed = replayed(*fold, "--offsets", "0:3-12", "--offsets", "2:0-4", "--out", str(tmp_path / "offsets"))
    assert windowed["records"] == 15
    records = deployment.records("events")
    middle = sorted(record.timestamp for record in records)[len(records) // 2]
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(middle / 1000)) + f".{middle % 1000:03d}"
    before = replayed(*fold, "--until", moment, "--out", str(tmp_path / "before"))["records"]
    after = replayed(*fold, "--from", moment, "--out", str(tmp_path / "after"))["records"]
    assert before == sum(record.timestamp < middle for record in records)
    assert before + after == len(records)


READ_SERVICE = "http://127.0.0.1:8080"


def test_the_readme_s_transcript_runs(stack: Stack, tmp_path: Path) -> None:
    """The README's commands and Python run as printed, and the verification finds 0 differences."""
    blocks = []
    for title in ("Produce and subscribe", "Replay"):
        section = (ROOT / "README.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
        for language, block in re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL):
            blocks.append(f".venv/bin/python - <<'END'\n{block}END\n" if language == "python" else block)
    script, count = re.subn(r"^\.venv/bin/freshet (up|down)\b.*\n", "", "".join(blocks), flags=re.MULTILINE)
    assert count == 1  # the test brings its own stack
    assert "verify kafka" in script
    assert "freshet.Lists" in script
    assert READ_SERVICE in script
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".parts").symlink_to(ROOT / ".parts")
    deployment = Deployment(stack, tmp_path, f"transcript-{time.time_ns()}", partitions=2)
    service = None
    try:
        deployment.worker()
        service = Service(deployment)
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", script.replace(READ_SERVICE, service.address)],
            cwd=tmp_path,
            env=os.environ | deployment.settings | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    finally:
        if service is not None:
            service.process.kill()
            service.process.wait()
        deployment.close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"user_id":"ada"' in done.stdout
