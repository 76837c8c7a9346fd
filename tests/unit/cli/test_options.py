"""Where the verbs get their settings from, and which source wins."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from freshet.cli import app, bring_up
from freshet.cli import stack as verbs
from freshet.cli.options import as_environment, keep_settings, resolve
from freshet.settings import Settings, SettingsError, load_settings
from typer.testing import CliRunner

from deploy.local import load

ADDRESSES = {
    "kafka": "127.0.0.1:1111",
    "triton_grpc": "127.0.0.1:2222",
    "redis": "127.0.0.1:3333",
}


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A folder in which `freshet up --redis` was run once."""
    content = {
        "directory": str(tmp_path),
        "addresses": ADDRESSES,
        "models": str(tmp_path / "models"),
        "shipped_models": "triton_models",
        "workers": [],
        "processes": {},
    }
    (tmp_path / "stack.json").write_text(json.dumps(content))
    return tmp_path


def test_without_a_stack_the_defaults_stand(tmp_path: Path) -> None:
    """A folder without a stack leaves every setting at its default."""
    effective = resolve(None, tmp_path)
    assert effective.settings == Settings()
    assert set(effective.sources.values()) == {"default"}


def test_a_stacks_addresses_are_the_defaults(stack: Path) -> None:
    """The addresses of the folder's stack are the defaults, with Redis for the features where the stack has Redis."""
    settings = resolve(None, stack).settings
    assert (settings.kafka, settings.triton) == ("127.0.0.1:1111", "127.0.0.1:2222")
    assert settings.online_store == "redis://127.0.0.1:3333"
    assert settings.model_repository == str(stack / "models")


def test_file_then_environment_then_flag_win(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stack < file < environment < flag, and each setting names its source."""
    file = stack / "settings.toml"
    file.write_text('kafka = "file:1"\ntriton = "file:2"\ngroup = "file"\n')
    monkeypatch.setenv("FRESHET_TRITON", "environment:2")
    monkeypatch.setenv("FRESHET_GROUP", "environment")
    effective = resolve(file, stack, group="flag", data_dir=None)
    settings, sources = effective.settings, effective.sources
    assert (settings.kafka, settings.triton, settings.group) == ("file:1", "environment:2", "flag")
    assert (sources["kafka"], sources["triton"], sources["group"]) == (str(file), "FRESHET_TRITON", "flag")
    assert sources["online_store"] == str(stack / "stack.json")
    assert sources["list_size"] == "default"


def test_a_stack_keeps_the_file_it_was_brought_up_with(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later commands read the stack's settings file, and what the stack started wins over the file."""
    file = stack / "domain.toml"
    file.write_text('kafka = "file:1"\narchive_dir = "elsewhere"\n[behaviours]\nlike = 1.0\n')
    for step in ("make_topics", "apply_features"):
        monkeypatch.setattr(bring_up, step, lambda *_: None)
    monkeypatch.setattr(bring_up, "start", lambda directory, **_: load(directory))
    with pytest.raises(SettingsError):
        bring_up.bring_up(stack, lambda _: nullcontext(), config=stack / "no.toml", workers=0, serve=False)
    assert resolve(None, stack).config is None
    bring_up.bring_up(stack, lambda _: nullcontext(), config=file, workers=0, serve=False)
    file.write_text(file.read_text().replace("1.0", "3.0"))
    found = resolve(None, stack)
    assert found.config == file
    assert (found.settings.behaviours, found.settings.archive_dir) == ({"like": 3.0}, str(stack / "elsewhere"))
    assert (found.settings.kafka, found.sources["kafka"]) == ("127.0.0.1:1111", str(stack / "stack.json"))
    assert resolve(file, stack).settings.kafka == "file:1"
    file.unlink()
    with pytest.raises(SettingsError, match=r"domain\.toml does not exist"):
        resolve(None, stack)


def test_a_running_stack_is_not_given_other_settings(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running stack refuses another settings file and accepts its own."""
    monkeypatch.setattr(verbs, "_running", load)
    for name in ("own.toml", "other.toml"):
        (stack / name).write_text("[behaviours]\nlike = 1.0\n")
    keep_settings(stack, stack / "own.toml")
    same, other = (
        CliRunner().invoke(app, ["up", "--dir", str(stack), "--config", str(stack / name)])
        for name in ("own.toml", "other.toml")
    )
    assert same.exit_code == 0, same.stderr
    assert str(stack / "own.toml") in same.stdout
    assert other.exit_code == 1
    assert "with other settings: `freshet down` first" in other.stderr


def test_settings_survive_the_environment() -> None:
    """A worker started with `as_environment` has the same settings."""
    login = {"kafka_security": "SASL_SSL", "kafka_username": "worker", "kafka_password": "x=y"}
    settings = Settings(kafka="a:1", behaviours={"like": 2.5}, list_size=7, prior_weight=None, **login)
    assert load_settings(environ=as_environment(settings)) == settings


def test_bad_settings_are_refused(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown variable is an error that names the variable."""
    monkeypatch.setenv("FRESHET_KAFFKA", "x")
    with pytest.raises(SettingsError, match="FRESHET_KAFFKA"):
        resolve(None, stack)
