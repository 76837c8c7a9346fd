"""Feast's point-in-time join over the history, against an independent fold."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from feast import FeatureStore
from freshet.cli import app
from freshet.core.events import Event
from typer.testing import CliRunner

from deploy.local.parts import ROOT
from tests.unit.archive.archives import START, rows, stream, write_stream

pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")  # ibis over a newer DuckDB


class Expected:
    """An independent fold: what is known of each user after each event, under the time it is known from (µs)."""

    def __init__(self, events: list[Event]) -> None:
        self.known: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        silent: set[str] = set()
        ids: dict[str, list[str]] = {}
        log: dict[str, list[Event]] = {}
        stamp: dict[str, int] = {}
        for event in events:
            user = event.user_id
            if event.event_id in ids.setdefault(user, []):
                continue
            if user in silent and not event.type.startswith("user."):
                continue
            stamp[user] = max(event.ts * 1000, stamp.get(user, 0) + 1)
            if event.type in ("user.opt_out", "user.erase"):
                silent.add(user)
                log[user], ids[user] = [], [event.event_id] if event.type == "user.opt_out" else []
                self.known[user] = []
                continue
            ids[user].append(event.event_id)
            if event.type == "user.opt_in":
                silent.discard(user)
            else:
                log.setdefault(user, []).append(event)
            self.known.setdefault(user, []).append((stamp[user], self._row(log.get(user, []))))

    @staticmethod
    def _row(events: list[Event]) -> dict[str, Any]:
        counts = Counter(event.type for event in events)
        return {
            "recent_items": [event.item_id for event in events][-50:],
            "recent_times": [event.ts for event in events][-50:],
            "purchase_count": counts["purchase"],
            "purchase_spend": sum(event.amount or 0 for event in events),
            "last_event_time": max((event.ts for event in events), default=0),
        }

    def at(self, user: str, moment: int) -> dict[str, Any] | None:
        """What is known of a user at a time (µs)."""
        return next((row for stamp, row in reversed(self.known.get(user, [])) if stamp <= moment), None)


def features(folder: Path) -> Path:
    """Run `freshet features history` on a folder's archive; returns the file by which Feast finds the history."""
    environment = {"FRESHET_FEAST_DIR": str(folder / "feast"), "FRESHET_FEATURE_REPO": str(ROOT / "feature_repo")}
    result = CliRunner().invoke(app, ["features", "history", str(folder / "archive"), "--json"], env=environment)
    assert result.exit_code == 0, result.output
    return Path(json.loads(result.stdout)["feature_store"])


def test_feast_joins_what_the_fold_was(tmp_path: Path) -> None:
    """`get_historical_features` gives each user's features as an independent fold has them at that time."""
    events, offsets = stream(1, 700), [0, 0]
    write_stream(tmp_path / "archive", events[:400], offsets)
    features(tmp_path)
    write_stream(tmp_path / "archive", events[400:], offsets)
    store = FeatureStore(fs_yaml_file=features(tmp_path))
    expected = Expected(events)
    rng = random.Random(2)
    asked = {
        (f"user-{rng.randrange(6)}", rng.randrange(START - 10**6, events[-1].ts + 10**6) * 1000) for _ in range(150)
    }
    for user, known in expected.known.items():
        asked |= {(user, stamp + nudge) for stamp, _ in known[-5:] for nudge in (-1, 0)}
    asked.add(("nobody", START * 1000))
    frame = pd.DataFrame(sorted(asked), columns=["user_id", "event_timestamp"])
    frame["event_timestamp"] = pd.to_datetime(frame["event_timestamp"], unit="us", utc=True)
    names = ["recent_items", "recent_times", "purchase_count", "purchase_spend", "last_event_time"]
    joined = store.get_historical_features(frame, [f"user_behaviour:{name}" for name in names]).to_df()
    assert len(joined) == len(frame) > 150
    found: Counter[bool] = Counter()
    for row in joined.to_dict("records"):
        known = expected.at(row["user_id"], row["event_timestamp"].value // 1000)
        found[known is None] += 1
        if known is None:
            assert pd.isna(row["last_event_time"]), row
            continue
        assert list(row["recent_items"]) == known["recent_items"]
        assert list(row["recent_times"]) == known["recent_times"]
        assert (row["purchase_count"], row["last_event_time"]) == (known["purchase_count"], known["last_event_time"])
        assert row["purchase_spend"] == pytest.approx(known["purchase_spend"], rel=1e-6)
    assert min(found.values()) > 10


def test_who_left_is_in_no_row(tmp_path: Path) -> None:
    """The history has no row of a user from before the user's withdrawal."""
    events = stream(6, 500)
    write_stream(tmp_path / "archive", events, [0, 0])
    features(tmp_path)
    assert any(event.type in ("user.erase", "user.opt_out") for event in events)
    known = Expected(events).known
    held = Counter(row["user_id"] for row in rows(tmp_path / "archive"))
    assert held == Counter({user: len(stamps) for user, stamps in known.items() if stamps})
