"""`freshet train`: what it hands to the training environment, and what becomes of the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from deploy.local.parts import TRITON_MODELS
from tests.integration.bundles import MemoryRecords
from workers.cli import app, models_topic
from workers.cli import train as verb
from workers.cli.connections import NoTopicError
from workers.core.bundle import SIGNATURE
from workers.core.events import ERASE, Event, encode_event
from workers.core.rollout import MODEL, Rollout

ROOT = Path(__file__).parents[2]
SHIPPED = TRITON_MODELS / "user_encoder" / "1"
NOW = 1_700_000_000_000


class Training:
    """Stands for the training environment: remembers its commands and writes a bundle."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.logs: list[str] = []
        self.status = 0

    def run(self, command: Sequence[str], **_: Any) -> Any:
        """Run a command of training, or of publishing."""
        self.commands.append(list(command))
        if "training.train" in command:
            self.logs.append(Path(self.option("--events")).read_text())
            if self.status in (0, verb.REFUSED):
                shutil.copytree(SHIPPED, self.option("--out"))
                (Path(self.option("--out")) / SIGNATURE).unlink()
        return SimpleNamespace(returncode=self.status)

    def option(self, name: str) -> str:
        """What the last command said under a name."""
        return self.commands[-1][self.commands[-1].index(name) + 1]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Training:
    made = Training()
    monkeypatch.setattr(verb.subprocess, "run", made.run)
    monkeypatch.setattr(verb, "TRAINING_PYTHON", Path(shutil.which("true") or "/bin/true"))
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Ten views a second apart, the user erased before the first half is over."""
    events = [Event(f"e{n}", "u", "view", NOW + n * 1000, f"i{n}") for n in range(10)]
    events.insert(3, Event("gone", "u", ERASE, NOW + 2500))
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(encode_event(event) + b"\n" for event in events))
    return str(path)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["train", *arguments])


def test_a_log_becomes_a_signed_bundle(training: Training, log: str, tmp_path: Path) -> None:
    """One command: the file as it is, a bundle under the directory, signed so that it can be published."""
    assert run("--events", log, "--epochs", "3").exit_code == 0
    assert training.option("--events") == log
    assert training.option("--epochs") == "3"
    assert (tmp_path / ".freshet" / "bundle" / SIGNATURE).exists()


def test_a_refused_candidate_is_not_signed(training: Training, log: str, tmp_path: Path) -> None:
    """Exit status 3, the bundle stays to be looked at, and nobody would serve it."""
    training.status = verb.REFUSED
    assert run("--events", log, "--publish").exit_code == verb.REFUSED
    assert not (tmp_path / ".freshet" / "bundle" / SIGNATURE).exists()
    assert len(training.commands) == 1


def test_an_accepted_candidate_is_published_where_asked(training: Training, log: str, tmp_path: Path) -> None:
    """By the same verb that a person would use."""
    assert run("--events", log, "--publish").exit_code == 0
    assert training.commands[-1][3:5] == ["publish", ".freshet/bundle"]


def test_an_erasure_before_the_window_holds_inside_it(training: Training, log: str) -> None:
    """The window leaves out behaviour, never a user's own word."""
    assert run("--events", log, "--from", "2023-11-14T22:13:25").exit_code == 0
    kept = [json.loads(line) for line in training.logs[-1].splitlines()]
    assert [event["event_id"] for event in kept] == ["gone", "e5", "e6", "e7", "e8", "e9"]


def test_runs_come_again_politely(
    training: Training, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run starts from the live version, at the lowest priority, into a folder of its own; few are kept."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 7:
            raise KeyboardInterrupt

    stamps = iter(range(100))
    monkeypatch.setattr(verb.time, "sleep", sleep)
    monkeypatch.setattr(verb, "_stamp", lambda: f"{next(stamps):03}Z")
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(TRITON_MODELS))
    run("--events", log, "--every", "30m", "--threads", "1")
    assert len(training.commands) == 7
    for command in training.commands:
        assert command[:3] == ["nice", "-n", "19"]
        assert "--incremental" in command
        assert command[command.index("--live") + 1] == str(SHIPPED)
    assert all(1700 < wait <= 1800 for wait in waits)
    kept = sorted(path.name for path in (tmp_path / ".freshet" / "candidates").iterdir())
    assert kept == ["002Z", "003Z", "004Z", "005Z", "006Z"]


