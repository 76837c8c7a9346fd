"""`freshet train`: the input of the training environment, and the fate of the candidate."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from freshet.bundle.bundle import SIGNATURE, WITHOUT_NETWORK
from freshet.cli import app, models_topic, training_env, training_log
from freshet.cli import train as verb
from freshet.cli.options import keep_settings
from freshet.client.connection import NoTopicError
from freshet.core.events import ERASE, OPT_OUT, Event, encode_event
from freshet.core.rollout import MODEL, Rollout
from freshet.ports import Record
from freshet.settings import load_settings
from freshet_training.dataset import read_items
from typer.main import get_command
from typer.testing import CliRunner

from deploy.local.parts import TRITON_MODELS
from tests.memory_ports import MemoryRecords

ROOT = Path(__file__).parents[3]
SHIPPED = TRITON_MODELS / "user_encoder" / "1"
NEWS = ROOT / "deploy" / "domains" / "news.toml"
NOW = 1_700_000_000_000


class Training:
    """Stands for the training environment: remembers its commands and writes a bundle."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[Mapping[str, str]] = []
        self.logs: list[str] = []
        self.status = 0
        self.checkpoint: Path | None = None

    def run(self, command: Sequence[str], env: Mapping[str, str] = os.environ, **_: Any) -> Any:
        """Run a command of training, or of publishing; leaves a `checkpoint` where there is to be one."""
        self.commands.append(list(command))
        self.environments.append(env)
        if self.checkpoint is not None:
            self.checkpoint.write_bytes(b"")
        if "freshet_training.train" in command:
            self.logs.append(Path(self.option("--events")).read_text())
        if "--out" in command and self.status in (0, verb.REFUSED):
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
    for name in ("TRAINING_PYTHON", "STAMP"):
        monkeypatch.setattr(training_env, name, Path(shutil.which("true") or "/bin/true"))
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
    """`train` makes a signed bundle in the directory from a log."""
    assert run("--events", log, "--epochs", "3").exit_code == 0
    assert training.option("--events") == log
    assert training.option("--epochs") == "3"
    assert (tmp_path / ".freshet" / "bundle" / SIGNATURE).exists()


def test_what_serves_without_a_network_is_signed(training: Training, log: str, tmp_path: Path) -> None:
    """Where the gate refused the network: the status says so, and the version beside it is published where asked."""
    training.status = verb.REFUSED
    run_training = training.run
    plain = tmp_path / f"bundle{WITHOUT_NETWORK}"

    def run_both(command: Sequence[str], env: Mapping[str, str] = os.environ, **more: Any) -> Any:
        ended = run_training(command, env, **more)
        if "freshet_training.train" in command:
            shutil.copytree(SHIPPED, plain)
            (plain / SIGNATURE).unlink()
        return ended

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb.subprocess, "run", run_both)
        ended = run("--events", log, "--out", "bundle", "--publish")
    assert ended.exit_code == verb.REFUSED
    assert f"bundle{WITHOUT_NETWORK} serves without a network" in ended.stderr
    assert (plain / SIGNATURE).exists()
    assert not (tmp_path / "bundle" / SIGNATURE).exists()
    assert training.commands[-1][3:5] == ["publish", f"bundle{WITHOUT_NETWORK}"]


def test_a_catalogue_alone_makes_a_version(training: Training, tmp_path: Path) -> None:
    """Without events the version is made of the catalogue, with the domain's settings, and is signed and published."""
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "a shoe"}\n')
    ended = run("--items", "items.jsonl", "--types", "view,buy", "--name", "shop", "--publish")
    assert ended.exit_code == 0, ended.stderr
    assert "learns nothing" in ended.stderr
    made = training.commands[0]
    assert "freshet_training.day_zero" in made
    assert [made[made.index(flag) + 1] for flag in ("--items", "--name")] == ["items.jsonl", "shop"]
    assert training.commands[-1][3] == "publish"


def test_types_become_a_settings_file(training: Training, log: str, tmp_path: Path) -> None:
    """Given types become a settings file for workers too, and other types do not overwrite edited weights."""
    file = tmp_path / ".freshet" / "domain.toml"
    first = run("--events", log, "--types", "view,buy")
    assert first.exit_code == 0, first.stderr
    assert training.option("--config") == str(Path(".freshet", "domain.toml"))
    assert "a stack takes it with `freshet up --config .freshet/domain.toml`" in first.stderr
    file.write_text(file.read_text().replace('"buy" = 1.0', '"buy" = 4.0'))
    assert run("--events", log, "--types", "buy,view", "--out", "again").exit_code == 0
    assert load_settings(file, {}, {}).behaviours == {"view": 1.0, "buy": 4.0}
    other = run("--events", log, "--types", "view,like", "--out", "other")
    assert (other.exit_code, other.stderr.count("\n")) == (1, 1)
    assert "names other types" in other.stderr
    file.unlink()
    assert run("--events", log, "--types", "view,user.erase").exit_code == 1
    assert not file.exists()


