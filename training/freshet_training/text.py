"""Step 3, the texts: text embeddings by the very ONNX file that Triton serves.

The int8 model quantises its activations per tensor at run time, so a text's
vector depends on what else is in the tensor: padding or a batch mate moves it
to a cosine as low as 0.98. Each text is therefore run alone and unpadded, here
and in the served model, which is also the faster way on a CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from freshet.bundle.onnx_session import open_session
from freshet.core.features import TEXT_DIM
from freshet.errors import FreshetError
from freshet.files import written_whole
from numpy.typing import NDArray
from tokenizers import Tokenizer

MAX_TOKENS = 128
STORED_EVERY = 5000
"""Texts: a run that is killed while it reads them has lost no more."""


class TextError(FreshetError):
    """There is no text encoder to read items with."""


class TextEncoder:
    """all-MiniLM-L6-v2 (int8, ONNX) in process: `folder` holds `model.onnx` and `tokenizer.json`."""

    def __init__(self, folder: Path) -> None:
        """Raises `TextError`."""
        for needed in ("model.onnx", "tokenizer.json"):
            if not (folder / needed).is_file():
                raise TextError(f"no text encoder: {folder / needed} does not exist: --text-encoder names its folder")
        self._session = open_session(folder / "model.onnx")
        self.digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        """Which text encoder it is."""
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str] | Iterable[str]) -> NDArray[np.float32]:
        """Text embeddings `[len(texts), TEXT_DIM]`: mean over the tokens, L2-normalised."""
        vectors = [self._encode_one(text) for text in texts]
        return np.stack(vectors) if vectors else np.zeros((0, TEXT_DIM), np.float32)

    def _encode_one(self, text: str) -> NDArray[np.float32]:
        ids = np.array([self._tokenizer.encode(text).ids], np.int64)  # [1, tokens]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        hidden = self._session.run(None, feeds)[0][0]  # [tokens, TEXT_DIM]
        mean: NDArray[np.float32] = hidden.mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)


class RememberedTexts:
    """Text embeddings kept in a file, so that a periodic run reads each text once; another text encoder reads anew."""

    def __init__(self, encoder: TextEncoder, file: Path) -> None:
        self._encoder = encoder
        self._file = file
        self._known: dict[bytes, NDArray[np.float32]] = {}
        try:
            with np.load(file, allow_pickle=False) as stored:
                if str(stored["encoder"]) == encoder.digest:
                    self._known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # none yet, or cut short
            self._known = {}

    def encode(
        self, texts: Sequence[str], advance: Callable[[int, int], None] = lambda _done, _total: None
    ) -> NDArray[np.float32]:
        """Text embeddings `[len(texts), TEXT_DIM]`; an item without text has nought."""
        new = list(dict.fromkeys(text for text in texts if text and _key(text) not in self._known))
        for done, text in enumerate(new, 1):
            self._known[_key(text)] = self._encoder.encode([text])[0]
            advance(done, len(new))
            if done % STORED_EVERY == 0 or done == len(new):
                self._store()
        rows = np.zeros((len(texts), TEXT_DIM), np.float32)
        for row, text in enumerate(texts):
            if text:
                rows[row] = self._known[_key(text)]
        return rows

    def _store(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        keys, vectors = np.array(list(self._known)), np.stack(list(self._known.values()))
        with written_whole(self._file) as partial, partial.open("wb") as out:
            np.savez(out, encoder=np.array(self._encoder.digest), keys=keys, vectors=vectors)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).hexdigest().encode()
