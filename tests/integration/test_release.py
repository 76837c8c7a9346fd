"""The life of a version on a real Triton, a real broker and a real worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from freshet.bundle.bundle import SIGNATURE, TextEncoderFacts, read_manifest, sha256, write_manifest
from freshet.bundle.text_encoder import GRAPH, TOKENIZER, served_folder
from freshet.core.rollout import MODEL, Rollout
from freshet.release.errors import ReleaseError
from freshet.release.publish import Service, publish_bundle, roll_back
from freshet.release.repository import only_publisher, remove, versions
from freshet.release.server import Server
from freshet.release.tensorrt.stamp import Stamp, encode_stamp

from deploy import local
from deploy.local import Stack
from tests.altered_bundles import SHIPPED, Keys, altered, renamed_items, sign_anyway, with_nan
from tests.integration.deployment import Deployment, Worker, until
from tests.integration.event_stream import stream
from tests.memory_ports import MemoryRecords
from tests.parity.wrong_items import misnumber

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(start_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A Triton of this module's own, to publish into."""
    return start_stack(tmp_path_factory.mktemp("release"), kafka=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Whom this module trusts."""
    return Keys(tmp_path_factory.mktemp("trust") / "keys")


@pytest.fixture
def service(server: Stack, keys: Keys) -> Service:
    """Where to publish."""
    return Service(server.models, server.triton, keys.folder, 5)


@pytest.fixture
def deployment(
    stack: Stack, server: Stack, keys: Keys, tmp_path: Path, unique: Callable[[str], str]
) -> Iterator[Deployment]:
    """A deployment whose workers serve from this module's Triton."""
    name = unique("release")
    (tmp_path / name).mkdir()
    made = Deployment(
        stack,
        tmp_path / name,
        name,
        FRESHET_TRITON=server.triton_grpc,
        FRESHET_TRITON_CONTROL_KEY=str(server.triton.control_key),
        FRESHET_MODEL_REPOSITORY=str(server.models),
        FRESHET_TRUSTED_KEYS=str(keys.folder),
        FRESHET_CANARY_LISTS="50",
        FRESHET_CANARY_LATENCY_RATIO="100",  # so few lists say little of the time they take on a busy machine
    )
    yield made
    made.close()


def serving(service: Service) -> int:
    """The newest version that is there and answers with its golden outputs."""
    triton = Server(service.triton)
    try:
        newest = triton.ready()[-1]
        triton.try_golden(service.repository / MODEL / str(newest), newest)
    finally:
        triton.close()
    return newest


def debris(service: Service) -> list[str]:
    """What lies beside the repository besides the lock."""
    beside = service.repository.parent / f".{service.repository.name}-publish"
    return sorted(file.name for file in beside.iterdir() if file.name != "lock")


STAMP = encode_stamp(
    Stamp("10.4.0", "560.35.03", "9.0", "0" * 64, "0" * 64, fp16=True, tolerance=0.05, off=0.01)
).encode()
GOLDEN = {"golden.npz": b""}


def reading(bundle: Path, encoder: TextEncoderFacts, keys: Keys) -> Path:
    """The bundle, of which its manifest says that a text encoder read its texts."""
    write_manifest(bundle, msgspec.structs.replace(read_manifest(bundle), text_encoder=encoder))
    sign_anyway(bundle, keys.private)
    return bundle


def bad_bundles(folder: Path, keys: Keys) -> Iterator[tuple[Path, str]]:
    """Every kind of bundle that must not be served, with what is said of it."""
    strangers = Keys(folder / "strangers")
    flipped = bytearray((SHIPPED / "model.onnx").read_bytes())
    flipped[1000] ^= 1
    with np.load(SHIPPED / "golden.npz") as stored:
        golden = dict(stored)
    np.savez(folder / "golden.npz", **{**golden, "topk_score": golden["topk_score"] + 1})
    larger = {name: golden[name] * np.float32(1.1) for name in ("topk_score", "embedding")}
    np.savez(folder / "larger.npz", **{**golden, **larger})
    misnumbered = altered(folder / "other items", {})
    misnumber(misnumbered)
    unsigned = altered(folder / "unsigned", {})
    (unsigned / SIGNATURE).unlink()
    torn = altered(folder / "torn", {})
    (torn / "item_tower.onnx").unlink()
    signed = {
        "NaN": ({"model.onnx": with_nan()}, "holds NaN"),
        "shapes": ({"model.onnx": (SHIPPED / "item_tower.onnx").read_bytes()}, "takes text_embedding"),
        "no graph": ({"model.onnx": b"x"}, "cannot be read as ONNX"),
        "golden": ({"golden.npz": (folder / "golden.npz").read_bytes()}, "golden.npz does not fit the version"),
        "answers": ({"golden.npz": (folder / "larger.npz").read_bytes()}, "topk_score is off its golden values"),
        "items": (
            {name: (misnumbered / name).read_bytes() for name in ("golden.npz", "item_vectors.npy")},
            "topk_index is off its golden values",
        ),
    }
    yield altered(folder / "flipped", {"model.onnx": bytes(flipped)}), "differs from the sha256"
    yield torn, "lacks item_tower.onnx"
    yield unsigned, "is not signed"
    yield altered(folder / "foreign", {"MODEL_CARD.md": b"# ours"}, strangers.private), "no key of"
    for name, (files, why) in signed.items():
        yield altered(folder / name, files, keys.private), why
    yield (
        reading(altered(folder / "texts", {}), TextEncoderFacts("0" * 64, "0" * 64, 384), keys),
        "another text encoder",
    )
    stamped = altered(folder / "stamped", {}, keys.private)
    (stamped / "model.plan").write_bytes(b"plan")
    (stamped / "plan.json").write_bytes(STAMP)
    yield stamped, "model.plan cannot be served here"
    stray = altered(folder / "stray", {}, keys.private)
    (stray / "model.py").write_text("import os")
    yield stray, "model.py is not in the manifest"


def test_every_bad_bundle_is_refused_in_one_line_while_the_old_version_serves(
    service: Service, keys: Keys, tmp_path: Path
) -> None:
    """A bad bundle is refused in one line, leaves nothing behind, and the next publication works."""
    before = versions(service.repository)
    records = MemoryRecords(Rollout(MODEL, max(before), "promoted", 0))
    for bundle, why in bad_bundles(tmp_path, keys):
        with pytest.raises(ReleaseError) as refused:
            publish_bundle(bundle, service, records)
        assert why in str(refused.value)
        assert "\n" not in str(refused.value)
        assert versions(service.repository) == before
        assert serving(service) == max(before)
    assert (len(records.steps), debris(service)) == (1, [])
    published = publish_bundle(SHIPPED, service, records)
    assert (published.version, published.reason) == (max(before) + 1, "")


def test_a_version_of_the_served_text_encoder_is_published(service: Service, keys: Keys, tmp_path: Path) -> None:
    """A version that names both files of the text encoder in the model repository comes into service."""
    folder = served_folder(service.repository)
    assert folder is not None
    encoder = TextEncoderFacts(sha256(folder / GRAPH), sha256(folder / TOKENIZER), 384)
    records = MemoryRecords(Rollout(MODEL, max(versions(service.repository)), "promoted", 0))
    published = publish_bundle(reading(altered(tmp_path / "texts", {}), encoder, keys), service, records)
    assert serving(service) == published.version


@pytest.mark.parametrize(("name", "where"), [("copied", "leave"), ("loaded", "leave"), ("golden", "leave")])
def test_a_killed_publisher_leaves_the_old_version_serving(service: Service, keys: Keys, name: str, where: str) -> None:
    """After a SIGKILL at any step the old version answers, and the next publication removes the rest."""
    live = max(versions(service.repository))
    triton = [service.triton.address, service.triton.control_key]
    arguments = [SHIPPED, service.repository, *triton, keys.folder, live, name, where]
    command = [sys.executable, "-m", "tests.integration.publisher", *map(str, arguments)]
    killed = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, b"")
    triton = Server(service.triton)
    triton.try_golden(service.repository / MODEL / str(live), live)
    triton.close()
    records = MemoryRecords(Rollout(MODEL, live, "promoted", 0))
    published = publish_bundle(SHIPPED, service, records).version
    assert versions(service.repository) >= {live, published}
    assert serving(service) == published == live + 1
    assert debris(service) == []