def test_a_slip_in_the_types_is_mended_by_typing_them_again(training: Training, log: str, tmp_path: Path) -> None:
    """Types given again replace a settings file that nobody has edited, whatever their spaces."""
    file = tmp_path / ".freshet" / "domain.toml"
    assert run("--events", log, "--types", "View", "--out", "one").exit_code == 0
    assert run("--events", log, "--types", " view, buy ", "--out", "two").exit_code == 0
    assert load_settings(file, {}, {}).behaviours == {"view": 1.0, "buy": 1.0}


def test_the_stack_s_own_settings_are_the_training_s(training: Training, log: str, tmp_path: Path) -> None:
    """Training takes the settings file of a running stack without `--config`."""
    (tmp_path / "own.toml").write_text("[behaviours]\nview = 1.0\nbuy = 3.0\n")
    (tmp_path / ".freshet").mkdir()
    keep_settings(tmp_path / ".freshet", Path("own.toml"))
    for number, more in enumerate(([], ["--types", "buy,view"])):
        assert run("--events", log, "--out", str(number), *more).exit_code == 0
        assert training.option("--config") == str(tmp_path / "own.toml")
    assert (
        f"{tmp_path / 'own.toml'} names the behaviours already, view, buy"
        in run("--events", log, "--types", "like").stderr
    )
    (tmp_path / "own.toml").write_text("list_size = 5\n")
    assert "name them in" in run("--events", log, "--types", "like").stderr


def test_what_was_given_is_not_tidied_away(training: Training, log: str, tmp_path: Path) -> None:
    """A log in the work folder is trained from and not removed."""
    own = tmp_path / ".freshet" / "training" / "events.jsonl"
    own.parent.mkdir(parents=True)
    shutil.copy(log, own)
    assert run("--events", str(own)).exit_code == 0
    assert own.read_text() == training.logs[-1]


def test_a_refused_candidate_is_not_signed(training: Training, log: str, tmp_path: Path) -> None:
    """A refused candidate ends with status 3, and its bundle stays unsigned."""
    training.status = verb.REFUSED
    assert run("--events", log, "--publish").exit_code == verb.REFUSED
    assert not (tmp_path / ".freshet" / "bundle" / SIGNATURE).exists()
    assert len(training.commands) == 1


def test_an_accepted_candidate_is_published_where_asked(training: Training, log: str, tmp_path: Path) -> None:
    """An accepted candidate is published by the verb `publish` where asked."""
    assert run("--events", log, "--publish").exit_code == 0
    assert training.commands[-1][3:5] == ["publish", ".freshet/bundle"]


def test_an_erasure_before_the_window_holds_inside_it(training: Training, log: str) -> None:
    """A withdrawal before the window counts inside the window."""
    assert run("--events", log, "--from", "2023-11-14T22:13:25").exit_code == 0
    kept = [json.loads(line) for line in training.logs[-1].splitlines()]
    assert [event["event_id"] for event in kept] == ["gone", "e5", "e6", "e7", "e8", "e9"]


def test_a_window_may_be_the_newest_part(training: Training, tmp_path: Path) -> None:
    """A window of a duration ends now, and earlier withdrawals count."""
    now = int(time.time() * 1000)
    hours = [Event(f"e{ago}", "u", "view", now - ago * 3_600_000, "i") for ago in (30, 3, 1)]
    (tmp_path / "log.jsonl").write_bytes(b"".join(encode_event(event) + b"\n" for event in hours))
    assert run("--events", "log.jsonl", "--window", "1d").exit_code == 0
    assert [json.loads(line)["event_id"] for line in training.logs[-1].splitlines()] == ["e3", "e1"]
    twice = run("--events", "log.jsonl", "--window", "1d", "--from", "2023-11-14")
    assert "--window ends now" in twice.stderr


def test_a_stopped_run_goes_on_with_the_log_it_has_read(training: Training, log: str, tmp_path: Path) -> None:
    """A stopped run continues with its exported log, and the next run exports anew."""
    window = ("--events", log, "--until", "2030-01-01")
    work = tmp_path / ".freshet" / "training"
    training.status, training.checkpoint = -9, work / "checkpoint.safetensors"
    run(*window)
    with Path(log).open("ab") as file:
        file.write(encode_event(Event("more", "w", "view", NOW + 20_000, "i")) + b"\n")
    again = run(*window)
    assert training.logs[1] == training.logs[0]
    assert again.stderr.count("going on with what was exported at") == 1
    training.status = 0
    run(*window)
    run(*window, "--out", "next")
    assert training.logs[2] == training.logs[0]
    assert '"more"' in training.logs[3]


