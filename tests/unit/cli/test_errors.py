"""Every user error is one line on stderr and a non-zero exit, never a traceback."""

import re
from pathlib import Path

import pytest
from freshet.cli import app
from typer.testing import CliRunner

from deploy.local.errors import PortTaken
from tests.command_line import fails

VERBS = [
    "up",
    "down",
    "demo",
    "worker",
    "check",
    "produce",
    "tail",
    "inspect",
    "dlq list",
    "dlq replay",
    "publish",
    "replay",
    "report",
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A broker that is away is given up soon; the working directory holds no stack."""
    monkeypatch.setattr("freshet.adapters.kafka_python.BOOTSTRAP_SECONDS", 0.3)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    """Each verb's `--help` exits with 0 and prints more than the usage."""
    result = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert "--help" in result.output


def test_usage_errors_name_the_help() -> None:
    """A wrong argument is one line that names the help."""
    assert "see `freshet --help`" in fails("nonsense", status=2)
    assert "--rate" in fails("produce", "-", "--rate", "fast", status=2)
    assert "see `freshet produce --help`" in fails("produce", status=2)
    assert "--raw" in fails("produce", "-", "--raw", "--strict", status=2)
    assert "--workers" in fails("up", "--workers", "-1", status=2)
    assert "NAME=PORT" in fails("up", "--port", "kafka=99999", status=2)


@pytest.mark.parametrize(
    "arguments",
    [["produce", "-"], ["tail"], ["inspect", "u"], ["dlq", "list"], ["dlq", "replay"]],
    ids=" ".join,
)
def test_a_missing_broker_is_named(arguments: list[str]) -> None:
    """A broker that does not answer is named with its address."""
    line = fails(*arguments, "--kafka", "127.0.0.1:1", stdin='{"x": 1}\n')
    assert "Kafka at 127.0.0.1:1 does not answer" in line


def test_a_missing_file_is_named() -> None:
    """`produce` names a missing file before it asks Kafka."""
    assert fails("produce", "no.jsonl", "--kafka", "127.0.0.1:1") == "freshet: no.jsonl does not exist"


def test_bad_settings_are_named(tmp_path: Path) -> None:
    """A missing or wrong settings file is one line."""
    assert "nowhere.toml does not exist" in fails("tail", "--config", "nowhere.toml")
    file = tmp_path / "bad.toml"
    file.write_text("lists_size = 3\n")
    assert "unknown setting 'lists_size'" in fails("check", "--config", str(file))


def test_down_without_a_stack_says_so(tmp_path: Path) -> None:
    """`down` in an empty folder says that there is no stack."""
    assert "no stack in" in fails("down", "--dir", str(tmp_path / "none"))


def test_a_taken_port_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` shows the stack's error for a taken port unchanged."""

    def start(*_: object, **__: object) -> None:
        raise PortTaken("kafka", 9092)

    monkeypatch.setattr("freshet.cli.bring_up.start", start)
    result = CliRunner().invoke(app, ["up", "--port", "kafka=9092"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "freshet: port 9092, asked for kafka, is taken"


def test_demo_never_removes_what_is_no_stack(tmp_path: Path) -> None:
    """`demo --fresh` refuses a folder that holds anything but a stack."""
    (tmp_path / "thesis.tex").write_text("precious")
    assert re.search(r"not removing it", fails("demo", "--fresh", "--dir", str(tmp_path)))
    assert (tmp_path / "thesis.tex").exists()
