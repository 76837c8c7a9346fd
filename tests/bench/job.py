"""The job of the full-path comparators for one event, without the streaming library.

Decode, fold and featurise are the core's own. Left out, to the comparators'
advantage: reasons, diversity, cold items and the popularity prior in ranking,
and the embedding's own Feast view.
"""
# ruff: noqa: PLC0415 - Feast takes seconds to import, and only those who write to it need it

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from freshet.bundle.bundle import load_bundle
from freshet.core.events import DEFAULT_BEHAVIOURS
from freshet.core.features import (
    FIRST_ITEM,
    USER_ENCODER_INPUTS,
    USER_ENCODER_OUTPUTS,
    behaviour_features,
    behaviour_row,
    featurise,
)
from freshet.core.recommendation import (
    AsOf,
    Item,
    Recommendation,
    SideInputs,
    Timings,
    encode_recommendation,
    recommendation_id,
)
from freshet.core.rollout import MODEL
from freshet.core.state import HISTORY, UserState
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult

from tests.bench.stream import movielens_like

LIST_SIZE = 10
NO_SIDE_INPUTS = SideInputs(-1, -1, -1)


class Vocabulary:
    """Item and type indexes of a bundle's folder; without one, MovieLens-like ids."""

    def __init__(self, bundle: str | None) -> None:
        if bundle is None:
            self.items = movielens_like()
            self.length = HISTORY
            self.types = {kind: row for row, kind in enumerate(DEFAULT_BEHAVIOURS, 1)}
        else:
            loaded = load_bundle(Path(bundle))
            self.items = loaded.item_ids
            self.length = loaded.manifest.length
            self.types = loaded.type_index
        self.index = {item: row for row, item in enumerate(self.items, FIRST_ITEM)}


def encoder_request(states: list[UserState], vocabulary: Vocabulary, version: int) -> dict[str, Any]:
    """The keywords of a Triton client's `infer` that encode these users."""
    tensors = featurise(states, vocabulary.index, vocabulary.types, vocabulary.length)
    inputs = []
    for spec in USER_ENCODER_INPUTS:
        tensor = InferInput(spec.name, tensors[spec.name].shape, spec.dtype)
        tensor.set_data_from_numpy(tensors[spec.name])
        inputs.append(tensor)
    outputs = [InferRequestedOutput(spec.name) for spec in USER_ENCODER_OUTPUTS]
    return {
        "model_name": MODEL,
        "model_version": str(version),
        "inputs": inputs,
        "outputs": outputs,
    }


def recommend(
    *,
    user_id: str,
    state: UserState,
    answer: InferResult,
    vocabulary: Vocabulary,
    version: int,
    broker_ms: int,
) -> bytes:
    """The list to publish: the model's best items that the user has not seen."""
    rows: NDArray[Any] = answer.as_numpy("topk_index")[0]
    scores: NDArray[Any] = answer.as_numpy("topk_score")[0]
    seen = {*state.items, *state.seen}
    items: list[Item] = []
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        item = vocabulary.items[row - FIRST_ITEM]
        if item not in seen:
            items.append(Item(item, round(score, 5), "model"))
            if len(items) == LIST_SIZE:
                break
    as_of = AsOf(state.partition, state.offset, state.last_ts)
    now = time.time_ns() // 1_000_000
    return encode_recommendation(
        Recommendation(
            recommendation_id=recommendation_id(user_id, as_of, version, False),
            user_id=user_id,
            items=items,
            model_version=version,
            as_of=as_of,
            side_inputs=NO_SIDE_INPUTS,
            timings=Timings(state.last_ts, broker_ms, now, now, now),
            degraded=False,
            personalised=True,
        )
    )


def left_out(feature_repo: str | None) -> list[str]:
    """What the worker does and a comparator does not."""
    ranking = ["reasons", "diversity", "cold items", "popularity prior"]
    return [
        *ranking,
        "embedding feature view",
        *([] if feature_repo else ["behaviour feature view"]),
    ]


def feature_writer(feature_repo: str | None, view: str) -> Callable[[str, UserState], None]:
    """A function that writes one user's behaviour row online, as Feast's documentation does."""
    if feature_repo is None:
        return lambda _user_id, _state: None
    import pandas as pd
    from feast import FeatureStore

    store = FeatureStore(repo_path=feature_repo)
    feature_view = store.get_feature_view(view)
    (entity,) = feature_view.join_keys
    timestamp = feature_view.batch_source.timestamp_field
    names = [feature.name for feature in behaviour_features(DEFAULT_BEHAVIOURS)]

    def write(user_id: str, state: UserState) -> None:
        moment = datetime.fromtimestamp(state.feature_ts / 1e6, UTC)
        row = dict(zip(names, behaviour_row(state, DEFAULT_BEHAVIOURS), strict=True))
        row["recent_times"] = list(state.times)
        frame = pd.DataFrame([{entity: user_id, timestamp: moment, **row}])
        store.write_to_online_store(view, frame)

    return write
