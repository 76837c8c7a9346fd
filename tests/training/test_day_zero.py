"""A version of a catalogue alone: sound, of the texts, and by nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from freshet.bundle.onnx_session import open_session
from freshet.bundle.verify import load_sound
from freshet.core.features import UNKNOWN, USER_ENCODER_INPUTS
from freshet_training.day_zero import main

from deploy.setup.layout import TEXT_ENCODER

KINDS = ("running shoe for men", "garden hose with nozzle", "fantasy novel about dragons")


def write_catalogue(folder: Path) -> list[str]:
    """Write ten items of each kind, an item that is sold out and an item without text; returns the arguments."""
    items = [{"item_id": f"{kind}-{n}", "title": f"{text} {n}"} for kind, text in enumerate(KINDS) for n in range(10)]
    items += [{"item_id": "gone", "title": KINDS[0], "available": False}, {"item_id": "mute"}]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    given = {"items": folder / "items.jsonl", "work": folder / "work", "text-encoder": TEXT_ENCODER}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def test_the_nearest_texts_are_listed(tmp_path: Path) -> None:
    """After an item of a kind the best items are of that kind; an item of no place in the version says nothing."""
    assert main([*write_catalogue(tmp_path), "--out", str(tmp_path / "out")]) == 0
    version = load_sound(tmp_path / "out")
    assert not version.manifest.network
    assert len(version.item_ids) == 30
    assert version.manifest.text_encoder is not None
    session = open_session(tmp_path / "out" / "model.onnx")
    length = version.manifest.length
    for kind in range(len(KINDS)):
        history = np.zeros((1, length), np.int32)
        history[0, -2:] = version.item_index[f"{kind}-3"], UNKNOWN
        zeros = np.zeros((1, length), np.int32)
        feeds = {spec.name: value for spec, value in zip(USER_ENCODER_INPUTS, (history, zeros, zeros), strict=True)}
        rows = session.run(["topk_index"], feeds)[0][0]
        listed = [version.item_ids[row - 2] for row in rows[:10]]
        assert {item[0] for item in listed} == {str(kind)}


def test_a_language_that_the_text_encoder_does_not_know_is_told(tmp_path: Path, capsys: Any) -> None:
    """The manifest has the share of unknown tokens, as that of a trained version has, and the run says it."""
    arguments = write_catalogue(tmp_path)
    titles = ("男士跑步鞋", "花园软管喷嘴", "关于龙的奇幻小说")
    lines = (json.dumps({"item_id": str(number), "title": title}) + "\n" for number, title in enumerate(titles))
    (tmp_path / "items.jsonl").write_text("".join(lines))
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    facts = load_sound(tmp_path / "out").manifest.text_encoder
    assert facts is not None
    assert facts.unknown_tokens > 0.05
    assert "is it of their language?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "items.jsonl").write_text('{"item_id": "mute"}\n'), "no item has a text"),
        (lambda folder: (folder / "items.jsonl").write_text('{"item_id": 7}\n'), "items.jsonl:1"),
        (lambda folder: (folder / "items.jsonl").unlink(), "No such file"),
        (lambda folder: (folder / "out").mkdir() or (folder / "out" / "mine").touch(), "is taken"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object, why: str) -> None:
    """Bad input is one line, and nothing is written."""
    arguments = write_catalogue(tmp_path)
    assert callable(spoil)
    spoil(tmp_path)
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()