def test_an_incremental_run_starts_from_the_version_on_record(
    training: Training, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a broker's promoted versions the last one, though newer folders lie beside it; without a broker the newest."""
    for version in ("1", "2", "3"):
        shutil.copytree(SHIPPED, tmp_path / "models" / "user_encoder" / version)
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(tmp_path / "models"))
    records = MemoryRecords(*(Rollout(MODEL, version, "promoted", version) for version in (1, 2)))
    monkeypatch.setattr(models_topic, "ModelsTopic", lambda _: records)
    kafka = ("--kafka", "127.0.0.1:1")
    for arguments, version in ((kafka, 2), ((), 3)):
        assert (
            run("--events", log, "--incremental", "--out", str(tmp_path / f"{version}.out"), *arguments).exit_code == 0
        )
        assert training.option("--live").endswith(f"user_encoder/{version}")
    records.write(Rollout(MODEL, 2, "rolled_back", 3))
    assert run("--events", log, "--incremental", "--out", str(tmp_path / "1.out"), *kafka).exit_code == 0
    assert training.option("--live").endswith("user_encoder/1")
    shutil.rmtree(tmp_path / "models" / "user_encoder" / "1")
    gone = run("--events", log, "--incremental", *kafka)
    assert gone.exit_code == 1
    assert "version 1 is live, and" in gone.stderr


def test_a_whole_run_is_compared_with_what_was_promoted(
    training: Training, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a broker is named; where nothing was promoted, or there is no such topic yet, with nothing."""
    shutil.copytree(SHIPPED, tmp_path / "models" / "user_encoder" / "1")
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(tmp_path / "models"))
    records = MemoryRecords(Rollout(MODEL, 1, "promoted", 1))
    monkeypatch.setattr(models_topic, "ModelsTopic", lambda _: records)
    outs = iter(range(10))

    def trained(*arguments: str) -> list[str]:
        assert run("--events", log, "--out", str(tmp_path / f"{next(outs)}.out"), *arguments).exit_code == 0
        return training.commands[-1]

    kafka = ("--kafka", "127.0.0.1:1")
    compared = trained(*kafka)
    assert compared[compared.index("--live") + 1].endswith("user_encoder/1")
    assert "--incremental" not in compared
    assert "--live" not in trained()
    records.steps.clear()
    assert "--live" not in trained(*kafka)

    def missing(_: object) -> None:
        raise NoTopicError("topic models does not exist")

    monkeypatch.setattr(models_topic, "ModelsTopic", missing)
    assert "--live" not in trained(*kafka)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--every", "soon"], "--every is a duration such as 30s, 10m or 1h, not 'soon'"),
        (["--every", "1h"], "--events says where new events come from"),
        (["--events", "nowhere", "--search", "0s"], "--search is a duration"),
        (["--events", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_is_wrong_is_one_line(training: Training, arguments: list[str], why: str) -> None:
    """Nothing is started."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert why in result.stderr
    assert result.stderr.count("\n") == 1
    assert not training.commands


def test_the_cron_job_is_a_turn_of_the_loop() -> None:
    """Its arguments are options of the verb, and two runs never overlap."""
    job, _ = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "train.yaml").read_text())
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    verb_name, *options = container["args"]
    assert verb_name == "train"
    known = {name for parameter in get_command(app).commands["train"].params for name in parameter.opts}
    assert {option.partition("=")[0] for option in options} <= known
    assert "--incremental" in options
    assert container["resources"]["limits"]["cpu"] == "1"
