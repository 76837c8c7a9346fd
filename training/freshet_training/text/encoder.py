"""Step 3, the texts: text embeddings by the ONNX file that Triton serves.

The int8 model quantises its activations per tensor at run time. The vector of a text therefore depends on
what else is in the tensor: padding or another text of the batch moves the vector to a cosine as low as 0.98.
So each text is run alone and unpadded, here and in the served model. On a CPU this is also the faster way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from freshet.bundle.bundle import TextEncoderFacts, sha256
from freshet.bundle.onnx_session import open_session
from freshet.bundle.text_encoder import FILES, GRAPH, TOKENIZER
from freshet.core.features import TEXT_DIM
from freshet.errors import FreshetError
from numpy.typing import NDArray
from tokenizers import Tokenizer

MAX_TOKENS = 128
UNKNOWN = ("[UNK]", "<unk>")
"""What vocabularies call a token that they lack."""


class TextError(FreshetError):
    """No text encoder is there to read the items' texts with, or its files do not go together."""


class TextEncoder:
    """A sentence encoder (ONNX) in this process; `folder` holds `model.onnx` and `tokenizer.json`.

    The graph takes `input_ids` and, where it has them, `attention_mask` and `token_type_ids`, int64 `[batch, tokens]`.
    Its first output is `[batch, tokens, TEXT_DIM]`.
    """

    def __init__(self, folder: Path) -> None:
        """Raises `TextError` where a file is missing, cannot be read, or does not go with the other."""
        for needed in FILES:
            if not (folder / needed).is_file():
                raise TextError(f"no text encoder: {folder / needed} does not exist: --text-encoder names its folder")
        self._session = _session(folder / GRAPH)
        self._inputs = [given.name for given in self._session.get_inputs()]
        self._tokenizer = _tokenizer(folder / TOKENIZER)
        self._check(folder)
        self.facts = TextEncoderFacts(sha256(folder / GRAPH), sha256(folder / TOKENIZER), TEXT_DIM)
        """What a version says of its text encoder."""
        self.digest = f"{self.facts.model} {self.facts.tokenizer}"
        """Tells text encoders apart."""

    def encode(self, texts: Sequence[str] | Iterable[str]) -> NDArray[np.float32]:
        """Text embeddings `[len(texts), TEXT_DIM]`: the mean over a text's tokens, L2-normalised."""
        vectors = [self._vector(text) for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, TEXT_DIM), np.float32)

    def unknown_tokens(self, texts: Sequence[str]) -> float:
        """The share of the texts' tokens that the vocabulary lacks; 0 where it lacks none, or there is no token."""
        unknown = {number for name in UNKNOWN if (number := self._tokenizer.token_to_id(name)) is not None}
        tokens = missing = 0
        for text in texts:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            tokens += len(ids)
            missing += sum(number in unknown for number in ids)
        return missing / max(tokens, 1)

    def _vector(self, text: str) -> NDArray[np.float32]:
        mean: NDArray[np.float32] = self._hidden(self._tokenizer.encode(text).ids).mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    def _hidden(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The last layer `[tokens, width]` of one text."""
        ids = np.array([tokens], np.int64)  # [1, tokens]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        hidden: NDArray[np.float32] = self._session.run(None, {name: feeds[name] for name in self._inputs})[0][0]
        return hidden

    def _check(self, folder: Path) -> None:
        """See that the graph is a sentence encoder of the width that is served, and knows every token."""
        known = {"input_ids", "attention_mask", "token_type_ids"}
        if "input_ids" not in self._inputs or not known.issuperset(self._inputs):
            asked = ", ".join(self._inputs)
            raise TextError(f"{folder / GRAPH} is no sentence encoder: it takes {asked}, not token ids alone")
        tokens = max(self._tokenizer.get_vocab().values(), default=0) + 1
        try:
            hidden = self._hidden([0, tokens - 1])
        except Exception:  # ONNX Runtime's errors have no common class
            why = f"the tokenizer has {tokens:,} tokens, which the model cannot look up"
            raise TextError(
                f"{folder / TOKENIZER} is not of {GRAPH}: {why}; put both files of one model there"
            ) from None
        if not hidden.shape[1:]:
            raise TextError(f"{folder / GRAPH} is no sentence encoder: its first output has no vector for each token")
        if hidden.shape[1] != TEXT_DIM:
            why = f"its vectors have {hidden.shape[1]} numbers, and vectors of {TEXT_DIM} are served"
            raise TextError(f"{folder / GRAPH}: {why}; choose a text encoder of that width")


def _session(file: Path) -> Any:
    try:
        return open_session(file)
    except Exception as error:  # ONNX Runtime's errors have no common class
        why = str(error).splitlines()[0]
        raise TextError(f"{file} is no ONNX model that can be opened: {why}") from None


def _tokenizer(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # what tokenizers raises has no class of its own
        raise TextError(f"{file} is no tokenizer of the library tokenizers: {error}") from None
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    return tokenizer
