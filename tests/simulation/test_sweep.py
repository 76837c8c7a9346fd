"""`freshet replay --try`: the same moments ranked with other settings, judged side by side."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from freshet.cli import app
from freshet.core.events import encode_event
from freshet.report.results_file import read_results
from typer.testing import CliRunner

from deploy import local
from deploy.local.parts import ROOT, TRITON_MODELS
from tests.altered_bundles import Keys, without_lifts
from tests.simulation.memory_replays import stream

SHIPPED = TRITON_MODELS / "user_encoder" / "1"
pytestmark = pytest.mark.skipif(bool(local.missing_parts()), reason="needs the text encoder: run `make setup`")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log; the shipped version ranks it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(ROOT / "triton_models"))
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"".join(encode_event(event) + b"\n" for event in stream()))
    return file


def test_each_value_of_a_sweep_is_a_policy(log: Path) -> None:
    """The value in force gives the version's lists, another value gives others, and all are judged alike."""
    swept = ("--try", "prior_weight=1,40", "--try", "diversity=0.9")
    done = CliRunner().invoke(app, ["replay", str(log), *swept, "--out", "sweep"])
    assert done.exit_code == 0, done.output
    names = ["version 1", "version 1, prior weight 1", "version 1, prior weight 40", "version 1, diversity 0.9"]
    digests = json.loads(Path("sweep/replay.json").read_text())["digests"]
    assert list(digests) == names
    assert digests[names[0]] == digests[names[1]]
    assert len(set(digests.values())) == 3
    results = read_results(Path("sweep/results.json"))
    assert [evaluation.name for evaluation in results.evaluations[:4]] == names
    whole = [evaluation.slices["all"]["all"] for evaluation in results.evaluations[:4]]
    assert len({part.events for part in whole}) == 1
    assert whole[3].metrics["intra_list_diversity"].mean > whole[0].metrics["intra_list_diversity"].mean
    lines = done.stdout.splitlines()
    [top] = [row for row, line in enumerate(lines) if "NDCG" in line]
    assert lines[top].split()[:5] == ["HR", "NDCG", "HR", "of", "purchase"]
    verdicts = [line.split()[-3:] for line in lines[top + 1 : top + 5]]
    assert verdicts[1] == ["no", "difference", "shown"]  # the same lists
    assert verdicts[0] != verdicts[1]  # the first stands beside nothing


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        (
            "colour=1",
            "with a knob of diversity, prior_weight, value_weight, novelty_weight, exploration, not 'colour=1'",
        ),
        ("diversity=0.1,2", "--try diversity=0.1,2: Expected `float` <= 1.0"),
        ("novelty_weight", "--try novelty_weight: could not convert string to float"),
    ],
)
def test_a_sweep_that_is_refused_is_one_line(log: Path, swept: str, message: str) -> None:
    """A refused sweep is one line that names the knobs or the value, and nothing is written."""
    done = CliRunner().invoke(app, ["replay", str(log), "--try", swept, "--out", "sweep"])
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("sweep").exists()


def test_a_version_without_lifts_cannot_weigh_them(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of a lift's weight is refused for a version without lifts, and nothing is written."""
    models = without_lifts(tmp_path / "models", Keys(tmp_path / "keys").private)
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(models))
    done = CliRunner().invoke(app, ["replay", str(log), "--try", "novelty_weight=0.2", "--out", "sweep"])
    assert done.exit_code == 1
    assert "version 1 does not know its items' value and novelty: train one that does" in done.stderr
    assert not Path("sweep").exists()


def test_a_bundle_is_judged_without_a_repository(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--bundle DIR` gives the lists that the same version of a repository gives."""
    for name, named in (("repository", ("--model", "1")), ("folder", ("--bundle", str(SHIPPED)))):
        done = CliRunner().invoke(app, ["replay", str(log), *named, "--evaluate", "--out", name])
        assert done.exit_code == 0, done.output
    found = [json.loads(Path(name, "replay.json").read_text())["digests"] for name in ("repository", "folder")]
    assert found[0] == found[1]


def test_a_log_of_other_items_is_not_judged(log: Path) -> None:
    """A version that knows none of the log's items is refused in one line, and no folder is left."""
    renamed = [msgspec.structs.replace(event, item_id=event.item_id and f"x{event.item_id}") for event in stream()]
    log.write_bytes(b"".join(encode_event(event) + b"\n" for event in renamed))
    done = CliRunner().invoke(app, ["replay", str(log), "--bundle", str(SHIPPED), "--evaluate", "--out", "foreign"])
    assert done.exit_code == 1
    assert "0 of its first" in done.stderr
    assert "--bundle" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("foreign").exists()
