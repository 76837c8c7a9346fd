"""The command line of an installed wheel, which has no checkout around it."""

import subprocess
import sys
from pathlib import Path

import pytest
from freshet import resources
from freshet.cli import training_env
from freshet.cli.options import resolve
from freshet.cli.stack_file import StackFileError

from tests.command_line import fails


@pytest.fixture
def no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freshet as it is when it was installed from a wheel."""
    monkeypatch.setattr(resources, "CHECKOUT", None)


@pytest.mark.parametrize("verb", ["up", "down", "demo", "bench", "quality"])
def test_the_local_stack_needs_a_checkout(no_checkout: None, verb: str) -> None:
    """Without a checkout a verb of the local stack names the alternative in one line."""
    line = fails(verb)
    assert f"`freshet {verb}` needs a checkout" in line
    assert "freshet init" in line


def test_training_needs_its_extra(no_checkout: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, `train` names the command that installs it."""
    monkeypatch.setattr(training_env, "NEEDED", ("msgspec", "no_such_package"))
    (tmp_path / "events.jsonl").touch()
    line = fails("train", "--events", str(tmp_path / "events.jsonl"), "--dir", str(tmp_path))
    assert line == "freshet: training needs no_such_package: pip install 'freshet[train]'"


def test_training_without_a_checkout_needs_a_log(no_checkout: None, tmp_path: Path) -> None:
    """Without a checkout, `train` asks for a log."""
    assert "--events" in fails("train", "--dir", str(tmp_path))


def test_the_command_line_starts_without_deploy() -> None:
    """Starting the command line does not import `deploy`."""
    script = "import sys, freshet.cli; print([name for name in sys.modules if name.partition('.')[0] == 'deploy'])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


@pytest.mark.parametrize("content", ["{", "[]", '{"addresses": {"kafka": 1}, "models": ""}'])
def test_a_broken_stack_file_is_named(tmp_path: Path, content: str) -> None:
    """A stack file that is cut short or of another shape is named."""
    (tmp_path / "stack.json").write_text(content)
    with pytest.raises(StackFileError, match=r"stack\.json cannot be read"):
        resolve(None, tmp_path)
    for verb in ("up", "down"):
        assert "stack.json cannot be read" in fails(verb, "--dir", str(tmp_path))
