"""The texts of a training set, and the text encoder that they need."""

from pathlib import Path

import pytest
from freshet_training.text.encoder import TextEncoder, TextError
from freshet_training.training_set import text_vectors


def test_without_a_text_no_text_encoder_is_needed(tmp_path: Path) -> None:
    """A catalogue without texts is trained without a text encoder."""
    vectors = text_vectors(["", ""], tmp_path / "nowhere", tmp_path)
    assert vectors.shape == (2, 384)
    assert not vectors.any()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A missing text encoder is an error with the file and the option."""
    with pytest.raises(TextError, match=r"nowhere/model\.onnx does not exist: --text-encoder"):
        TextEncoder(tmp_path / "nowhere")
