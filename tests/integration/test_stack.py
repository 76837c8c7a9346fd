"""The local stack itself: it starts, survives, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from tritonclient import grpc as triton_grpc

from deploy import local
from deploy.local import process

pytestmark = pytest.mark.integration

CONFIG = """
name: "scale"
backend: "python"
default_model_filename: "../runtime/model.py"
max_batch_size: 8
version_policy: { latest: { num_versions: 2 } }
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""

# One file serves every version: the server resolves default_model_filename from the version's folder.
MODEL = """
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        version = Path(args["model_repository"]) / args["model_version"]
        self.factor = float((version / "factor.txt").read_text())

    def execute(self, requests):
        replies = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            y = pb_utils.Tensor("y", (x * self.factor).astype(np.float32))
            replies.append(pb_utils.InferenceResponse([y]))
        return replies
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with two versions of one model that share one model.py."""
    model = tmp_path_factory.mktemp("models") / "scale"
    for version, factor in (("1", "10"), ("2", "20")):
        (model / version).mkdir(parents=True)
        (model / version / "factor.txt").write_text(factor)
    (model / "config.pbtxt").write_text(CONFIG)
    (model / "runtime").mkdir()
    (model / "runtime" / "model.py").write_text(MODEL)
    return model.parent


@pytest.fixture(scope="module")
def small(
    start_stack: Callable[..., local.Stack], tmp_path_factory: pytest.TempPathFactory, models: Path
) -> Iterator[local.Stack]:
    """A whole stack with the two-version model, stopped after this module."""
    stack = start_stack(tmp_path_factory.mktemp("small"), redis=True, models=models)
    yield stack
    local.stop(stack)


def infer(address: str, version: str, x: float) -> float:
    client = triton_grpc.InferenceServerClient(address)
    tensor = triton_grpc.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[x]], np.float32))
    reply = client.infer("scale", [tensor], model_version=version, client_timeout=5)
    client.close()
    return float(reply.as_numpy("y")[0, 0])


def session_of(leader: process.Process) -> list[int]:
    """The pids of all living processes in a session."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader.pid and fields[0] != "Z":
                members.append(int(entry.name))
    return members


def test_produces_and_consumes(small: local.Stack, unique: Callable[[str], str]) -> None:
    """The broker returns a produced record."""
    topic = unique("events")
    local.create_topics(small.bootstrap, 2, events=topic)
    with KafkaProducer(bootstrap_servers=small.bootstrap) as producer:
        producer.send(topic, b"one", key=b"user").get(10)
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=small.bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=10_000,
    )
    assert next(consumer).value == b"one"
    consumer.close()


def test_topics_have_their_partitions_and_policies(small: local.Stack, unique: Callable[[str], str]) -> None:
    """Topics have the partitions and cleanup policies of their kind."""
    roles = ("events", "items", "recommendations", "dead_letters", "models", "popularity")
    names = {role: unique(role) for role in roles}
    assert sorted(local.create_topics(small.bootstrap, 3, **names)) == sorted(names.values())
    assert local.create_topics(small.bootstrap, 3, **names) == []
    admin = KafkaAdminClient(bootstrap_servers=small.bootstrap)
    counts = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics([*names.values()])}
    admin.close()
    assert [counts[names[role]] for role in roles] == [3, 1, 3, 3, 1, 1]


def test_triton_serves_two_versions_from_one_model_file(small: local.Stack) -> None:
    """Two versions answer from the same `model.py`, each pinned by the request."""
    assert [infer(small.triton_grpc, version, 3.0) for version in "12"] == [30.0, 60.0]


def test_redis_answers(small: local.Stack) -> None:
    """Redis answers at its address."""
    host, port = small.redis.split(":")
    with socket.create_connection((host, int(port)), timeout=2) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(16) == b"+PONG\r\n"


def test_listens_on_loopback_alone(small: local.Stack) -> None:
    """Every port of the stack listens on loopback alone."""
    listening, loopback = "0A", "0100007F"
    outside = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local_address, _, state = line.split()[:4]
            host, port = local_address.split(":")
            if state == listening and not host.endswith(loopback):
                outside.add(int(port, 16))
    assert not outside & set(small.ports.values())


def test_anybody_can_find_the_addresses(small: local.Stack) -> None:
    """`stack.json` names every address and loads to the same stack."""
    content = json.loads((small.directory / "stack.json").read_text())
    assert content["addresses"]["kafka"] == small.bootstrap
    assert content["addresses"]["triton_grpc"] == small.triton_grpc
    assert local.load(small.directory) == small
    assert local.is_running(small)


def test_second_start_is_refused(small: local.Stack) -> None:
    """A second start is refused with the directory and harms nothing."""
    with pytest.raises(local.AlreadyRunning, match=str(small.directory)):
        local.start(small.directory)
    assert local.is_running(small)


@pytest.mark.parametrize("part", ["kafka", "triton", "redis"])
def test_killed_part_comes_back_on_its_port(small: local.Stack, part: str) -> None:
    """A killed part counts as dead and starts again at its address."""
    before = small.processes[part]
    os.kill(before.pid, signal.SIGKILL)
    addresses = dict(small.ports)
    local.restart_part(small, part)
    assert small.ports == addresses
    assert small.processes[part] != before
    assert not before.is_alive()
    assert local.is_running(small)


def test_data_survives_a_broker_crash(small: local.Stack, unique: Callable[[str], str]) -> None:
    """An acknowledged record outlives the broker's process."""
    topic = unique("events")
    local.create_topics(small.bootstrap, 1, events=topic)
    with KafkaProducer(bootstrap_servers=small.bootstrap) as producer:
        producer.send(topic, b"kept").get(10)
    local.restart_part(small, "kafka")
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=small.bootstrap,
        auto_offset_reset="earliest",
        consumer_timeout_ms=20_000,
    )
    assert next(consumer).value == b"kept"
    consumer.close()


