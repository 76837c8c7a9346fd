"""The Feast objects, generated from the core's feature lists.

`feast apply` imports this file as a top-level module and registers every Feast
object it finds; the behaviour types are then those of FRESHET_BEHAVIOURS (JSON)
or the default ones, and the history is that of the archive in FRESHET_ARCHIVE_DIR.
A worker calls `define` with the types and the archive of its settings.
"""

# ruff: noqa: INP001 - `feast apply` wants a folder of top-level modules, not a package
from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import NamedTuple

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource
from feast.data_format import ParquetFormat
from feast.types import Array, FeastType, Float32, Int64, String
from feast.value_type import ValueType
from freshet.core.events import DEFAULT_BEHAVIOURS
from freshet.core.features import EMBEDDING_FEATURES, LIST_FEATURES, Feature, behaviour_features

TYPES: dict[str, FeastType] = {
    "string": String,
    "int64": Int64,
    "float32": Float32,
    "list[string]": Array(String),
    "list[int64]": Array(Int64),
    "list[float32]": Array(Float32),
}
ENCODER_FEATURES = ["recent_items", "recent_types", "recent_times"]


class Definitions(NamedTuple):
    """All Feast objects of this repository; data sources come with their views."""

    user: Entity
    user_behaviour: FeatureView
    user_embedding: FeatureView
    user_list: FeatureView
    user_encoder: FeatureService


def define(behaviours: Collection[str], archive: str) -> Definitions:
    """The Feast objects for these behaviour types, and an archive's folder for their history."""
    user = Entity(
        name="user",
        join_keys=["user_id"],
        value_type=ValueType.STRING,
        description="whoever the events belong to; the key of the events topic",
    )
    behaviour = _view(
        "user_behaviour",
        "what the user did: the fold of their events",
        user,
        _fields(behaviour_features(behaviours)),
        archive,
    )
    embedding = _view(
        "user_embedding", "the user's vector and the model that made it", user, _fields(EMBEDDING_FEATURES), archive
    )
    made_of = _view("user_list", "what the user's list is made of besides", user, _fields(LIST_FEATURES), archive)
    return Definitions(
        user,
        behaviour,
        embedding,
        made_of,
        FeatureService(
            name="user_encoder",
            features=[behaviour[ENCODER_FEATURES], embedding],
            description="what the user encoder reads, and what it made of it",
        ),
    )


def _view(name: str, description: str, user: Entity, schema: Sequence[Field], archive: str) -> FeatureView:
    """A view that is pushed to, and whose history lies in the archive (`freshet features history`).

    Neither online rows nor those of the history expire: there is no ttl.
    """
    history = FileSource(
        name=f"{name}_history",
        path=f"{archive}/{name}/*/*.parquet",
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
    )
    return FeatureView(
        name=name,
        description=description,
        entities=[user],
        schema=list(schema),
        source=PushSource(name=f"{name}_push", batch_source=history),
        ttl=timedelta(0),
        online=True,
    )


def _fields(features: Sequence[Feature]) -> list[Field]:
    return [_field(feature) for feature in features]


def _field(feature: Feature) -> Field:
    return Field(
        name=feature.name,
        dtype=TYPES[feature.kind],
        description=feature.description,
    )


user, user_behaviour, user_embedding, user_list, user_encoder = define(
    json.loads(os.environ.get("FRESHET_BEHAVIOURS", "null")) or DEFAULT_BEHAVIOURS,
    os.environ.get("FRESHET_ARCHIVE_DIR", "../.freshet/archive"),
)
