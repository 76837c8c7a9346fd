"""From a log to a bundle: the whole job, on a log of seconds."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from freshet.bundle.bundle import Check, Data, Decision, load_bundle
from freshet.bundle.verify import load_sound
from freshet.core.events import ERASE, OPT_OUT, Event
from freshet_training import export, gate, measure, search, train, training_set
from freshet_training import tracking as tracker
from freshet_training.config import ConfigError, TrainingConfig, load_config
from freshet_training.defaults import former_settings
from freshet_training.evaluate import EvaluationReplay, EvaluationSet, evaluate
from freshet_training.examples import IGNORE
from freshet_training.fit import Epoch, FitError
from freshet_training.layout import LayoutError
from freshet_training.model import UserEncoder
from freshet_training.model_shape import ModelShape
from freshet_training.regression_set import FORMER_FILE, REGRESSION_FILE, regression_cases, regression_pairs
from freshet_training.text import vector_cache
from freshet_training.train import REFUSED, main
from freshet_training.training_run import RunRequest
from freshet_training.training_set import TrainingFiles
from freshet_training.warm_start import warm_start
from mlflow import MlflowClient
from safetensors.numpy import load_file

from tests.training.conftest import Texts, arguments
from tests.training.ring_log import ITEMS, MODEL, NOW, walk, write_config, write_items, write_log

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "triton_models" / "user_encoder" / "1"


def run(folder: Path, out: str, *more: str, events: str = "events.jsonl", work: str = "work") -> int:
    return main([*arguments(folder, events), "--out", str(folder / out), "--work", str(folder / work), *more])


def test_the_bundle_says_what_it_is_of(first: Path) -> None:
    """The manifest has the data window, digest, cleaning, settings and gate reasons, and the model knows the ring."""
    bundle = load_bundle(first / "first")
    manifest = bundle.manifest
    assert (manifest.name, manifest.types, manifest.dim, manifest.length) == ("ring", ["view"], 16, 2)
    assert (manifest.data.first, manifest.data.events, manifest.data.users) == (NOW, 360, 30)
    assert manifest.data.cleaning == {"items without text": 1, "held back for the regression set": 0}
    assert len(manifest.data.digest) == 64
    assert manifest.gate is not None
    assert manifest.gate.accepted
    assert load_sound(first / "first").item_ids == bundle.item_ids
    assert {check.name for check in manifest.gate.checks} == {"finite", "parity", "size", "latency", "network"}
    assert manifest.metrics["encoder"]["ndcg@10"] > 0.8
    assert bundle.item_vectors.shape == (ITEMS, 16)
    assert bundle.item_lifts is not None
    assert bundle.item_lifts.shape == (ITEMS + 1, 2)
    assert "of each item how frequent it was" in (first / "first" / "MODEL_CARD.md").read_text()
    assert not (first / "work" / "checkpoint.safetensors").exists()
    assert sorted(path.name for path in first.glob(".*")) == []


def test_an_incremental_run_goes_on_from_the_live_version(first: Path) -> None:
    """New items come behind the known ones, and the gate compares with the live version."""
    more = [Event(f"n{e.event_id}", e.user_id, "view", e.ts + 1, "new") for e in walk(steps=16)[-20:]]
    write_log(first / "more.jsonl", [*walk(steps=18), *more])
    assert run(first, "second", "--live", str(first / "first"), "--incremental", events="more.jsonl") in (0, REFUSED)
    before, after = load_bundle(first / "first"), load_bundle(first / "second")
    assert after.item_ids == [*before.item_ids, "new"]
    assert after.manifest.parent == "first"
    assert after.manifest.data.last > before.manifest.data.last
    assert after.manifest.gate is not None
    names = [check.name for check in after.manifest.gate.checks]
    assert names == [
        "finite",
        "parity",
        "size",
        "latency",
        "network",
        "quality",
        "coverage",
        "diversity",
        "regression set",
    ]
    assert json.loads((first / "work" / REGRESSION_FILE).read_bytes())


def test_nothing_of_the_log_is_left_unlearned(first: Path) -> None:
    """The version was chosen and judged by a part, then fitted anew on all; the next run learns what came since."""
    live = load_bundle(first / "first")
    assert live.manifest.data.trained_to == walk()[-1].ts + 1
    assert "fitted anew on all three parts" in (first / "first" / "MODEL_CARD.md").read_text()
    events = walk(steps=20)
    write_log(first / "later.jsonl", events)
    config = load_config(first / "ring.toml", rehearsal=0.0)
    work = first / "without a regression set"
    work.mkdir()
    files = TrainingFiles(first / "later.jsonl", first / "items.jsonl", work, first)
    found = training_set.read_training_set(config, files, live)
    assert found.since == live.manifest.data.trained_to
    targets = training_set.epoch_rows(config, found)(np.random.default_rng(0)).next_item
    assert (targets != IGNORE).sum() == len(found.split.train) - len(walk())
    whole = training_set.with_held_back(found)
    targets = training_set.epoch_rows(config, whole)(np.random.default_rng(0)).next_item
    assert (targets != IGNORE).sum() == len(events) - len(walk())


def test_an_item_of_the_held_back_part_has_a_place_of_its_own(first: Path) -> None:
    """It joins the vocabulary behind the items of the training part, with its text, and is still ranked once."""
    events = [*walk()[:-1], msgspec.structs.replace(walk()[-1], item_id=f"i{ITEMS}")]
    write_log(first / "late item.jsonl", events)
    config = load_config(first / "ring.toml", words=True)
    files = TrainingFiles(first / "late item.jsonl", first / "items.jsonl", first / "late", first)
    (first / "late").mkdir()
    found = training_set.read_training_set(config, files, None)
    whole = training_set.with_held_back(found)
    assert (found.others, whole.others) == ([f"i{ITEMS}"], [])
    assert whole.item_ids == [*found.item_ids, f"i{ITEMS}"]
    assert (whole.texts == found.texts).all()
    assert whole.word_numbers is not None
    assert len(whole.word_numbers) == ITEMS + 1


def test_a_version_that_does_not_say_what_it_learned(first: Path) -> None:
    """For a manifest without a learned position, events after its log are new."""
    write_log(first / "later.jsonl", walk(steps=20))
    live = load_bundle(first / "first")
    early = msgspec.structs.replace(
        live.manifest, data=msgspec.structs.replace(live.manifest.data, trained_to=Data().trained_to)
    )
    config = load_config(first / "ring.toml")
    found = training_set.read_training_set(
        config,
        TrainingFiles(first / "later.jsonl", first / "items.jsonl", first / "work", first),
        msgspec.structs.replace(live, manifest=early),
    )
    assert found.since == live.manifest.data.last + 1


def test_nothing_new_is_no_version(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log without new events ends well, with a line and no bundle."""
    assert run(first, "none", "--live", str(first / "first"), "--incremental") == 0
    assert "nothing to learn yet" in capsys.readouterr().out
    assert not (first / "none").exists()