def test_stop_leaves_no_process_and_start_finds_the_ports_again(
    start_stack: Callable[..., local.Stack], tmp_path: Path, models: Path
) -> None:
    """A stop ends every process, and a new start has the same ports."""
    stack = start_stack(tmp_path, kafka=False, redis=True, models=models)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    local.add_process(stack, "worker-1", worker.pid)
    assert json.loads((tmp_path / "stack.json").read_text())["workers"] == [worker.pid]
    leaders = list(stack.processes.values())
    local.stop(stack)
    worker.wait(5)
    assert [pid for leader in leaders for pid in session_of(leader)] == []
    assert not local.is_running(local.load(tmp_path))
    again = start_stack(tmp_path, kafka=False, redis=True, models=models)
    assert again.ports == stack.ports
    local.stop(again)


def test_stale_stack_file_kills_no_stranger(tmp_path: Path) -> None:
    """A pid that belongs to another process by now is left alone."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    seen = process.Process.of(stranger.pid)
    stale = process.Process(seen.pid, seen.started - 1, seen.boot)
    stack = local.Stack(tmp_path, {}, processes={"worker-1": stale})
    local.stop(stack)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_taken_port_is_named(tmp_path: Path, parts: None) -> None:
    """A taken port is one line, and nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(local.PortTaken, match=str(port)):
            local.start(tmp_path, kafka=False, triton=False, redis=True, ports={"redis": port})


def test_model_that_cannot_load_shows_the_log(tmp_path: Path, parts: None) -> None:
    """A model that cannot load ends the start with the end of Triton's log."""
    model = tmp_path / "shipped" / "broken"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG.replace("scale", "broken"))
    (model / "runtime").mkdir()
    (model / "runtime" / "model.py").write_text("raise RuntimeError('no such luck')")
    with pytest.raises(local.PartDied, match="Triton died while starting"):
        local.start(tmp_path / "stack", kafka=False, models=tmp_path / "shipped")
    assert local.load(tmp_path / "stack").processes == {}


def test_unknown_directory_is_one_clear_line(tmp_path: Path) -> None:
    """A directory without a stack is one line that says how to start."""
    with pytest.raises(local.NotRunning, match="freshet up"):
        local.load(tmp_path)
