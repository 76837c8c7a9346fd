"""The Feast objects are the core's feature lists, and the adapter's bytes are protobuf's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from array import array
from collections.abc import Collection
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from feast import FeatureStore as Feast
from feast import FeatureView, PushSource
from feast.protos.feast.types.Value_pb2 import FloatList, Int64List, StringList, Value
from freshet.adapters.feast_values import ENCODERS, decode
from freshet.core.events import DEFAULT_BEHAVIOURS
from freshet.core.features import EMBEDDING_FEATURES, LIST_FEATURES, Feature, behaviour_features
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[3]
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
    """Names, types and descriptions are the core's, whatever the behaviour types."""
    defined = definitions.define(behaviours, "archive")
    assert fields(defined.user_behaviour) == core_fields(behaviour_features(behaviours))
    assert fields(defined.user_embedding) == core_fields(EMBEDDING_FEATURES)
    assert fields(defined.user_list) == core_fields(LIST_FEATURES)


def test_views_are_keyed_by_user_and_pushed_to(definitions: ModuleType) -> None:
    """The views are online, take pushes, and need the user id alone."""
    for view in (definitions.user_behaviour, definitions.user_embedding, definitions.user_list):
        assert view.online
        assert view.entities == [definitions.user.name] == ["user"]
        assert definitions.user.join_key == "user_id"
        assert isinstance(view.stream_source, PushSource)


def test_the_encoders_service_has_its_inputs_and_output(definitions: ModuleType) -> None:
    """What `user_encoder` reads and what it made of it come in one request."""
    names = [
        field.name for projection in definitions.user_encoder.feature_view_projections for field in projection.features
    ]
    assert sorted(names) == ["embedding", "model_version", "recent_items", "recent_times", "recent_types"]


@pytest.mark.parametrize("behaviours", [None, {"listen": 1.0, "skip": 0.5}])
def test_feast_apply_by_hand(tmp_path: Path, behaviours: dict[str, float] | None) -> None:
    """`feast apply` works in the folder as it is; FRESHET_BEHAVIOURS names other behaviour types."""
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


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
int64 = st.integers(-(2**63), 2**63 - 1)
time_ms = st.integers(100_000_000_000, 4_102_444_800_000)
float32 = st.floats(width=32, allow_nan=False)
COLUMNS: dict[str, tuple[st.SearchStrategy[Any], Any]] = {
    "string": (text, lambda value: Value(string_val=value)),
    "int64": (int64, lambda value: Value(int64_val=value)),
    "float32": (float32, lambda value: Value(float_val=value)),
    "list[string]": (st.lists(text, max_size=60), lambda value: Value(string_list_val=StringList(val=value))),
    "list[int64]": (
        st.one_of(st.lists(int64, max_size=60), st.lists(time_ms, max_size=60)),
        lambda value: Value(int64_list_val=Int64List(val=value)),
    ),
    "list[float32]": (st.lists(float32, max_size=64), lambda value: Value(float_list_val=FloatList(val=value))),
}


@pytest.mark.parametrize("kind", ENCODERS)
@settings(deadline=None)
@given(data=st.data())
def test_columns_are_encoded_as_protobuf_does(kind: str, data: st.DataObject) -> None:
    """A column's values are the bytes of Feast's `Value` messages, so that no reader can tell; they read back."""
    strategy, message = COLUMNS[kind]
    column = data.draw(st.lists(strategy, max_size=8))
    assert ENCODERS[kind](column) == [message(value).SerializeToString() for value in column]
    assert [decode(raw) for raw in ENCODERS[kind](column)] == column


@settings(deadline=None)
@given(st.lists(st.lists(time_ms, max_size=50), max_size=8))
def test_times_are_encoded_as_protobuf_does(column: list[list[int]]) -> None:
    """The whole-column packing of times gives protobuf's bytes, empty histories included."""
    expected = [Value(int64_list_val=Int64List(val=values)).SerializeToString() for values in column]
    assert ENCODERS["list[int64]"](column) == expected
    assert ENCODERS["list[int64]"]([array("q", values) for values in column]) == expected
