"""The adapter's columns are the bytes that protobuf would write."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from feast.protos.feast.types.Value_pb2 import FloatList, Int64List, StringList, Value
from freshet.adapters.feast_values import ENCODERS, decode
from hypothesis import given, settings
from hypothesis import strategies as st

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
    """The encoded values of a column are the bytes of Feast's `Value` messages, and decode to the column."""
    strategy, message = COLUMNS[kind]
    column = data.draw(st.lists(strategy, max_size=8))
    assert ENCODERS[kind](column) == [message(value).SerializeToString() for value in column]
    assert [decode(raw) for raw in ENCODERS[kind](column)] == column


@settings(deadline=None)
@given(st.lists(st.lists(time_ms, max_size=50), max_size=8))
def test_times_are_encoded_as_protobuf_does(column: list[list[int]]) -> None:
    """The packing of a whole column of times gives protobuf's bytes, for empty histories as well."""
    expected = [Value(int64_list_val=Int64List(val=values)).SerializeToString() for values in column]
    assert ENCODERS["list[int64]"](column) == expected
    assert ENCODERS["list[int64]"]([array("q", values) for values in column]) == expected
