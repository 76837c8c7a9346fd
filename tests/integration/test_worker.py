"""The worker on real parts: a real broker, Triton with the trained model, and Feast."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore
from freshet.core.events import VISIT, Event
from kafka import KafkaAdminClient

from deploy import local
from deploy.local import Stack
from tests.integration.deployment import Deployment, Worker, until
from tests.integration.event_stream import stream

pytestmark = pytest.mark.integration

NewDeployment = Callable[..., Deployment]


@pytest.fixture
def new_deployment(stack: Stack, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[NewDeployment]:
    """Makes worlds and closes them."""
    worlds: list[Deployment] = []

    def make(**options: object) -> Deployment:
        name = unique("deployment")
        worlds.append(Deployment(stack, tmp_path / name, name, **options))
        (tmp_path / name).mkdir(exist_ok=True)
        return worlds[-1]

    yield make
    for deployment in worlds:
        deployment.close()


def committed(deployment: Deployment) -> dict[int, int]:
    """The group's committed offset per partition."""
    admin = KafkaAdminClient(bootstrap_servers=deployment.stack.bootstrap)
    try:
        offsets = admin.list_group_offsets({deployment.group: None})[deployment.group]
    finally:
        admin.close()
    return {
        partition.partition: offset.offset
        for partition, offset in offsets.items()
        if partition.topic == deployment.topics["events"]
    }


def test_events_become_fresh_lists(new_deployment: NewDeployment) -> None:
    """Each user's state is the fold of the log, and the last list is as of the last event."""
    deployment = new_deployment(applied=False)
    worker = deployment.worker()
    deployment.send(stream(1, 600))
    deployment.settle()
    deployment.check()
    for user, made in deployment.lists().items():
        items = [item["item_id"] for item in made["items"]]
        assert len(items) == len(set(items)) == 10
        seen = set(deployment.states()[user].items) if user == "user-0" else set()
        assert not seen & set(items)
        assert made["model_version"] == 1
        assert made["personalised"]
        assert not made["degraded"]
        assert made["timings"]["broker"] <= made["timings"]["state"] <= made["timings"]["publish"]
        assert any(item["reasons"] for item in made["items"])
    folded = sum(state.folded for state in deployment.expected()[0].values())
    until(lambda: worker.metric("freshet_events_folded_total") == folded, "the worker says what it folded", worker)
    visits = [Event(f"visit-{user}", user, VISIT, 890_900_000_000) for user in ("user-0", "somebody new")]
    deployment.send(visits)
    deployment.settle()
    deployment.check()
    answers = deployment.lists()
    assert [answers[visit.user_id]["visits"] for visit in visits] == [[visit.event_id] for visit in visits]
    assert [answers[visit.user_id]["personalised"] for visit in visits] == [True, False]
    assert worker.terminate() == 0
    assert sum(committed(deployment).values()) == len(deployment.records("events"))


def test_killed_in_mid_stream(new_deployment: NewDeployment) -> None:
    """After SIGKILLs the state equals an independent fold, from local files and from the changelog alone."""
    deployment = new_deployment()
    for round_, wiped in enumerate((False, True, False)):
        worker = deployment.worker()
        deployment.send(stream(2, 1500, users=150, start=round_ * 1500))
        in_mid_stream = partial(_folded, worker, 200)
        until(in_mid_stream, "the worker is in mid-stream", worker)
        worker.kill()
        if wiped:
            shutil.rmtree(worker.data)
    deployment.worker()
    deployment.settle()
    deployment.check()


def test_two_workers_share_and_hand_over(new_deployment: NewDeployment) -> None:
    """A second worker takes partitions over and takes all when the first leaves, and nothing is lost."""
    deployment = new_deployment()
    first = deployment.worker("w1")
    deployment.send(stream(3, 600))
    second = deployment.worker("w2")
    deployment.send(stream(3, 1200, start=600))
    until(lambda: second.metric("freshet_events_folded_total") > 0, "the second worker takes part", first, second)
    assert first.terminate() == 0
    deployment.send(stream(3, 600, start=1800))
    deployment.settle()
    deployment.check()


