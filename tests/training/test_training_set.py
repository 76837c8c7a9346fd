"""The texts of a training set, and the text encoder that they need."""

from pathlib import Path

import pytest
from freshet_training.config import load_config
from freshet_training.text.encoder import TextEncoder, TextError
from freshet_training.training_set import TrainingFiles, read_training_set, text_vectors


def test_without_a_text_no_text_encoder_is_needed(tmp_path: Path) -> None:
    """A catalogue without texts is trained without a text encoder."""
    vectors = text_vectors(["", ""], tmp_path / "nowhere", tmp_path)
    assert vectors.shape == (2, 384)
    assert not vectors.any()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A missing text encoder is an error with the file and the option."""
    with pytest.raises(TextError, match=r"nowhere/model\.onnx does not exist: --text-encoder"):
        TextEncoder(tmp_path / "nowhere")


def test_items_without_text_are_not_said_to_be_touched(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of items that nobody touched and that have no text, the output says that a list cannot hold them, no more."""
    config = load_config(first / "ring.toml")
    items, work = first / "untouched.jsonl", first / "untouched"
    work.mkdir()
    lines = [*(first / "items.jsonl").read_text().splitlines(), *(f'{{"item_id": "x{n}"}}' for n in range(7))]
    items.write_text("\n".join(lines))
    read_training_set(config, TrainingFiles(first / "events.jsonl", items, work, first), None)
    said = capsys.readouterr().out
    assert "1 more to rank by text" in said
    assert "7 of the others have no text: a list cannot hold them" in said
    assert "touched" not in said