@pytest.mark.parametrize("since", ["no checkpoint", "other words", "another log", OPT_OUT, ERASE])
def test_an_export_that_does_not_stand_is_made_anew(training: Training, log: str, tmp_path: Path, since: str) -> None:
    """A log is exported anew without an epoch, for another command or log, and after a withdrawal."""
    window = ("--events", log, "--until", "2030-01-01")
    work = tmp_path / ".freshet" / "training"
    training.status = -9
    if since != "no checkpoint":
        training.checkpoint = work / "checkpoint.safetensors"
    run(*window)
    kind = since if since in (OPT_OUT, ERASE) else "view"
    with Path(log).open("ab") as file:
        file.write(encode_event(Event("more", "w", kind, NOW + 20_000, "i")) + b"\n")
    if since == "another log":
        run("--events", log)
    again = run(*window, *(["--seed", "7"] if since == "other words" else []))
    assert "going on" not in again.stderr
    assert '"more"' in training.logs[-1]


def test_dead_letters_are_part_of_what_was_left_out(training: Training, log: str, tmp_path: Path) -> None:
    """The record of a version counts the dead letters of its export, after a stop as well."""
    with Path(log).open("ab") as file:
        file.write(b"no event\n" + encode_event(Event("odd", "w", "odd", NOW, "i")) + b"\n")
    training.status, training.checkpoint = -9, tmp_path / ".freshet" / "training" / "checkpoint.safetensors"
    for _ in range(2):
        run("--events", log, "--until", "2030-01-01")
        assert json.loads(training.option("--left-out")) == {"not json": 1, "unknown type": 1}
    training.status = 0
    run("--events", log, "--window", "1d", "--out", "later")
    assert "--left-out" not in training.commands[-1]


def test_nothing_that_was_exported_stays(training: Training, log: str, tmp_path: Path) -> None:
    """A run that is over leaves no exported file."""
    assert run("--events", log, "--until", "2030-01-01").exit_code == 0
    assert '"u"' in training.logs[-1]
    assert not [path for path in (tmp_path / ".freshet" / "training").iterdir() if path.suffix in (".json", ".jsonl")]