@pytest.mark.parametrize(("steps", "why"), [(12, "0 first touches"), (16, "too few to tell yet")])
def test_too_little_is_no_version_either(first: Path, capsys: pytest.CaptureFixture[str], steps: int, why: str) -> None:
    """A log with too few new first touches gives no bundle."""
    last = walk(steps=steps)
    again = [
        Event(f"again-{e.event_id}", e.user_id, "view", last[-1].ts + e.ts - NOW, e.item_id) for e in walk(steps=5)
    ]
    write_log(first / "little.jsonl", [*last, *(again if steps == 12 else [])])
    assert run(first, "none", "--live", str(first / "first"), "--incremental", events="little.jsonl") == 0
    assert why in capsys.readouterr().out
    assert not (first / "none").exists()


def test_a_candidate_that_was_refused_is_not_made_again(
    first: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The periodic job repeats a refused training only with other settings or events."""
    more = ("--live", str(first / "first"), "--incremental", "--epochs", "1")
    write_log(first / "later.jsonl", walk(steps=20))
    with monkeypatch.context() as patch:
        real = gate.judge
        refusal = Check("patched", passed=False, detail="for the test")
        patch.setattr(gate, "judge", lambda *given, **more: [*real(*given, **more), refusal])
        assert run(first, "refused", *more, events="later.jsonl", work="refused-work") == REFUSED
    assert (first / "refused-work" / REGRESSION_FILE).exists()
    assert run(first, "again", *more, events="later.jsonl", work="refused-work") == 0
    assert "nothing new since the gate refused a candidate" in capsys.readouterr().out
    assert not (first / "again").exists()
    assert run(first, "again", *more, "--seed", "3", events="later.jsonl", work="refused-work") in (0, REFUSED)
    assert (first / "again").exists()


def test_a_live_version_of_other_types_is_no_start(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A live version with a type that the settings lack is refused as a start."""
    (first / "clicks.toml").write_text("[behaviours]\nclick = 1.0\n")
    write_log(first / "clicks.jsonl", [msgspec.structs.replace(event, type="click") for event in walk(steps=20)])
    more = ("--live", str(first / "first"), "--incremental", "--config", str(first / "clicks.toml"))
    assert run(first, "bad", *more, events="clicks.jsonl") == 1
    assert "was trained on view too: give the settings file that names them" in capsys.readouterr().err


def test_a_log_without_a_target_cannot_be_learned(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log without a target in its training part is an error that names the targets."""
    events = [msgspec.structs.replace(e, type="buy") if e.ts > walk()[320].ts else e for e in walk()]
    write_log(first / "late.jsonl", events)
    text = (first / "ring.toml").read_text().replace("view = 1.0", "view = 1.0\nbuy = 2.0")
    (first / "buy.toml").write_text(text.replace("[training]", '[training]\ntargets = ["buy"]'))
    assert run(first, "bad", "--config", str(first / "buy.toml"), events="late.jsonl") == 1
    assert "none of the events to learn from is a buy" in capsys.readouterr().err


def test_what_a_candidate_has_forgotten_counts_against_it(first: Path) -> None:
    """Items that only the live version knows count as misses of the candidate."""
    log = [event for event in walk() if int((event.item_id or "")[1:]) % 2]
    write_log(first / "half.jsonl", log)
    (first / "none.jsonl").write_text("")
    work = ("--work", str(first / "half-work"))
    assert run(first, "half", "--items", str(first / "none.jsonl"), *work, events="half.jsonl") in (0, REFUSED)
    half, whole = load_bundle(first / "half"), load_bundle(first / "first")
    catalogue = [*half.item_ids, *(item for item in whole.item_ids if item not in half.item_ids)]
    ground = EvaluationSet(walk(), 330, catalogue, np.zeros((ITEMS, 384), np.float32), frozenset())
    config = load_config(first / "ring.toml")
    checks = gate.judge(gate.Judged.of(half, ground), whole, ground, config, first / "half-regression-set.json")
    [check] = [check for check in checks if check.name == "quality"]
    assert not check.passed
    assert check.detail.endswith("over 30 events")


def test_quality_is_told_by_slice(first: Path) -> None:
    """Quality is given by slices of items and users, each with its number of events."""
    metrics = load_bundle(first / "first").manifest.metrics
    parts = {name.split(", ")[1]: figures["events"] for name, figures in metrics.items() if ", " in name}
    assert sum(events for name, events in parts.items() if "items" in name) == metrics["encoder + prior"]["events"]
    assert "short histories" not in parts


def test_texts_are_read_once_by_each_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached text vectors survive a kill and are used for the same text encoder alone."""
    monkeypatch.setattr(vector_cache, "STORED_EVERY", 2)
    file, encoder = tmp_path / "texts.npz", Texts(tmp_path)

    def killed(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vector_cache.TextVectorCache(encoder, file).encode(["a", "b", "c"], killed)
    vector_cache.TextVectorCache(encoder, file).encode(["a", "b", "c"])
    assert encoder.read == ["a", "b", "c", "c"]
    other = Texts(tmp_path)
    other.digest = "other directions"
    vector_cache.TextVectorCache(other, file).encode(["a"])
    assert other.read == ["a"]


def test_what_was_no_event_is_in_the_record(first: Path) -> None:
    """The manifest counts what the export left out with what the cleaning left out."""
    assert run(first, "odd", "--left-out", '{"unknown type": 3}', "--epochs", "1") in (0, REFUSED)
    assert load_bundle(first / "odd").manifest.data.cleaning["unknown type"] == 3


def test_a_version_says_how_it_was_made(first: Path) -> None:
    """The manifest has all settings, those of a search included."""
    assert msgspec.convert(load_bundle(first / "first").manifest.settings, TrainingConfig) == load_config(
        first / "ring.toml"
    )


def test_a_run_killed_for_real_ends_with_the_same_bundle(first: Path) -> None:
    """After a SIGKILL in an epoch the same command gives byte-equal weights and graphs."""
    folder = first / "killed"
    folder.mkdir()
    write_log(folder / "events.jsonl", walk())
    write_items(folder / "items.jsonl", without=[3])
    write_config(folder / "ring.toml")
    script = (
        "import sys; from tests.training.conftest import Texts; from freshet_training import train, training_set; "
        "training_set.TextEncoder = Texts; sys.exit(train.main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        script,
        *arguments(folder),
        "--out",
        str(folder / "out"),
        "--work",
        str(folder / "work"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch   2"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "out").exists()
    assert (folder / "work" / "checkpoint.safetensors").exists()  # by this name `freshet train` knows of it
    assert run(folder, "out") == 0
    for name in ("weights.safetensors", "model.onnx", "item_vectors.npy"):
        assert (folder / "out" / name).read_bytes() == (first / "first" / name).read_bytes(), name


def test_teachers_are_fitted_first_and_once(
    first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model learns from its teachers and the log, and a resumed run keeps finished teachers."""
    folder = first / "taught"
    folder.mkdir()
    write_log(folder / "events.jsonl", walk())
    write_items(folder / "items.jsonl", without=[3])
    write_config(folder / "ring.toml", teachers=2, words=True)
    work = folder / "work"

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "measure", stopped)
    assert run(folder, "out") == 130
    assert "teacher 2: epoch   8" in capsys.readouterr().out
    assert len(list(work.glob("teacher-*.safetensors"))) == 2
    monkeypatch.undo()
    assert run(folder, "out") == 0
    assert "teacher 1: epoch" not in capsys.readouterr().out
    assert not list(work.glob("*.safetensors"))
    learned = [load_file(bundle / "weights.safetensors") for bundle in (folder / "out", first / "first")]
    assert learned[0].keys() == learned[1].keys()  # of words no trace is left
    assert not np.allclose(learned[0]["residual.weight"], learned[1]["residual.weight"])
    assert load_bundle(folder / "out").manifest.metrics["encoder"]["ndcg@10"] > 0.8


def test_who_is_forgotten_is_in_no_row(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of a withdrawn user are in no row, no evaluation and no regression set."""
    events = walk()
    last = events[-1].ts
    gone = [Event("o", "u1", OPT_OUT, last + 1), Event("r", "u2", ERASE, last + 2)]
    only = [Event(f"s{n}", "u1", "view", NOW + n, "secret") for n in range(3)]
    write_log(first / "gone.jsonl", sorted([*only, *events, *gone], key=lambda event: event.ts))
    seen: list[Event] = []
    monkeypatch.setattr(
        training_set, "shuffle_ties", lambda runs, _: seen.extend(e for run in runs for e in run) or runs
    )
    monkeypatch.setattr(train, "write_candidate", lambda *_: Decision(accepted=True, checks=[]))
    judged: list[str] = []
    real = measure.evaluate
    monkeypatch.setattr(
        measure, "evaluate", lambda batches, rankers: real((judged.extend(b.users) or b for b in batches), rankers)
    )
    assert run(first, "gone", events="gone.jsonl", work="gone-work") == 0
    assert {event.user_id for event in seen} == {f"u{n}" for n in range(30)} - {"u1", "u2"}
    assert judged
    assert not {"u1", "u2"} & set(judged)
    assert "secret" not in {event.item_id for event in seen}


def test_an_epoch_is_judged_as_it_would_be_served(first: Path) -> None:
    """An epoch is judged with the prior, so an encoder that knows nothing scores well under a fashion."""
    fashion = [Event(f"f{n}", f"u{n % 20}", "view", NOW + n * 60_000, f"i{n // 20}") for n in range(240)]
    write_log(first / "fashion.jsonl", fashion)
    config = load_config(first / "ring.toml", popularity_half_life=600.0)
    found = training_set.read_training_set(
        config, TrainingFiles(first / "fashion.jsonl", first / "items.jsonl", first / "work", first), None
    )
    catalogue = [*found.item_ids, *found.others]
    replay = EvaluationReplay(
        found.log.events, catalogue, found.item_index, {"view": 1}, config.popularity_half_life, 2
    )
    torch.manual_seed(0)
    model = UserEncoder(training_set.model_shape(config, found), torch.from_numpy(found.known)).eval()
    start, stop = len(found.split.train), len(found.split.train) + len(found.split.validation)
    alone = evaluate(replay.batches(start, stop, 2), {"encoder": measure.EncoderRanker(model, found.unseen)})
    assert alone["encoder"].only_untied().ndcg < 0.7
    assert measure.ValidationPart(found, replay).score(model) > 0.9


@pytest.mark.parametrize(
    ("events", "more", "why"),
    [
        ("missing.jsonl", [], "No such file"),
        ("empty.jsonl", [], "holds no events to learn from"),
        ("few.jsonl", [], "too few to learn from"),
        ("events.jsonl", ["--config", "clicks.toml"], r"unknown type.*--types view, or"),
        ("events.jsonl", ["--seed", "-1"], r"Expected `int` >= 0.*seed"),
        ("items.jsonl", [], "items.jsonl:1: "),
        ("events.jsonl", ["--config", "nowhere.toml"], "nowhere.toml"),
        ("events.jsonl", ["--live", "nowhere"], "nowhere has no manifest"),
        ("events.jsonl", ["--tracking", "nowhere://x"], "tracking: "),
    ],
)
def test_what_cannot_be_used_is_one_line(
    first: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    events: str,
    more: list[str],
    why: str,
) -> None:
    """Input that cannot be used is one line with the remedy, exits with 1 and leaves nothing behind."""
    (first / "empty.jsonl").write_text("")
    monkeypatch.chdir(first)
    (first / "clicks.toml").write_text("[behaviours]\nclick = 1.0\n")
    write_log(first / "few.jsonl", walk(users=3))
    assert run(first, "bad", *more, events=events) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(why, said), said
    assert not (first / "bad").exists()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"width": 32}, "'width' is no setting, there are dim, length"),
        ({"dim": "wide"}, "dim is int, not 'wide'"),
        ({"blocks": 0}, "blocks is 1 or more, not 0"),
        ({"dim": 30, "heads": 4}, "dim 30 is no multiple of heads 4"),
        ({"dropout": 1.5}, "dropout is from 0 to 1, not 1.5"),
        ({"temperature": 0.0}, "temperature is more than 0, not 0.0"),
        ({"length": 1000}, "length 1000 is more than the history of"),
    ],
)
def test_a_model_that_cannot_be_is_refused(tmp_path: Path, model: dict[str, object], why: str) -> None:
    """An impossible model is refused by its setting's name before anything is read."""
    files = TrainingFiles(tmp_path, None, tmp_path / "work", tmp_path)
    request = RunRequest(files, tmp_path / "out", "nowhere")
    with pytest.raises(ConfigError) as refused:
        train.train(request, TrainingConfig(model=model))
    assert why in str(refused.value)


def test_never_two_at_once(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run in a folder ends with a line, and the lock ends with its process."""
    with (first / "work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(first, "bad") == 1
    assert "another training run" in capsys.readouterr().err


def test_a_worse_candidate_is_refused(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A candidate that has learned nothing is refused against one that knows the ring, with reasons."""
    status = run(first, "worse", "--live", str(first / "first"), "--epochs", "1", "--learning-rate", "1e-6")
    assert status == REFUSED
    assert "FAIL quality" in capsys.readouterr().out
    decision = load_bundle(first / "worse").manifest.gate
    assert decision is not None
    assert not decision.accepted
    assert not next(check for check in decision.checks if check.name == "quality").passed


def test_a_version_of_another_catalogue_is_no_measure(first: Path) -> None:
    """Against a live version of other items a candidate must also beat popularity."""
    foreign = first / "foreign"
    shutil.copytree(SHIPPED, foreign)
    assert run(first, "own", "--live", str(foreign), work="own-work") == 0
    decision = load_bundle(first / "own").manifest.gate
    assert decision is not None
    details = {check.name: check.detail for check in decision.checks}
    assert "co-occurrence" in details["network"]
    assert "of version foreign" in details["quality"]


def test_nothing_of_the_regression_set_is_learned(first: Path) -> None:
    """The tested event of each frozen user is in no row of any run, and the user's later events are."""
    config, events = load_config(first / "ring.toml"), walk(steps=20)
    work = first / "apart"
    work.mkdir()
    write_log(first / "later.jsonl", events)
    ids = [f"i{number}" for number in range(ITEMS)]
    ground = EvaluationSet(events, 300, ids, np.zeros((ITEMS, 384), np.float32), frozenset())
    cases, _ = regression_cases(work / REGRESSION_FILE, ground, config)
    asked = regression_pairs(work / REGRESSION_FILE, ())
    assert {(case.user_id, case.item) for case in cases} == asked
    assert 0 < len(cases) <= 0.2 * len(events[300:])
    when = {(event.user_id, event.item_id): event.ts for event in events}
    for live in (None, load_bundle(first / "first")):
        found = training_set.read_training_set(
            config, TrainingFiles(first / "later.jsonl", first / "items.jsonl", work, first), live
        )
        learned = {(event.user_id, event.item_id) for run in found.runs for event in run}
        assert not learned & asked
        since = {user: when[user, item] for user, item in asked}
        assert any(user in since and when[user, item] > since[user] for user, item in learned)
        trained = {(event.user_id, event.item_id) for event in found.split.train}
        assert found.held_back == len(trained & asked) > 0
    (work / REGRESSION_FILE).unlink()
    assert (
        training_set.read_training_set(
            config, TrainingFiles(first / "later.jsonl", first / "items.jsonl", work, first), live
        ).digest
        != found.digest
    )


def test_a_regression_set_forgets_who_asks(first: Path) -> None:
    """An erased user leaves the regression set, and the others stay."""
    config, events = TrainingConfig(behaviours={"view": 1.0}), walk()
    ids = [f"i{number}" for number in range(ITEMS)]
    texts = np.zeros((ITEMS, 384), np.float32)
    ground = EvaluationSet(events, 300, ids, texts, frozenset())
    path = first / "frozen.json"
    frozen, remark = regression_cases(path, ground, config)
    assert remark == "; frozen now"
    gone, too = frozen[0].user_id, frozen[-1].user_id
    later = EvaluationSet(events, 10, ids, texts, frozenset({gone}))
    assert regression_cases(path, later, config) == ([case for case in frozen if case.user_id != gone], "")
    assert f'"{gone}"' not in path.read_text()
    assert all(user != too for user, _ in regression_pairs(path, {too}))
    assert f'"{too}"' not in path.read_text()


def test_a_regression_set_of_another_domain_is_frozen_anew(first: Path) -> None:
    """A regression set of another name or of unknown items is frozen anew."""
    ids = [f"i{number}" for number in range(ITEMS)]
    ground = EvaluationSet(walk(), 300, ids, np.zeros((ITEMS, 384), np.float32), frozenset())
    config, path = TrainingConfig(behaviours={"view": 1.0}), first / "domains.json"
    frozen, _ = regression_cases(path, ground, config)
    renamed = [msgspec.structs.replace(event, item_id=f"x{event.item_id}") for event in walk()]
    other = EvaluationSet(renamed, 300, [f"x{item}" for item in ids], ground.texts, frozenset())
    cases, remark = regression_cases(path, other, config)
    assert remark == "; frozen anew, 0 of the 12 items of the former set, of freshet, are known"
    assert {case.item[0] for case in cases} == {"x"}
    named = msgspec.structs.replace(config, name="news")
    assert "of the former set, of freshet" in regression_cases(path, other, named)[1]
    assert regression_cases(path, other, named)[1] == ""
    path.write_text("{}")
    assert "cannot be read" in regression_cases(path, ground, config)[1]
    assert regression_cases(path, ground, config) == (frozen, "")


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        (FORMER_FILE, "{}", f"rename it to {REGRESSION_FILE}"),
        (REGRESSION_FILE, '{"name": "ring", "cases": [], "version": 2}', "remove it"),
    ],
)
def test_a_regression_set_of_another_layout_is_one_line(
    first: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, remedy: str
) -> None:
    """A regression set under its old name or of another version is one line with the remedy and stays unchanged."""
    work = first / f"layout of {name}"
    work.mkdir()
    (work / name).write_text(text)
    assert run(first, "bad", work=work.name) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert remedy in said
    assert (work / name).read_text() == text
    assert not (first / "bad").exists()


def test_settings_that_an_older_search_found_are_one_line(tmp_path: Path) -> None:
    """Found settings without a version are refused with the remedy and stay unchanged."""
    path = tmp_path / "search.json"
    path.write_text('{"run": "one", "config": {}}')
    with pytest.raises(LayoutError, match="remove the file to start anew"):
        search.FoundSettings(path, "one").load()
    assert path.exists()


def test_a_log_chooses_what_no_settings_file_says(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The settings fit the log and the time, the card says which and why, and an option wins."""
    (first / "plain.toml").write_text("[behaviours]\nview = 1.0\n")
    more = ("--config", str(first / "plain.toml"), "--epochs", "1", "--minutes", "5", "--repeats", "view")
    assert run(first, "chosen", *more, work="chosen-work") in (0, REFUSED)
    assert "settings chosen for 5 minutes (--minutes): epochs 24" in capsys.readouterr().out
    bundle = load_bundle(first / "chosen")
    assert (bundle.manifest.dim, bundle.manifest.settings["epochs"], bundle.manifest.repeats) == (128, 1, ["view"])
    card = (first / "chosen" / "MODEL_CARD.md").read_text()
    assert "Chosen for the log: epochs 24" in card
    assert "events a user: short histories" in card
    former = former_settings(bundle.manifest.settings).applied(load_config(first / "plain.toml"), frozenset())
    assert (former.model, former.average) == (bundle.manifest.settings["model"], 0.997)


def test_runs_are_tracked(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local store has parameters, curves, the commit and the data window with its digest."""
    monkeypatch.setattr(train, "write_candidate", lambda *_: Decision(accepted=True, checks=[]))
    uri = f"sqlite:///{first / 'tracking.db'}"
    assert run(first, "tracked", "--tracking", uri, work="tracked-work") == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ring")
    assert experiment is not None
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["learning_rate"] == "0.02"
    assert found.data.tags["data.digest"] == load_bundle(first / "first").manifest.data.digest
    assert found.data.tags["data.first"] == str(NOW)
    assert "commit" in found.data.tags
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_search_keeps_the_best() -> None:
    """A search tries the given settings first, and trains with the best trial."""
    tried: list[TrainingConfig] = []

    def objective(config: TrainingConfig, report: Callable[[Epoch], None], _advance: object) -> float:
        tried.append(config)
        score = 1.0 - abs(config.learning_rate - 0.004)
        report(Epoch(1, 1.0, 0.1, score, best=True))
        return score

    given = TrainingConfig(learning_rate=0.002)
    said: list[str] = []
    best = search.search(objective, given, 1.0, said.append)
    assert tried[0].learning_rate == pytest.approx(given.learning_rate)
    assert len(tried) > 3
    assert abs(best.learning_rate - 0.004) == min(abs(config.learning_rate - 0.004) for config in tried)
    assert said[-1].startswith(f"best of {len(tried)} trials")


def test_a_search_begins_with_the_given_settings() -> None:
    """Given settings widen the ranges of a search, and a weight decay of 0 stays 0."""
    tried: list[TrainingConfig] = []

    def objective(config: TrainingConfig, report: Callable[[Epoch], None], _advance: object) -> float:
        tried.append(config)
        report(Epoch(1, 1.0, 0.1, 0.5, best=True))
        return 0.5

    given = TrainingConfig(learning_rate=0.05, weight_decay=0.0, positions=77, model={"dropout": 0.7})
    search.search(objective, given, 0.5, lambda _: None)
    first = tried[0]
    assert (first.learning_rate, first.weight_decay, first.positions) == (pytest.approx(0.05), 0.0, 77)
    assert first.model["dropout"] == pytest.approx(0.7)
    assert {config.weight_decay for config in tried} == {0.0}


def test_a_search_goes_past_a_trial_that_diverges() -> None:
    """A diverging trial is passed over, and given settings that diverge are an error."""
    said: list[str] = []

    def objective(config: TrainingConfig, report: Callable[[Epoch], None], _advance: object) -> float:
        if config.learning_rate != TrainingConfig().learning_rate:
            raise FitError("the loss is no number in epoch 1")
        report(Epoch(1, 1.0, 0.1, 0.5, best=True))
        return 0.5

    assert search.search(objective, TrainingConfig(), 0.5, said.append).learning_rate == TrainingConfig().learning_rate
    assert "the loss is no number" in said[1]
    with pytest.raises(FitError):
        search.search(objective, TrainingConfig(learning_rate=0.004), 0.5, said.append)


def test_a_search_ends_within_an_epoch() -> None:
    """A trial's epoch ends when the time is over, and the trial's last score counts."""

    def objective(
        _config: TrainingConfig, report: Callable[[Epoch], None], advance: Callable[[int, int], None]
    ) -> float:
        report(Epoch(1, 1.0, 0.1, 0.5, best=True))
        while True:
            advance(1, 2)

    said: list[str] = []
    search.search(objective, TrainingConfig(), 0.1, said.append)
    assert said[-1].startswith("best of 1 trials: 0.5000")


def test_a_killed_run_goes_on_with_what_its_search_found(
    first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run keeps the found settings and checkpoint, and the next run searches anew."""
    rates = iter([0.011, 0.012])

    def found(_objective: object, config: TrainingConfig, _seconds: float, _say: object) -> TrainingConfig:
        return msgspec.structs.replace(config, learning_rate=next(rates))

    def killed(line: str) -> None:
        if line.startswith("epoch   2"):
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "search", found)
    monkeypatch.setattr(train, "write_candidate", lambda *_: Decision(accepted=True, checks=[]))
    uri = f"sqlite:///{first / 'searched.db'}"
    more = ["--search", "5", "--tracking", uri]
    with monkeypatch.context() as patch:
        patch.setattr(train, "say", killed)
        assert run(first, "searched", *more, work="searched-work") == 130
    capsys.readouterr()
    assert run(first, "searched", *more, work="searched-work") == 0
    assert "going on after epoch 1" in capsys.readouterr().out
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ring")
    assert experiment is not None
    [tracked] = client.search_runs([experiment.experiment_id])
    assert (tracked.info.status, tracked.data.params["learning_rate"]) == ("FINISHED", "0.011")
    assert run(first, "searched", *more, work="searched-work") == 0
    assert [run.data.params["learning_rate"] for run in client.search_runs([experiment.experiment_id])] == [
        "0.012",
        "0.011",
    ]


def test_an_abandoned_run_is_ended(tmp_path: Path) -> None:
    """An abandoned run ends on record, and a run of another folder stays."""
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    tracker.MlflowTracker(uri, "ring", "one", tmp_path / "here")
    tracker.MlflowTracker(uri, "ring", "one", tmp_path / "there")
    again = tracker.MlflowTracker(uri, "ring", "two", tmp_path / "here")
    same = tracker.MlflowTracker(uri, "ring", "two", tmp_path / "here")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ring")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["KILLED", "RUNNING", "RUNNING"]
    same.end()
    assert client.get_run(again._run).info.status == "FINISHED"
    again.note({"seed": 1}, {})


def test_a_store_that_fails_loses_the_record_and_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failing store costs a single line and not the run, and a missing store is an error at the start."""
    failing = tracker.MlflowTracker(f"sqlite:///{tmp_path / 'store.db'}", "ring", "one", tmp_path)
    failing.note({"seed": 1}, {})
    for _ in range(2):
        failing.note({"seed": 2}, {})
    failing.end()
    assert re.fullmatch(r"tracking: [^\n]+; the run goes on without its record\n", capsys.readouterr().out)
    with pytest.raises(tracker.TrackingError, match=r"^tracking: [^\n]+$"):
        tracker.MlflowTracker("nowhere://x", "ring", "one", tmp_path)


def test_the_parity_check_takes_no_more_threads_than_training(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parity check's ONNX Runtime has training's number of threads."""
    threads: list[int] = []
    real = onnxruntime.InferenceSession

    def session(path: str, options: Any, **more: Any) -> Any:
        threads.append(options.intra_op_num_threads)
        return real(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    export.check_parity(first / "first")
    assert threads == [torch.get_num_threads()] * 2


def test_a_warm_start_of_another_shape_is_said(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A live version of another shape is one line with the remedy."""
    write_log(first / "more2.jsonl", walk(steps=20))
    shutil.copy(first / "ring.toml", first / "wide.toml")
    wide = (first / "wide.toml").read_text().replace("dim = 16", "dim = 32")
    (first / "wide.toml").write_text(wide)
    live = ["--live", str(first / "first"), "--incremental", "--config", str(first / "wide.toml")]
    assert run(first, "bad", *live, events="more2.jsonl") == 1
    assert "train anew" in capsys.readouterr().err


def test_a_known_item_keeps_its_place(first: Path) -> None:
    """A warm start keeps every known item's vector, and places new items at their text."""
    live = load_bundle(first / "first")
    model = UserEncoder(ModelShape(items=ITEMS + 1, types=2, **MODEL), torch.randn(ITEMS + 1, 384)).eval()
    warm_start(model, live, ["new", *live.item_ids], ["click", "view"])
    vectors = model.item_vectors().detach()
    np.testing.assert_allclose(vectors[1:].numpy(), live.item_vectors, atol=1e-5)
    torch.testing.assert_close(vectors[0], model.tower(model.text[:1])[0])
    stored = load_file(live.path / "weights.safetensors")
    np.testing.assert_array_equal(model.type_embedding.weight[2].detach().numpy(), stored["type_embedding.weight"][1])
