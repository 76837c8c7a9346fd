"""The files that a replay writes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from freshet.core.events import DEFAULT_BEHAVIOURS, Event
from freshet.core.state import empty_state, fold
from freshet.replay import output
from freshet.replay.actions import Moment
from freshet.replay.clock import Clock
from freshet.replay.output import FolderOutput, Parts

from tests.simulation.memory_replays import START

SCHEMA = pa.schema([("number", pa.int64())])


def test_parts_are_cut_when_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds at most a part, and files behind a checkpoint are removed."""
    monkeypatch.setattr(output, "PART_ROWS", 3)
    parts = Parts(tmp_path / "rows", SCHEMA)
    for number in range(7):
        parts.add((number,))
    assert parts.number == 2
    parts.cut()
    assert pq.read_table(tmp_path / "rows")["number"].to_pylist() == list(range(7))
    (tmp_path / "rows" / "part-000003.parquet.partial").write_bytes(b"half")
    parts.discard_behind(1)
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["part-000000.parquet"]
    parts.add((9,))
    parts.cut()
    assert pq.read_table(tmp_path / "rows")["number"].to_pylist() == [0, 1, 2, 9]


def test_who_left_is_in_no_features_and_training_rows(tmp_path: Path) -> None:
    """Rows of a user up to the user's withdrawal are removed, and other rows stay."""
    folder = FolderOutput(tmp_path, DEFAULT_BEHAVIOURS, features=True, training_rows=True)
    for user in ("gone", "stays"):
        state = empty_state(0)
        for number in range(3):
            event = Event(f"e{number}", user, "view", START + number, "i")
            folder.training_row(state, event)
            fold(state, event, 0, number)
            folder.features(Moment(user, state, event, Clock(1.0).counts, (), judged=False))
    folder.cut()
    folder.forget({"gone": START + 1})
    rows = pq.read_table(tmp_path / "training_rows").to_pylist()
    assert [(row["user_id"], row["next_ts"] - START) for row in rows] == [
        ("gone", 2),
        ("stays", 0),
        ("stays", 1),
        ("stays", 2),
    ]
    features = pq.read_table(tmp_path / "features")["user_id"].to_pylist()
    assert features == ["gone", "stays", "stays", "stays"]
