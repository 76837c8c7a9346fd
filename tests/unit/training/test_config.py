"""A domain is a settings file, which the worker reads as well."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from freshet.settings import load_settings
from freshet_training.config import ConfigError, TrainingConfig, load_config

DOMAINS = sorted((Path(__file__).parents[3] / "deploy" / "domains").glob("*.toml"))


@pytest.mark.parametrize("file", DOMAINS, ids=[file.stem for file in DOMAINS])
def test_worker_and_training_read_the_same_domain(file: Path) -> None:
    """Worker and training read the same behaviours, texts, history and half-life from a domain."""
    config, settings = load_config(file), load_settings(file, environ={})
    assert config.name == file.stem
    for name in ("behaviours", "history", "popularity_half_life", "text_fields"):
        assert getattr(config, name) == getattr(settings, name), name
    assert config.model["length"] <= settings.history


def test_there_are_three_domains() -> None:
    """The domains are films, beauty products and news articles."""
    assert [file.stem for file in DOMAINS] == ["beauty", "films", "news"]


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    """Flags win over the file, and other settings keep the file's value or the default."""
    (tmp_path / "c.toml").write_text("[training]\nepochs = 7\npositions = 8\n")
    config = load_config(tmp_path / "c.toml", epochs=9, seed=None)
    assert (config.epochs, config.positions, config.seed) == (9, 8, 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[training]\nepoch = 3", "epoch"),
        ("[training]\nepochs = 0", r">= 1.*epochs"),
        ("training = 3", r"\[training\] is no table"),
        ("[training]\nhistory = 9", "history stands above"),
        ("[training]\ntargets = ['like']", "'like' is not among the behaviours view, click, purchase"),
        ("text_fields = ['colour']", "text_fields"),
        ("[behaviours]\n'user.erase' = 1.0", "none of user.erase"),
        ("[behaviours]\nview = nan", r">= 0.*behaviours"),
        ("[behaviours]\nview = -1", r">= 0.*behaviours"),
        ("[training.gate]\nlatency_ms = -1.0", r"> 0.*latency_ms"),
        ("[training.gate]\nregression_set = 5.0", r"<= 1.*regression_set"),
        ("[training.gate]\ncanary = 0.5", r"canary is called regression_set now"),
        ("[training", "c.toml"),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, why: str) -> None:
    """A bad setting is one line with the settings that exist."""
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=why) as refused:
        load_config(tmp_path / "c.toml")
    assert "\n" not in str(refused.value)


def test_the_digest_is_of_every_setting() -> None:
    """Every setting changes the digest."""
    first = TrainingConfig()
    for name, value in {"epochs": 3, "model": {"dim": 32}, "targets": ("view",), "seed": 1}.items():
        assert msgspec.structs.replace(first, **{name: value}).digest != first.digest
    assert TrainingConfig().digest == first.digest