def test_bad_input_is_dead_lettered(new_deployment: NewDeployment) -> None:
    """Each poison record is a dead letter with reason, origin and digest, and good events are folded."""
    deployment = new_deployment()
    worker = deployment.worker()
    good = stream(4, 200)
    poison: list[tuple[bytes | None, bytes | None, str]] = [
        (None, b"user-1", "empty"),
        (b"", b"user-1", "empty"),
        (b"{", b"user-1", "not_json"),
        (b"\xff\xfe\x00", b"user-1", "not_json"),
        (b"[" * 20_000, b"user-1", "not_json"),
        (b"[]", b"user-1", "invalid"),
        (b"NaN", b"user-1", "not_json"),
        (b'{"event_id":"x","user_id":"user-1","type":"view","ts":890000000000}', b"user-1", "missing_item"),
        (
            b'{"event_id":"x","user_id":"user-1","type":"hover","ts":890000000000,"item_id":"1"}',
            b"user-1",
            "unknown_type",
        ),
        (b'{"event_id":"x","user_id":"user-1","type":"view","ts":890000000,"item_id":"1"}', b"user-1", "invalid"),
        (b'{"event_id":"x","user_id":"user-1","type":"view","ts":"now","item_id":"1"}', b"user-1", "invalid"),
        (b'{"event_id":"","user_id":"user-1","type":"view","ts":890000000000,"item_id":"1"}', b"user-1", "invalid"),
        (
            b'{"event_id":"x","user_id":"user-2","type":"view","ts":890000000000,"item_id":"1"}',
            b"user-1",
            "key_mismatch",
        ),
        (b'{"event_id":"x","user_id":"user-2","type":"view","ts":890000000000,"item_id":"1"}', None, "key_mismatch"),
        (b'{"event_id":"' + b"x" * 70_000 + b'"}', b"user-1", "too_large"),
    ]
    for number, event in enumerate(good):
        deployment.send([event])
        if number < len(poison):
            deployment.raw(*poison[number][:2])
    deployment.settle()
    deployment.check()
    letters = deployment.records("events.dlq")
    reasons = [dict(letter.headers)["reason"].decode() for letter in letters]
    assert sorted(reasons) == sorted(reason for _, _, reason in poison)
    origin = {(record.partition, record.offset): record for record in deployment.records("events")}
    for letter in letters:
        headers = {name: value.decode() for name, value in letter.headers}
        source = origin[int(headers["origin_partition"]), int(headers["origin_offset"])]
        assert (letter.key, letter.value) == (source.key, source.value)
        assert headers["origin_topic"] == deployment.topics["events"]
        assert len(headers["sha256"]) == 64
    assert worker.process.poll() is None


def test_triton_away_and_back(new_deployment: NewDeployment, stack: Stack) -> None:
    """Without Triton lists are degraded and states fold, and with Triton back lists are personal."""
    deployment = new_deployment()
    worker = deployment.worker()
    deployment.send(stream(5, 200))
    deployment.settle()
    local.kill_part(stack, "triton")
    try:
        deployment.send(stream(5, 200, start=200))
        deployment.settle()
        deployment.check()
        assert any(made["degraded"] for made in deployment.lists().values())
        until(lambda: worker.get("/readyz")[0] == 503, "the worker says that it is not ready", worker)
    finally:
        local.start_part(stack, "triton")
    until(lambda: worker.get("/readyz")[0] == 200, "the worker is ready again", worker)
    deployment.send(stream(5, 400, start=400))
    deployment.settle()
    deployment.check()
    lists = deployment.lists().values()
    assert not any(made["degraded"] for made in lists)
    verified = deployment.freshet("verify", "kafka", "--feature-users", "0")
    assert (verified["unverifiable"], verified["examples"]) == (0, [])
    assert verified["compared"]["lists"] == len(deployment.records("recommendations"))


def test_a_new_item_is_rankable_at_once(new_deployment: NewDeployment) -> None:
    """A new item is ranked by its text, and leaves the lists when unavailable."""
    deployment = new_deployment()
    deployment.worker()
    fan = [
        Event(f"s{n}", "fan", "purchase", 890_000_000_000 + n * 1000, item)
        for n, item in enumerate(("50", "172", "181"))
    ]
    deployment.send(fan)
    deployment.settle()
    favourite = deployment.lists()["fan"]["items"][0]["item_id"]
    deployment.item("new-1", title="Star Wars: The Next Saga (1998)", category="Action Adventure Romance Sci-Fi War")
    deployment.item(favourite, title="gone", available=False)

    def items_embedded() -> bool:
        return deployment.workers[0].metric("freshet_cold_items") >= 1

    until(items_embedded, "the new item has a place", *deployment.workers)
    deployment.send([Event("s9", "fan", "purchase", 890_000_100_000, "228")])
    deployment.settle()
    made = deployment.lists()["fan"]
    ranked = {item["item_id"]: item for item in made["items"]}
    assert favourite not in ranked
    if "new-1" in ranked:
        assert ranked["new-1"]["source"] == "cold"
    assert made["side_inputs"]["items"] >= 1


