"""The text encoder of a run: which folders are refused, which texts are read, and what a version says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from freshet.bundle.bundle import TextEncoderFacts, load_bundle, sha256
from freshet.core.events import Event
from freshet_training import training_set
from freshet_training.text.encoder import MAX_TOKENS, TextEncoder, TextError
from freshet_training.train import main
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.training.conftest import Texts, arguments
from tests.training.ring_log import walk, write_log

WORDS = ["[UNK]", "red", "blue", "shoe", "hat"]


def write_encoder(
    folder: Path,
    *,
    words: Sequence[str] = WORDS,
    rows: int = len(WORDS),
    width: int = 384,
    inputs: Sequence[str] = ("input_ids",),
    pooled: bool = False,
) -> Path:
    """A text encoder that looks each token's vector up, with its tokenizer."""
    folder.mkdir()
    table = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", inputs[0]], ["layer"])]
    if pooled:
        nodes.append(helper.make_node("ReduceMean", ["layer", "axis"], ["mean"], keepdims=0))
    output = helper.make_tensor_value_info("mean" if pooled else "layer", TensorProto.FLOAT, None)
    given = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in inputs]
    constants = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")]
    graph = helper.make_graph(nodes, "encoder", given, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_text_is_the_mean_of_its_tokens(tmp_path: Path) -> None:
    """An encoder that takes token ids alone is read, and one that takes a mask and types as well gives the same."""
    bare = TextEncoder(write_encoder(tmp_path / "bare"))
    [red, shoe, both] = bare.encode(["red", "shoe", "red shoe"])
    assert np.linalg.norm(both) == pytest.approx(1)
    assert both @ red > 0.5 < both @ shoe
    full = TextEncoder(write_encoder(tmp_path / "full", inputs=["input_ids", "attention_mask", "token_type_ids"]))
    np.testing.assert_array_equal(full.encode(["red shoe"])[0], both)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"width": 512}, "512 numbers, and vectors of 384 are served"),
        ({"rows": 3}, "the tokenizer has 5 tokens, which the model cannot look up"),
        ({"inputs": ["pixels"]}, "is no sentence encoder: it takes pixels"),
        ({"inputs": ["input_ids", "position_ids"]}, "is no sentence encoder: it takes input_ids, position_ids"),
        ({"pooled": True}, "no vector for each token"),
    ],
)
def test_files_that_do_not_go_together_are_refused(tmp_path: Path, how: dict[str, object], why: str) -> None:
    """The refusal is one line that names the folder and the fault."""
    folder = write_encoder(tmp_path / "encoder", **how)  # type: ignore[arg-type]
    with pytest.raises(TextError, match=why) as refused:
        TextEncoder(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "why"), [("model.onnx", "no ONNX model that can be opened"), ("tokenizer.json", "is no tokenizer")]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, file: str, why: str) -> None:
    """A folder whose files are no model and no tokenizer."""
    folder = write_encoder(tmp_path / "encoder")
    (folder / file).write_text("{}")
    with pytest.raises(TextError, match=why) as refused:
        TextEncoder(folder)
    assert "\n" not in str(refused.value)


def test_any_text_has_a_vector(tmp_path: Path) -> None:
    """100 kB, only emoji and right-to-left: each text is read, the long one as far as the first tokens."""
    encoder = TextEncoder(write_encoder(tmp_path / "encoder"))
    vectors = encoder.encode(["red " * 25_000, "red " * MAX_TOKENS, "🎉🎉", "נעל אדומה"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    """The share is of tokens, not of texts; no text has no unknown token."""
    encoder = TextEncoder(write_encoder(tmp_path / "encoder"))
    assert encoder.unknown_tokens(["red shoe hat", "红鞋"]) == 1 / 4
    assert encoder.unknown_tokens(["", ""]) == 0


def test_the_facts_are_of_the_files(tmp_path: Path) -> None:
    """A version names both files; another tokenizer makes another text encoder of the same model."""
    encoder = TextEncoder(write_encoder(tmp_path / "encoder"))
    other = TextEncoder(write_encoder(tmp_path / "other", words=[*WORDS[:3], "sock", "hat"]))
    assert encoder.facts.model == other.facts.model == sha256(tmp_path / "encoder" / "model.onnx")
    assert not encoder.facts.is_of(other.facts)
    assert encoder.digest != other.digest


def test_a_version_names_its_text_encoder(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Manifest and model card say which text encoder it was, and how much of the texts it did not know."""
    facts = load_bundle(first / "first").manifest.text_encoder
    assert facts == msgspec.structs.replace(Texts.facts, unknown_tokens=0.25)
    card = (first / "first" / "MODEL_CARD.md").read_text()
    assert "sha256 random directions" in card
    assert "lacks 25.0% of the texts' tokens" in card


def test_a_run_does_not_go_on_with_another_text_encoder(
    first: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live version's weights are of its own text encoder's vectors: an incremental run with another is refused."""
    monkeypatch.setattr(training_set.TextEncoder, "facts", TextEncoderFacts("other directions", "no tokens", 384))
    out, work = first / "other-encoder", first / "other-encoder-work"
    new = [Event(f"n{event.event_id}", event.user_id, "view", event.ts + 1, "new") for event in walk(steps=16)[-20:]]
    write_log(first / "later.jsonl", [*walk(steps=18), *new])
    told = ["--out", str(out), "--work", str(work), "--live", str(first / "first"), "--incremental"]
    assert main([*arguments(first, "later.jsonl"), *told]) == 1
    said = capsys.readouterr().err
    assert "was trained with another text encoder: train anew, without --incremental" in said
    assert said.count("\n") == 1
    assert not out.exists()
