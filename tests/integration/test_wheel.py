"""The wheel as a stranger has it: installed by itself, outside any checkout, beside a Kafka and a Triton."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local import Stack
from deploy.local.parts import ROOT, TEXT_ENCODER
from deploy.setup.environments import call_uv, make_env
from deploy.setup.layout import REQUIREMENTS
from tests.integration.deployment import until

pytestmark = pytest.mark.integration

DATA = {
    "feature_repo": ROOT / "feature_repo",
    "triton_models": ROOT / "triton_models",
    "keys": ROOT / "deploy" / "keys",
    "domains": ROOT / "deploy" / "domains",
}
"""Folders of package data under `freshet/data`, and where a checkout has them."""
HELP = """
import typer
from freshet.cli import app
from typer.testing import CliRunner

def verbs(group, *before):
    for name, command in group.commands.items():
        yield from verbs(command, *before, name) if hasattr(command, "commands") else [(*before, name)]

for verb in verbs(typer.main.get_command(app)):
    print(*verb, CliRunner().invoke(app, [*verb, "--help"]).exit_code)
"""
IMPORTED = """
import freshet, freshet_training
from importlib.util import find_spec
from freshet import resources
print(freshet.__file__, freshet_training.__file__, resources.FEATURE_REPO, find_spec("deploy"), sep="\\n")
"""


def build(project: Path, folder: Path) -> None:
    """Build a project's sdist and wheel into a folder, with what is installed: nothing is fetched."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=project, check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(parts: None, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a fresh environment that holds the wheel and what it depends on, as locked."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    make_env(folder, REQUIREMENTS / "worker.txt")
    call_uv("pip", "install", "-q", "--no-deps", "--python", folder / "bin" / "python", wheel)
    return folder / "bin"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of the environment in a folder that is no checkout, without this test's paths and settings."""

    def command(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed / name, *arguments],
            cwd=tmp_path,
            env=alone(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return command


def alone() -> dict[str, str]:
    """This environment without what would lead to a checkout or set anything of Freshet."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and "FRESHET" not in name}


def names(wheel: Path) -> set[str]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files(folder: Path) -> set[str]:
    """The files under a folder by their paths in it, without what Python compiled."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_two_packages_and_nothing_else(wheel: Path) -> None:
    """The wheel has two packages at its top and nothing else."""
    tops = {name.partition("/")[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"freshet", "freshet_training"}
    assert len(tops) == 3


def test_all_sources_and_data_are_in_the_wheel(wheel: Path) -> None:
    """The wheel has every source file and every data file."""
    wanted = {f"freshet/{name}" for name in files(ROOT / "workers" / "freshet")}
    wanted |= {f"freshet_training/{name}" for name in files(ROOT / "training" / "freshet_training")}
    wanted |= {f"freshet/data/{name}/{file}" for name, folder in DATA.items() for file in files(folder)}
    held = {name for name in names(wheel) if ".dist-info/" not in name}
    assert held == {name for name in wanted if not name.endswith(".key")}
    assert "freshet/data/triton_models/user_encoder/1/model.onnx" in held
    assert "freshet/schemas/events.json" in held


def test_the_sdist_builds_the_same_wheel(built: Path, wheel: Path, tmp_path: Path) -> None:
    """The sdist builds the same wheel."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    build(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "dist")
    (again,) = (tmp_path / "dist").glob("*.whl")
    assert names(again) == names(wheel)


def test_the_packages_are_the_installed_ones(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Code and data come from site-packages, and `deploy` is not installed."""
    code, training, data, deploy = run("python", "-c", IMPORTED).stdout.splitlines()
    assert all("site-packages" in path for path in (code, training, data))
    assert deploy == "None"


def test_every_verb_has_its_help(run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Every verb's help runs from the wheel."""
    assert "recommendations" in run("freshet", "--help").stdout
    lines = run("python", "-c", HELP).stdout.splitlines()
    assert {"worker 0", "produce 0", "replay 0", "init 0", "dlq list 0", "train 0", "up 0"} <= set(lines)
    assert [line for line in lines if not line.endswith(" 0")] == ["bench 1", "quality 1"]  # their help is a checkout's


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("up",), "`freshet up` needs a checkout"),
        (("demo",), "`freshet demo` needs a checkout"),
        (("train", "--events", "events.jsonl"), "pip install 'freshet[train]'"),
    ],
)
def test_what_the_wheel_cannot_do_is_one_line(
    run: Callable[..., subprocess.CompletedProcess[str]], arguments: tuple[str, ...], remedy: str
) -> None:
    """A verb that needs a checkout says so in one line with a status that is not 0."""
    done = run("freshet", *arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("freshet: ")
    assert remedy in line


@contextmanager
def worker(installed: Path, folder: Path, settings: Path) -> Iterator[Callable[[], bool]]:
    """An installed worker; yields whether it is ready."""
    log = folder / "worker.log"
    with log.open("wb") as out:
        command = [installed / "freshet", "worker", "--config", settings]
        process = subprocess.Popen(command, cwd=folder, env=alone(), stdout=out, stderr=out)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            port = int((settings.parent / "data" / "worker" / "health.port").read_text())
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                return answer.status == 200
        except (OSError, ValueError):
            return False

    try:
        yield ready
    finally:
        process.terminate()
        process.wait(60)


def test_a_stranger_has_lists(
    run: Callable[..., subprocess.CompletedProcess[str]],
    installed: Path,
    stack: Stack,
    unique: Callable[[str], str],
    tmp_path: Path,
) -> None:
    """With the wheel alone, a new folder, topics and a worker give a list."""
    shop, name = tmp_path / "shop", unique("shop")
    settings = shop / "freshet.toml"
    assert run("freshet", "init", shop, "--text-encoder", TEXT_ENCODER).returncode == 0
    text = settings.read_text().replace("127.0.0.1:9092", stack.bootstrap).replace("127.0.0.1:8001", stack.triton_grpc)
    text = re.sub(r'^# (group|\w+_topic) = "(.*)"$', rf'\1 = "{name}.\2"', text, flags=re.MULTILINE)
    settings.write_text(text.replace("# triton_deadline = 1.0", "triton_deadline = 10.0"))  # the machine is busy
    assert f"{name}.events" in run("freshet", "topics", "create", "--partitions", "2", "--config", settings).stderr
    checked = run("freshet", "check", "--config", settings)
    assert checked.returncode == 0, checked.stdout
    with worker(installed, tmp_path, settings) as ready:
        until(ready, "the worker is ready")
        events = tmp_path / "events.jsonl"
        event = {"event_id": "e1", "user_id": "anna", "type": "view", "item_id": "50", "ts": 890_000_000_000}
        events.write_text(json.dumps(event) + "\n")
        assert run("freshet", "produce", events, "--config", settings).returncode == 0
        tailed = run("freshet", "tail", "--from-beginning", "--max", "1", "--raw", "--config", settings)
    made = json.loads(tailed.stdout)
    assert made["user_id"] == "anna"
    assert made["model_version"] == 1
    assert len(made["items"]) == 10
