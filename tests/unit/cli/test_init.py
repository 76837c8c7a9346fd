"""`freshet init`: a folder from which Freshet runs against anybody's Kafka, Triton and Redis."""

import re
import shutil
from pathlib import Path

import msgspec
import pytest
from freshet.bundle.signature import load_trusted
from freshet.cli import app
from freshet.cli.init import TEMPLATE
from freshet.settings import PATHS, Settings, SettingsError, load_settings, require_folders
from typer.testing import CliRunner

from tests.command_line import fails


def lay_out(folder: Path, *arguments: str) -> str:
    """Run the verb; what it says."""
    result = CliRunner().invoke(app, ["init", str(folder), *arguments])
    assert result.exit_code == 0, result.output
    return result.stderr


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder laid out, with files that stand for a text encoder's."""
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (encoder / name).write_text(name)
    lay_out(tmp_path / "shop", "--text-encoder", str(encoder))
    return tmp_path / "shop"


def test_the_folder_is_ready_to_run_from(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings file names folders beside it, from any working directory, and trusts the shipped version."""
    monkeypatch.chdir("/")
    settings = load_settings(shop / "freshet.toml")
    require_folders(settings)
    assert load_trusted(Path(settings.model_repository) / "user_encoder" / "1", Path(settings.trusted_keys)).item_ids
    assert (shop / "models" / "text_encoder" / "1" / "model.onnx").read_text() == "model.onnx"
    assert {getattr(settings, name) for name in PATHS if getattr(settings, name)} == {
        str(shop / path) for path in ("models", "keys", "feature_repo", "data/feast", "data/worker", "data/archive")
    }


def test_no_private_key_comes_along(shop: Path) -> None:
    """The folder holds no private key."""
    assert [path.name for path in (shop / "keys").iterdir()] == ["shipped.pub"]


def test_the_next_commands_are_told(tmp_path: Path) -> None:
    """`init` prints the next commands with the folder's settings file."""
    told = lay_out(tmp_path / "shop")
    for command in ("freshet topics create", "freshet check", "freshet worker"):
        assert f"{command} --config {tmp_path / 'shop' / 'freshet.toml'}" in told
    assert f"tritonserver --model-repository={tmp_path / 'shop' / 'models'}" in told


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """`init` refuses a folder with content and leaves it unchanged, and uses an empty folder."""
    (tmp_path / "mine").write_text("mine")
    assert "is not empty" in fails("init", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    lay_out(tmp_path / "empty")
    assert "Not a directory" in fails("init", str(tmp_path / "mine"))


def test_a_text_encoder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    """`init` names the missing file of a text encoder and lays nothing out."""
    assert "model.onnx does not exist" in fails("init", str(tmp_path / "shop"), "--text-encoder", str(tmp_path))
    assert not (tmp_path / "shop").exists()


def test_what_the_template_shows_as_defaults_are_the_defaults(tmp_path: Path) -> None:
    """Every commented line of the settings file is a setting with its default."""
    shown = re.findall(r"^# ([a-z_]+ = .*)$", TEMPLATE.read_text(), flags=re.MULTILINE)
    file = tmp_path / "shown.toml"
    file.write_text("\n".join(line for line in shown if not line.startswith("kafka_ca")))
    assert len(shown) > 10
    assert load_settings(file, environ={}) == Settings()
    behaviours = msgspec.toml.decode(TEMPLATE.read_bytes())["behaviours"]
    assert behaviours == Settings().behaviours


@pytest.mark.parametrize("folder", ["models", "keys", "feature_repo"])
def test_a_folder_of_an_older_layout_is_named(shop: Path, folder: str) -> None:
    """A worker whose settings file names a missing folder says which folder and what to do."""
    shutil.rmtree(shop / folder)
    line = fails("worker", "--config", str(shop / "freshet.toml"))
    assert f"{shop / folder} is no folder" in line
    assert "freshet init" in line


def test_a_setting_of_an_older_layout_is_named(shop: Path) -> None:
    """A setting that no longer exists is named with its file."""
    file = shop / "freshet.toml"
    file.write_text('signing_keys = "keys"\n' + file.read_text())
    with pytest.raises(SettingsError, match=r"freshet\.toml: unknown setting 'signing_keys'"):
        load_settings(file)


def test_a_version_of_another_format_is_named(shop: Path) -> None:
    """A version whose manifest lacks a field is one line with the remedy."""
    manifest = shop / "models" / "user_encoder" / "1" / "manifest.json"
    manifest.write_text('{"name": "films", "created": "2025-01-01"}')
    line = fails("sign", str(manifest.parent), "--key", str(shop / "none.key"))
    assert str(manifest) in line
    assert "train the version again" in line