def test_the_catalogue_is_what_workers_make_of_the_topic(
    training: Training, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exported catalogue has the items that workers take, available or not, and counts the others."""
    values = [
        b'{"item_id": "i0", "price": -1}',
        b'{\n "item_id": "i1",\n "title": "one"\n}',
        b'{"item_id": "i2"}',
        None,
    ]
    keys = [b"i0", b"i1", b"i2", b"i2"]
    records = [Record(offset, 0, key, value) for offset, (key, value) in enumerate(zip(keys, values, strict=True))]
    monkeypatch.setattr(training_log, "read_topic", lambda *_: records)
    training.status = -9  # so that it stays
    result = run("--events", log, "--items", "kafka")
    assert "left out of items: 1 records that are no items" in result.stderr
    items = read_items(tmp_path / ".freshet" / "training" / "items.jsonl")
    assert {item.item_id: (item.title, item.available) for item in items.values()} == {
        "i1": ("one", True),
        "i2": ("", False),
    }


def test_nothing_is_written_under_a_run_at_work(training: Training, log: str, tmp_path: Path) -> None:
    """A second command in a folder at work is refused and leaves the first command's log alone."""
    work = tmp_path / ".freshet" / "training"
    work.mkdir(parents=True)
    (work / "events.jsonl").write_text("read by another")
    with (work / "export.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run("--events", log, "--until", "2030-01-01")
    assert result.exit_code == 1
    assert "another training run is at work" in result.stderr
    assert (work / "events.jsonl").read_text() == "read by another"
    assert not training.commands


@pytest.mark.parametrize(("told", "threads"), [([], "1"), (["--config", "c.toml"], "3"), (["--threads", "2"], "2")])
def test_the_cpu_is_bounded_for_every_library(
    training: Training, log: str, tmp_path: Path, told: list[str], threads: str
) -> None:
    """The settings bound Torch's threads, and the environment bounds NumPy's."""
    (tmp_path / "c.toml").write_text("[training]\nthreads = 3\n")
    assert run("--events", log, *told).exit_code == 0
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        assert training.environments[-1][name] == threads


def test_what_trains_ends_with_the_command() -> None:
    """A SIGTERM to the command ends the training process."""
    script = (
        "import sys; from pathlib import Path; from freshet.cli import training_env as env; "
        "env.TRAINING_PYTHON = Path(sys.executable); "
        "env.run_module('timeit', ['-n1', '-r1', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'])"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        at_work = int(command.stdout.readline())
        command.terminate()
        assert command.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(at_work, 0)


def test_what_training_runs_in_is_fetched(
    training: Training, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` fetches its environment and says so, and ends where the fetch fails."""
    monkeypatch.setattr(training_env, "STAMP", tmp_path / "not there")
    result = run("--events", log)
    assert result.exit_code == 0
    assert training.commands[0] == [sys.executable, "-m", "deploy.setup.bootstrap", "--training"]
    assert subprocess.check_call([*training.commands[0], "--help"], cwd=ROOT, stdout=subprocess.DEVNULL) == 0
    assert "freshet_training.train" in training.commands[1]
    assert "fetching the training environment" in result.stderr
    training.status = 1
    assert run("--events", log).exit_code == 1
    assert len(training.commands) == 3


def test_an_incremental_run_leaves_a_candidate(
    training: Training, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of its own, so that a run that comes again finds its place free; what was killed is cleared away.

    What was refused, however often, takes the place of nothing that was accepted.
    """
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(TRITON_MODELS))
    candidates = tmp_path / ".freshet" / "candidates"
    for name in ("0Z", "1Z", "2Z", "3Z", "4Z", "5Z", ".0Z.partial"):
        (candidates / name).mkdir(parents=True)
    (candidates / "0Z" / SIGNATURE).write_bytes(b"")
    monkeypatch.setattr(verb, "_stamp", lambda: "6Z")
    assert run("--events", log, "--incremental").exit_code == 0
    assert sorted(path.name for path in candidates.iterdir()) == ["0Z", "2Z", "3Z", "4Z", "5Z", "6Z"]


def test_runs_come_again_politely(
    training: Training, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run starts from the live version at the lowest priority into its own folder, and few are kept."""
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
    assert kept == ["001Z", "002Z", "003Z", "004Z", "005Z", "006Z"]


def test_an_incremental_run_starts_from_the_version_on_record(
    training: Training, log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An incremental run starts from the broker's last promoted version, or without a broker from the newest."""
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
    """A whole run is compared with the broker's promoted version, if any."""
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
        (["--every", "soon"], "--every is a duration such as 30s, 10m, 1h or 30d, not 'soon'"),
        (["--every", "1h"], "--events says where new events come from"),
        (["--events", "nowhere", "--search", "0s"], "--search is a duration"),
        (["--events", "nowhere.txt"], "nowhere.txt"),
        (["--events", "nowhere.txt", "--types", ","], "--types names no behaviour type"),
        (["--events", "nowhere.txt", "--every", "1h", "--out", "x"], "it goes without --out"),
        (["--items", "nowhere.txt", "--incremental"], "--events says where new events come from"),
        (["--items", "nowhere.txt", "--window", "30d"], "choose from the log that --events names"),
        (["--items", "nowhere.txt", "--epochs", "3"], "--epochs is for a training: --events says what to learn from"),
        (["--events", "nowhere.txt", "--key", "no.key"], "no.key does not exist: `freshet keys` makes one"),
        (["--events", "nowhere.txt", "--config", "."], "settings file .: Is a directory"),
        (["--types", "view"], "--types are those of the log that --events names"),
        (
            ["--events", "nowhere.txt", "--types", "view", "--config", str(NEWS)],
            "names the behaviours already, view, like",
        ),
    ],
)
def test_what_is_wrong_is_one_line(training: Training, arguments: list[str], why: str) -> None:
    """Bad input is one line, and nothing is started."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert why in result.stderr
    assert result.stderr.count("\n") == 1
    assert not training.commands


def test_the_cron_job_is_a_turn_of_the_loop() -> None:
    """The cron job's arguments are options of the verb, and two runs never overlap."""
    job, _ = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "train.yaml").read_text())
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    verb_name, *options = container["args"]
    assert verb_name == "train"
    known = {name for parameter in get_command(app).commands["train"].params for name in parameter.opts}
    assert {option.partition("=")[0] for option in options} <= known
    assert {"--incremental", "--publish"} <= set(options)
    assert not [option for option in options if option.startswith("--out")]  # a retry would find it taken
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    settings = load_settings(None, environ=given)
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {settings.trusted_keys, settings.model_repository} <= mounted
    assert container["resources"]["limits"]["cpu"] == "1"
