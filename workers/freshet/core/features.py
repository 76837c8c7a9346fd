"""The one featurisation: states to the encoder's tensors, and to feature-store rows.

Live worker, replay and training call `featurise`; the Feast definitions are
built from `behaviour_features`, `EMBEDDING_FEATURES` and `LIST_FEATURES`; a test holds the
`config.pbtxt` files equal to the tensor lists. How many events a version reads
and how wide its vectors are is in its manifest.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshet.core.state import UserState, joined

TEXT_DIM = 384
"""Width of a text embedding (all-MiniLM-L6-v2)."""
TOP_K = 100
"""Candidates that the served graph returns per user, or all of a smaller vocabulary."""

PADDING = 0
UNKNOWN = 1
FIRST_ITEM = 2
"""Item index 0 pads, 1 is an item the version was not trained on, items follow from 2."""

GAP_BUCKETS = 32
"""Time gaps are bucketed by log2 of seconds: 0 pads, 1 is under a second or backwards."""


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor; `shape` leaves out the batch axis; `dtype` is Triton's name.

    An axis that each model version has its own size of has a name instead:
    `length` (events read), `dim` (width of the vectors) or `candidates`.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


USER_ENCODER_INPUTS = (
    TensorSpec("item_index", "INT32", ("length",)),
    TensorSpec("event_type", "INT32", ("length",)),
    TensorSpec("time_gap", "INT32", ("length",)),
)
USER_ENCODER_OUTPUTS = (
    TensorSpec("topk_index", "INT32", ("candidates",)),
    TensorSpec("topk_score", "FP32", ("candidates",)),
    TensorSpec("embedding", "FP32", ("dim",)),
)
ITEM_TOWER_INPUTS = (TensorSpec("text_embedding", "FP32", (TEXT_DIM,)),)
ITEM_TOWER_OUTPUTS = (TensorSpec("item_vector", "FP32", ("dim",)),)
TEXT_ENCODER_INPUTS = (TensorSpec("text", "BYTES", (1,)),)
TEXT_ENCODER_OUTPUTS = (TensorSpec("text_embedding", "FP32", (TEXT_DIM,)),)

NUMPY_DTYPES: Mapping[str, Any] = {"INT32": np.int32, "FP32": np.float32, "BYTES": np.object_}

Tensors = dict[str, NDArray[Any]]


def sized(specs: Sequence[TensorSpec], *, length: int, dim: int, items: int) -> tuple[TensorSpec, ...]:
    """The tensors of a version that reads `length` events, is `dim` wide and has `items` in its vocabulary."""
    sizes: dict[int | str, int] = {"length": length, "dim": dim, "candidates": min(TOP_K, items)}
    return tuple(
        TensorSpec(spec.name, spec.dtype, tuple(sizes.get(axis, axis) for axis in spec.shape)) for spec in specs
    )


def featurise(
    states: Sequence[UserState], item_index: Mapping[str, int], type_index: Mapping[str, int], length: int
) -> Tensors:
    """The user encoder's inputs for a batch of users, each tensor `[len(states), length]` int32.

    The last `length` events are read, padded on the left, so the newest stands
    last. The gap of an event is to the one read before it; the first one's is bucket 1.
    An event type the version was not trained on has index 0 with a real item.
    """
    rows = len(states)
    lengths = np.fromiter((min(state.length, length) for state in states), np.int64, rows)
    item_lists = chain.from_iterable(state.items[-length:] for state in states)
    type_lists = chain.from_iterable(state.types[-length:] for state in states)
    items = np.array(list(map(item_index.get, item_lists, repeat(UNKNOWN))), np.int32)
    types = np.array(list(map(type_index.get, type_lists, repeat(0))), np.int32)
    times = np.frombuffer(b"".join(state.time_log[-8 * length :] for state in states), np.dtype("<i8"))
    filled = np.arange(length) >= (length - lengths)[:, None]
    gaps = gap_bucket(np.diff(times, prepend=times[:1]))
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    gaps[starts] = 1
    tensors: Tensors = {}
    for spec, values in zip(USER_ENCODER_INPUTS, (items, types, gaps), strict=True):
        tensor = np.zeros((rows, length), np.int32)
        tensor[filled] = values
        tensors[spec.name] = tensor
    return tensors


def gap_bucket(gap_ms: NDArray[np.int64]) -> NDArray[np.int32]:
    """Bucket time gaps (ms): `1 + floor(log2(1 + seconds))`, at most `GAP_BUCKETS - 1`; negative gaps are 1."""
    seconds = np.maximum(gap_ms, 0) // 1000
    buckets: NDArray[np.int32] = np.minimum(1 + np.floor(np.log2(1 + seconds)), GAP_BUCKETS - 1).astype(np.int32)
    return buckets


@dataclass(frozen=True)
class Feature:
    """One feature-store field; `kind` is `string`, `int64`, `float32` or a `list[...]` of one."""

    name: str
    kind: str
    description: str


def behaviour_features(behaviours: Collection[str]) -> tuple[Feature, ...]:
    """The behaviour view's fields, in the order of `behaviour_row`, for the given behaviour types."""
    return (
        Feature("recent_items", "list[string]", "the recent items, oldest first"),
        Feature("recent_types", "list[string]", "behaviour types of the recent items"),
        Feature("recent_times", "list[int64]", "event times of the recent items, ms since the epoch"),
        *(Feature(f"{kind}_count", "int64", f"number of {kind} events") for kind in behaviours),
        *(Feature(f"{kind}_spend", "float32", f"sum of the amounts of {kind} events") for kind in behaviours),
        Feature("last_event_time", "int64", "newest event time, ms since the epoch"),
    )


