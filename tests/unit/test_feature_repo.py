"""The Feast objects of `feature_repo` are the core's feature lists."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from feast import FeatureStore as Feast
from feast import FeatureView, PushSource
from freshet.core.events import DEFAULT_BEHAVIOURS
from freshet.core.features import EMBEDDING_FEATURES, LIST_FEATURES, Feature, behaviour_features

ROOT = Path(__file__).parents[2]
VALUE_TYPES = {
    "string": "STRING",
    "int64": "INT64",
    "float32": "FLOAT",
    "list[string]": "STRING_LIST",
    "list[int64]": "INT64_LIST",
    "list[float32]": "FLOAT_LIST",
}


@pytest.fixture(scope="module")
def definitions() -> ModuleType:
    """`feature_repo/definitions.py`, as Feast imports it: a top-level module."""
    loader = SourceFileLoader("definitions", str(ROOT / "feature_repo" / "definitions.py"))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


def fields(view: FeatureView) -> set[tuple[str, str, str]]:
    return {(field.name, field.dtype.to_value_type().name, field.description) for field in view.features}


def core_fields(features: Collection[Feature]) -> set[tuple[str, str, str]]:
    return {(feature.name, VALUE_TYPES[feature.kind], feature.description) for feature in features}


@pytest.mark.parametrize("behaviours", [list(DEFAULT_BEHAVIOURS), ["listen"], ["add-to-cart", "wish list", "it's"]])
def test_views_have_the_cores_features(definitions: ModuleType, behaviours: list[str]) -> None:
    """The views have the names, types and descriptions of the core's features, for any behaviour types."""
    defined = definitions.define(behaviours, "archive")
    assert fields(defined.user_behaviour) == core_fields(behaviour_features(behaviours))
    assert fields(defined.user_embedding) == core_fields(EMBEDDING_FEATURES)
    assert fields(defined.user_list) == core_fields(LIST_FEATURES)


def test_views_are_keyed_by_user_and_pushed_to(definitions: ModuleType) -> None:
    """The views are online, take pushes, and are keyed by the user id alone."""
    for view in (definitions.user_behaviour, definitions.user_embedding, definitions.user_list):
        assert view.online
        assert view.entities == [definitions.user.name] == ["user"]
        assert definitions.user.join_key == "user_id"
        assert isinstance(view.stream_source, PushSource)


def test_the_encoders_service_has_its_inputs_and_output(definitions: ModuleType) -> None:
    """The encoder's feature service has the encoder's inputs and its outputs."""
    names = [
        field.name for projection in definitions.user_encoder.feature_view_projections for field in projection.features
    ]
    assert sorted(names) == ["embedding", "model_version", "recent_items", "recent_times", "recent_types"]


@pytest.mark.parametrize("behaviours", [None, {"listen": 1.0, "skip": 0.5}])
def test_feast_apply_by_hand(tmp_path: Path, behaviours: dict[str, float] | None) -> None:
    """`feast apply` works in the folder, and FRESHET_BEHAVIOURS names other behaviour types."""
    repository = shutil.copytree(
        ROOT / "feature_repo", tmp_path / "feature_repo", ignore=shutil.ignore_patterns("__pycache__")
    )
    before = {path.name for path in repository.iterdir()}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("FRESHET_BEHAVIOURS", None)
    if behaviours is not None:
        environment["FRESHET_BEHAVIOURS"] = json.dumps(behaviours)
    command = [sys.executable, "-m", "feast.cli.cli", "apply"]
    result = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in repository.iterdir()} == before
    feast = Feast(repo_path=str(repository))
    names = {feature.name for feature in behaviour_features(behaviours or DEFAULT_BEHAVIOURS)}
    answer = feast.get_online_features([f"user_behaviour:{name}" for name in names], [{"user_id": "nobody"}]).to_dict()
    assert answer.pop("user_id") == ["nobody"]
    assert answer == {name: [None] for name in names}