def test_one_publisher_at_a_time(service: Service) -> None:
    """A second publisher is refused and changes nothing."""
    before = versions(service.repository)
    records = MemoryRecords(Rollout(MODEL, max(before), "promoted", 0))
    with only_publisher(service.repository), pytest.raises(ReleaseError, match="somebody else is publishing"):
        publish_bundle(SHIPPED, service, records)
    assert versions(service.repository) == before


def test_two_publishers_at_once_end_well(deployment: Deployment, service: Service) -> None:
    """Of two publishers at once each succeeds or is refused, and exactly the announced versions exist."""
    before = versions(service.repository)
    command = [sys.executable, "-m", "freshet.cli", "publish", str(SHIPPED), "--json"]
    racing = [
        subprocess.Popen(command, env=os.environ | deployment.settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [publisher.communicate() for publisher in racing]
    published = {json.loads(out)["version"] for publisher, (out, _) in zip(racing, said, strict=True) if out}
    refused = [err.decode() for publisher, (_, err) in zip(racing, said, strict=True) if publisher.returncode]
    assert (len(published), len(refused)) in {(1, 1), (2, 0)}
    assert all("somebody else is publishing into" in err.splitlines()[-1] for err in refused)
    told = deployment.freshet("models")
    assert {step["version"] for step in told["versions"]} == {max(before), *published}
    assert told["live"] == serving(service) == max(published)
    assert published <= versions(service.repository) <= before | published
    assert debris(service) == []


def test_rollbacks_in_a_row_go_back_as_far_as_versions_are_kept(service: Service) -> None:
    """Rollbacks in a row reach every kept version, and then name the remedy."""
    first = max(versions(service.repository))
    records = MemoryRecords(Rollout(MODEL, first, "promoted", 0))
    for _ in range(3):
        publish_bundle(SHIPPED, service, records)
    triton = Server(service.triton)
    for live in (first + 2, first + 1):
        assert roll_back(service, records, "", lambda _name: nullcontext())[1] == records.read().live == live
        assert live in triton.ready()
        triton.try_golden(service.repository / MODEL / str(live), live)
    triton.close()
    remove(service.repository, [first])
    with pytest.raises(
        ReleaseError, match=f"version {first} is no longer kept, live is {first + 1}: `freshet publish`"
    ):
        roll_back(service, records, "", lambda _name: nullcontext())
    assert debris(service) == []


def test_from_shadow_to_promotion_and_back(
    deployment: Deployment, service: Service, keys: Keys, tmp_path: Path
) -> None:
    """A version is compared unseen, then made for a share of the users, then for all, and taken back.

    While it is made for a share, a verification makes the lists of both versions again, and none differs.
    """
    worker = deployment.worker()
    users = 300
    deployment.send(stream(1, 600, users=users))
    deployment.settle()
    first = _newest_lists(deployment)
    assert len({version for version, _ in first.values()}) == 1
    live = next(iter(first.values()))[0]
    candidate = deployment.freshet("publish", str(SHIPPED), "--stage", "shadow")["version"]
    assert candidate > live
    deployment.send(stream(1, 400, users=users, start=600))
    until(lambda: _compared(deployment) > 0, "the candidate is compared", worker)
    told = deployment.freshet("models")
    [report] = told["workers"]
    assert (told["live"], told["candidate"]["stage"], report["obeys"]) == (live, "shadow", True)
    assert report["comparison"]["overlap"] == 1.0
    assert report["comparison"]["score_gap"] == 0.0
    assert {version for version, _ in _newest_lists(deployment).values()} == {live}

    assert "is in shadow: promote it or roll it back first" in deployment.freshet("publish", str(SHIPPED), fails=True)
    deployment.freshet("promote", "--stage", "canary", "--share", "0.3")
    deployment.send(stream(1, 900, users=users, start=1000))
    deployment.settle()
    made = _newest_lists(deployment)
    canary = {user for user, (version, _) in made.items() if version == candidate}
    assert {version for version, _ in made.values()} == {live, candidate}
    assert users * 0.15 < len(canary) < users * 0.45
    verified = deployment.freshet("verify", "kafka", "--feature-users", "0")
    assert verified["compared"]["lists"] == len(deployment.records("recommendations"))
    assert (verified["unverifiable"], verified["examples"]) == (0, [])
    deployment.send(stream(1, 900, users=users, start=2000))
    deployment.settle()
    later = {user for user, (version, _) in _newest_lists(deployment).items() if version == candidate}
    assert canary <= later

    deployment.freshet("promote")
    deployment.send(stream(1, 300, users=users, start=3000))
    deployment.settle()
    deployment.freshet("rollback", "--reason", "a test")
    deployment.send(stream(1, 300, users=users, start=4000))
    deployment.settle()
    told = deployment.freshet("models")
    assert (told["live"], told["candidate"]) == (live, None)
    assert told["versions"][0]["reason"] == "a test"
    _no_version_goes_back_unflagged(deployment)
    deployment.check()
    assert not any(json.loads(record.value)["degraded"] for record in deployment.records("recommendations"))


def test_a_canary_that_ranks_something_else_is_rolled_back(
    deployment: Deployment, service: Service, keys: Keys, tmp_path: Path
) -> None:
    """The worker rolls back a canary that ranks other items, and all users return for good."""
    worker = deployment.worker()
    deployment.send(stream(2, 300, users=200))
    deployment.settle()
    live = deployment.freshet("models")["ready"][-1]
    other = renamed_items(tmp_path / "renamed", keys.private)
    candidate = deployment.freshet("publish", str(other), "--stage", "canary", "--share", "0.5")["version"]
    assert "overlap" in _rolled_back(deployment, worker, candidate)
    assert deployment.freshet("models")["live"] == live
    until(lambda: worker.metric("freshet_candidate_version") == 0, "the worker obeys", worker)
    deployment.send(stream(2, 400, users=200, start=90_000))
    deployment.settle()
    assert {version for version, _ in _newest_lists(deployment).values()} == {live}
    _no_version_goes_back_unflagged(deployment)


@contextmanager
def hung(server: Stack, version: int) -> Iterator[None]:
    """A version that answers nobody: Triton's process for it is stopped."""
    tasks = Path(f"/proc/{server.processes['triton'].pid}/task").glob("*/children")
    children = [int(pid) for task in tasks for pid in task.read_text().split()]
    mark = f"/{MODEL}/{version}/".encode()
    [pid] = [child for child in children if mark in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:  # going on, it may bring the whole server down with it, at some time later
        local.kill_part(server, "triton")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        local.start_part(server, "triton")


def test_a_canary_that_hangs_is_rolled_back(
    deployment: Deployment, server: Stack, service: Service, keys: Keys
) -> None:
    """A canary that never answers is rolled back, and all users have the live version's lists."""
    deployment.settings["FRESHET_TRITON_DEADLINE"] = "1"
    worker = deployment.worker()
    deployment.send(stream(2, 300, users=200))
    deployment.settle()
    live = deployment.freshet("models")["ready"][-1]
    candidate = deployment.freshet("publish", str(SHIPPED), "--stage", "canary", "--share", "0.5")["version"]
    with hung(server, candidate):
        assert "of its inferences failed" in _rolled_back(deployment, worker, candidate)
        until(lambda: worker.metric("freshet_candidate_version") == 0, "the worker obeys", worker)
        deployment.send(stream(2, 400, users=200, start=90_000))
        deployment.settle()
        made = [json.loads(record.value) for record in deployment.records("recommendations")]
        assert {published["degraded"] for published in made if published["model_version"] == candidate} == {True}
        assert {version for version, _ in _newest_lists(deployment).values()} == {live}
        _no_version_goes_back_unflagged(deployment)


def test_triton_restarted_comes_back_with_what_was_live(
    deployment: Deployment, server: Stack, service: Service, keys: Keys
) -> None:
    """After restarts Triton has both versions, and the worker serves them."""
    worker = deployment.worker()
    live = deployment.freshet("models")["ready"][-1]
    candidate = deployment.freshet("publish", str(SHIPPED), "--stage", "canary", "--share", "0.5")["version"]
    worker.kill()
    local.kill_part(server, "triton")
    local.start_part(server, "triton")
    triton = Server(service.triton)
    assert triton.ready() == [live, candidate]
    triton.close()
    again: Worker = deployment.worker()
    until(lambda: again.get("/metrics")[0] == 200, "the worker tells its metrics", again)
    assert again.metric("freshet_model_version") == live
    assert again.metric("freshet_candidate_version") == candidate
    deployment.freshet("rollback")


def _rolled_back(deployment: Deployment, worker: Worker, candidate: int) -> str:
    """Stream until the newest version, the candidate, is rolled back; the reason on record."""
    rounds = count(1)

    def rolled_back() -> bool:
        deployment.send(stream(2, 200, users=200, start=next(rounds) * 1000))
        [newest, *_] = deployment.freshet("models")["versions"]
        return (newest["version"], newest["stage"]) == (candidate, "rolled_back")

    until(rolled_back, "the canary is rolled back", worker)
    reason: str = deployment.freshet("models")["versions"][0]["reason"]
    return reason


def _compared(deployment: Deployment) -> int:
    return sum(worker["comparison"]["lists"] for worker in deployment.freshet("models")["workers"])


def _newest_lists(deployment: Deployment) -> dict[str, tuple[int, int]]:
    """Each user's newest list: its version and offset."""
    return {user: (made["model_version"], made["as_of"]["offset"]) for user, made in deployment.lists().items()}


def _no_version_goes_back_unflagged(deployment: Deployment) -> None:
    """Per user the version and the offset never go back, unless the topic says that the version was rolled back."""
    ended = {
        json.loads(record.value)["version"]: record.offset
        for record in deployment.records("models")
        if json.loads(record.value).get("stage") == "rolled_back"
    }
    newest: dict[str, dict[str, Any]] = {}
    for record in deployment.records("recommendations"):
        made, before = json.loads(record.value), newest.get(record.key.decode())
        if before is not None:
            assert made["as_of"]["offset"] >= before["as_of"]["offset"]
            if made["model_version"] < before["model_version"]:
                assert made["side_inputs"]["models"] >= ended[before["model_version"]]
        newest[record.key.decode()] = made
