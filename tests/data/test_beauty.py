"""The Beauty converter."""

from __future__ import annotations

from pathlib import Path

from freshet_training.config import TrainingConfig
from freshet_training.dataset import read_items, read_log

from tests.data.beauty import convert


def test_purchases_keep_their_order(tmp_path: Path) -> None:
    """Each user's purchases keep the order of the line, and the last ones are the newest of the log."""
    (tmp_path / "Beauty.txt").write_text("1 7 8 9\n2 8 5\n")
    (tmp_path / "items.tsv").write_text("item_id\tasin\ttitle\n7\tB0\tSoap, 2-Ounce\n8\tB1\t\n")
    convert(tmp_path, tmp_path / "out")
    log = read_log(
        tmp_path / "out" / "events.jsonl", TrainingConfig(behaviours={"purchase": 1.0}, min_users=1), 2 * 10**12
    )
    runs = {user: [event.item_id for event in log.events if event.user_id == user] for user in ("1", "2")}
    assert runs == {"1": ["7", "8", "9"], "2": ["8", "5"]}
    assert [event.item_id for event in log.events[-2:]] == ["9", "5"]
    assert log.cleaning == {}
    items = read_items(tmp_path / "out" / "items.jsonl")
    assert [(item.item_id, item.title) for item in items.values()] == [("7", "Soap, 2-Ounce"), ("8", "")]