def test_users_control_their_profile(new_deployment: NewDeployment) -> None:
    """Opt-out and erasure empty state, features and output, and an opt-in starts anew."""
    deployment = new_deployment()
    deployment.worker()
    base = 890_000_000_000
    for user in ("out", "gone", "stays"):
        deployment.send(Event(f"{user}{n}", user, "purchase", base + n, str(50 + n)) for n in range(5))
    deployment.settle()
    deployment.send(
        [
            Event("c1", "out", "user.opt_out", base + 10),
            Event("c2", "gone", "user.erase", base + 10),
            Event("x1", "out", "view", base + 11, "1"),
            Event("x2", "gone", "view", base + 11, "1"),
        ]
    )
    until(
        lambda: "gone" not in deployment.lists() and not deployment.lists()["out"]["personalised"],
        "controls are honoured",
        *deployment.workers,
    )
    states = deployment.states()
    assert states["out"].items == states["gone"].items == []
    assert states["out"].folded == states["gone"].folded == 0
    assert all(item["source"] == "popular" for item in deployment.lists()["out"]["items"])
    features = deployment.freshet("inspect", "out")["features"]
    assert not any(features.values()), features
    assert any(deployment.freshet("inspect", "stays")["features"].values())
    deployment.send([Event("c3", "out", "user.opt_in", base + 20), Event("x3", "out", "view", base + 21, "7")])
    until(lambda: deployment.lists()["out"]["personalised"], "opted in again", *deployment.workers)
    assert deployment.states()["out"].items == ["7"]


def _folded(worker: Worker, count: int) -> bool:
    return worker.metric("freshet_events_folded_total") > count


def test_features_are_the_fold_on_redis(new_deployment: NewDeployment, redis: str) -> None:
    """With Redis, the features that Feast reads are the fold."""
    deployment = new_deployment(FRESHET_ONLINE_STORE=f"redis://{redis}")
    worker = deployment.worker()
    deployment.send(stream(6, 400, users=20))
    deployment.settle()
    assert worker.terminate() == 0
    store = FeatureStore(fs_yaml_file=deployment.folder / "feast" / "feature_store.yaml")
    users, _ = deployment.expected()
    names = sorted(users)
    rows = store.get_online_features(
        _all_features(store),
        [{"user_id": user} for user in names],
    ).to_dict()
    lists = deployment.lists()
    for row, user in enumerate(names):
        expected = users[user]
        assert rows["recent_items"][row] == expected.items[-50:]
        assert {kind: rows[f"{kind}_count"][row] for kind in ("view", "click", "purchase")} == {
            kind: expected.counts[kind] for kind in ("view", "click", "purchase")
        }
        assert rows["purchase_spend"][row] == pytest.approx(expected.spend["purchase"], rel=1e-6)
        assert rows["model_version"][row] == lists[user]["model_version"]
        assert len(rows["embedding"][row]) == 64


def test_hot_swaps_under_load(new_deployment: NewDeployment, stack: Stack) -> None:
    """Versions swapped under load leave no degraded list and no list of mixed versions."""
    deployment = new_deployment()
    worker = deployment.worker()
    versions = [1]
    for round_ in range(3):
        deployment.send(stream(7, 400, start=round_ * 400))
        versions.append(deployment.freshet("publish", str(stack.models / "user_encoder" / "1"))["version"])
        deployment.send(stream(7, 200, start=2000 + round_ * 200))
        until(lambda: worker.metric("freshet_model_version") == versions[-1], "the version is live", worker)
    deployment.send(stream(7, 200, start=4000))
    deployment.settle()
    deployment.check()
    per_user: dict[str, list[int]] = {}
    for record in deployment.records("recommendations"):
        made = json.loads(record.value)
        assert not made["degraded"]
        per_user.setdefault(record.key.decode(), []).append(made["model_version"])
    assert all(seen == sorted(seen) for seen in per_user.values())
    assert max(seen[-1] for seen in per_user.values()) == versions[-1]


def _all_features(store: Any) -> list[str]:
    return [
        f"{view.name}:{field.name}"
        for view in store.list_feature_views()
        for field in view.schema
        if field.name != "user_id"
    ]