EMBEDDING_FEATURES = (
    Feature("embedding", "list[float32]", "the user's vector, as wide as its model version's"),
    Feature("model_version", "int64", "the model version that made the vector"),
)

LIST_FEATURES = (
    Feature("seen_items", "list[string]", "older distinct items, which are no longer among the recent ones"),
    Feature("as_of", "list[int64]", "partition, offset and time (ms since the epoch) of the newest event"),
    Feature("feature_time", "int64", "the timestamp of the user's rows, µs since the epoch; it rises"),
    Feature("candidates", "list[int64]", "item indices that the encoder found for the vector; none where it was away"),
    Feature("candidate_scores", "list[float32]", "the encoder's scores of the candidates"),
)
"""What a list is made of beside the other two views: with it, whoever reads makes the list that was published."""


def behaviour_row(state: UserState, behaviours: Collection[str]) -> tuple[Any, ...]:
    """The behaviour view's values for one user, in the order of `behaviour_features`."""
    return (
        state.items,
        state.types,
        state.times,
        *(state.counts.get(kind, 0) for kind in behaviours),
        *(state.spend.get(kind, 0.0) for kind in behaviours),
        state.last_ts,
    )


def list_row(
    state: UserState, as_of_ts: int, candidates: Sequence[int] = (), scores: Sequence[float] | NDArray[np.float32] = ()
) -> tuple[Any, ...]:
    """The list view's values for one user, in the order of `LIST_FEATURES`.

    `as_of_ts` (ms) is the time of the newest event. `candidates` `[K]` and `scores` `[K]` are the encoder's outputs for
    the state.
    """
    return state.seen, (state.partition, state.offset, as_of_ts), state.feature_ts, candidates, scores


def state_of(features: Mapping[str, Any]) -> UserState:
    """The state that a user's features were written from, as far as a list depends on it.

    Counts, sums and event ids are left out. Without the list view's features nothing older is known as seen, and the
    position is partition 0 at offset -1.
    """
    partition, offset, _ = features["as_of"] or (0, -1, 0)
    times = features["recent_times"]
    return UserState(
        partition,
        offset,
        item_log=joined(features["recent_items"]),
        type_log=joined(features["recent_types"]),
        time_log=struct.pack(f"<{len(times)}q", *times),
        seen_log=joined(features["seen_items"] or ()),
        last_ts=features["last_event_time"],
        feature_ts=features["feature_time"] or 0,
    )
