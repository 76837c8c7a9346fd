"""`freshet check`: a verdict for each part."""

import json
from pathlib import Path

import pytest
from freshet.bundle.bundle import BundleError
from freshet.cli import app
from freshet.cli.check import TESTS
from freshet.settings import Settings, Variant
from msgspec.structs import replace
from typer.testing import CliRunner

from tests.altered_bundles import Keys, without_lifts


def test_check_masks_secrets_and_names_each_failing_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check --json` masks the password, gives each part a verdict, and exits with 1."""
    monkeypatch.setattr("freshet.adapters.kafka_python.BOOTSTRAP_SECONDS", 0.3)
    monkeypatch.setenv("FRESHET_KAFKA_SECURITY", "SASL_SSL")
    monkeypatch.setenv("FRESHET_KAFKA_USERNAME", "ann")
    monkeypatch.setenv("FRESHET_KAFKA_PASSWORD", "hunter2")
    monkeypatch.setenv("FRESHET_KAFKA_SECURITY", "SASL_SSL")
    monkeypatch.setenv("FRESHET_KAFKA", "127.0.0.1:1")
    monkeypatch.setenv("FRESHET_TRITON", "127.0.0.1:1")
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(tmp_path))
    monkeypatch.setenv("FRESHET_FEATURE_REPO", str(tmp_path / "nowhere"))
    monkeypatch.setenv("FRESHET_FEAST_DIR", str(tmp_path / "feast"))
    result = CliRunner().invoke(app, ["check", "--json", "--dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "hunter2" not in result.output
    answer = json.loads(result.stdout)
    assert {check["part"]: check["ok"] for check in answer["checks"]} == dict.fromkeys(
        ("kafka", "triton", "features", "bundle"), False
    ) | {"codecs": True}
    assert answer["settings"]["kafka_password"]["source"] == "FRESHET_KAFKA_PASSWORD"


@pytest.mark.parametrize("knob", ["value_weight", "novelty_weight"])
def test_a_weight_that_would_move_nothing_fails_the_check(tmp_path: Path, knob: str) -> None:
    """A version without item lifts fails the check where the settings or a variant weigh lifts."""
    keys = Keys(tmp_path / "keys")
    models = without_lifts(tmp_path / "models", keys.private)
    plain = Settings(model_repository=str(models), trusted_keys=str(keys.folder))
    assert "v1 signed and sound" in TESTS["bundle"](plain)
    arms = {"rare": Variant(share=1.0, **{knob: 0.5})}  # type: ignore[arg-type]
    for change in ({knob: 0.5}, {"variants": arms}):
        with pytest.raises(BundleError, match="version 1 does not know its items' value and novelty"):
            TESTS["bundle"](replace(plain, **change))
