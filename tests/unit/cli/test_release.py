"""`freshet publish`, `promote` and `models`: the lines that an operator reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from freshet.cli import app, release
from freshet.core.comparison import Comparison
from freshet.core.rollout import MODEL, Report, Rollout, Versions
from freshet.release import publish
from typer.testing import CliRunner

from deploy.local.parts import TRITON_MODELS
from tests.memory_ports import MemoryRecords

LIVE = Rollout(MODEL, 1, "promoted", 1_000)
OLD = Rollout(MODEL, 4, "rolled_back", 4_000, reason="w1: \x1b[2Jtoo slow")
BEFORE = Comparison()
COMPARED = Comparison(lists=1200, failed=3, overlap=0.8123, score_gap=0.5, live_ms=1.25, candidate_ms=2.0)


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no stack of the developer's is


class Reported(MemoryRecords):
    """Records beside which one worker reports."""

    def __init__(self, report: Report, *steps: Rollout) -> None:
        super().__init__(*steps)
        self.report = report

    def read(self) -> Versions:
        """The fold, and the report."""
        found = super().read()
        found.reports["w1"] = self.report
        return found


def shown(monkeypatch: pytest.MonkeyPatch, report: Report, *steps: Rollout) -> list[list[str]]:
    """The lines of `freshet models`, each as its columns."""
    monkeypatch.setattr(release, "ModelsTopic", lambda _: Reported(report, *steps))
    monkeypatch.setattr(release, "_ready", lambda _: [1, 2])
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0, result.output
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in result.stdout.splitlines()]


def report(candidate: int = 0, comparison: Comparison = BEFORE, live: int = 1) -> Report:
    return Report(MODEL, "w1", 5_000, live, candidate, comparison)


def test_a_version_in_shadow_makes_no_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table shows a shadow's comparison in columns of its own and gives it no users."""
    lines = shown(monkeypatch, report(2, COMPARED), LIVE, Rollout(MODEL, 2, "shadow", 2_000))
    assert [line[:2] for line in lines[1:3]] == [["2", "shadow"], ["1", "live"]]
    assert lines[4] == ["worker", "lists by", "users compared", "overlap", "score gap", "failed", "encoder ms"]
    assert lines[5:] == [["w1", "1, tries 2", "1,200", "0.812", "0.5", "3", "1.2 → 2.0"]]


def test_nothing_is_said_of_what_was_not_compared_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table shows no overlap before the first compared user."""
    lines = shown(monkeypatch, report(2), LIVE, Rollout(MODEL, 2, "shadow", 2_000, share=0.25))
    assert lines[1][:2] == ["2", "shadow 25%"]
    assert lines[5][2:] == ["0", "-", "-", "0", "-"]


def test_nothing_is_said_of_lists_that_a_candidate_no_longer_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table shows no overlap where every newest inference failed, and the counts of the whole stage."""
    failing = Comparison(lists=1200, failed=2000, error_rate=1.0, live_ms=1.25, candidate_ms=2.0)
    lines = shown(monkeypatch, report(2, failing), LIVE, Rollout(MODEL, 2, "shadow", 2_000))
    assert lines[5][2:] == ["1,200", "-", "-", "2,000", "-"]


def test_a_canary_s_bands_are_shown_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table shows a canary's bands, and a share below a hundredth is not 0%."""
    lines = shown(monkeypatch, report(2, COMPARED), LIVE, Rollout(MODEL, 2, "canary", 2_000, share=0.004))
    assert lines[1][:2] == ["2", "canary 0.4%"]
    assert lines[5][:2] == ["w1", "1 and 2"]
    assert lines[6] == [
        "from 200 users on it is rolled back at overlap < 0.1, failed > 1% or encoder ms > 2 × live",
    ]


def test_one_version_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table shows a single live version, and no candidate column without a candidate."""
    lines = shown(monkeypatch, report(), LIVE, OLD, Rollout(MODEL, 2, "promoted", 5_000))
    assert [line[1] for line in lines[1:4]] == ["rolled back", "live", "was live"]
    assert "\\x1b[2Jtoo slow" in lines[1][-1]
    assert lines[5:] == [["worker", "lists by"], ["w1", "1 (changing)"]]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Rollout(MODEL, 2, "shadow", 0), "version 2 in shadow for all users"),
        (Rollout(MODEL, 2, "canary", 0, share=0.07), "version 2 in canary for 7% of the users"),
        (Rollout(MODEL, 2, "canary", 0, share=0.001), "version 2 in canary for 0.1% of the users"),
        (Rollout(MODEL, 2, "rolled_back", 0), "version 2 rolled back"),
    ],
)
def test_a_step_in_a_few_words(step: Rollout, words: str) -> None:
    """The publisher shows each step in a few words."""
    assert publish.said(step) == words


@pytest.mark.parametrize(("stage", "next_"), [("promoted", "rollback"), ("canary", "promote"), ("shadow", "models")])
def test_what_can_be_done_next_is_said(stage: Any, next_: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The output names the next commands."""
    release._tell(Rollout(MODEL, 2, stage, 0), 2, as_json=False)
    assert f"`freshet {next_}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("comparison", "said"),
    [(BEFORE, "it was compared for 0 users before, and a canary is judged from 200 on"), (COMPARED, "")],
)
def test_a_promotion_after_few_comparisons_warns(
    monkeypatch: pytest.MonkeyPatch, comparison: Comparison, said: str
) -> None:
    """Promoting a candidate with few comparisons prints a warning."""
    records = Reported(report(2, comparison), LIVE, Rollout(MODEL, 2, "canary", 2_000))
    monkeypatch.setattr(release, "ModelsTopic", lambda _: records)
    monkeypatch.setattr(publish, "promote", lambda *_, **__: Rollout(MODEL, 2, "promoted", 3_000))
    result = CliRunner().invoke(app, ["promote"])
    assert result.exit_code == 0, result.output
    assert "version 2 is live" in result.stderr
    assert ("it was compared" in result.stderr) is bool(said)
    assert said in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BEHAVIOURS", '{"view": 1}', "trained on click, purchase too"),
        ("HISTORY", "20", "it reads 50 events of a user, and these settings keep 20"),
        ("POPULARITY_HALF_LIFE", "7200", "its popularity halves every 168 h, and these settings' every 2 h"),
        ("BEHAVIOURS", '{"view": 1, "click": 2, "purchase": 4}', ""),
    ],
)
def test_settings_that_a_version_was_not_trained_by_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    """`models` names settings for types, history and popularity that differ from the version's training."""
    taken = Rollout(MODEL, 3, "promoted", 3_000)
    monkeypatch.setattr(release, "ModelsTopic", lambda _: None)
    monkeypatch.setattr(publish, "publish_bundle", lambda *_, **__: taken)
    monkeypatch.setenv(f"FRESHET_{name}", value)
    result = CliRunner().invoke(app, ["publish", str(TRITON_MODELS / MODEL / "1")])
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert said in told
    assert ("workers need the settings file" in told) is bool(said)
