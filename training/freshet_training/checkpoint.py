"""The checkpoint of a run, on disk: one safetensors file, replaced whole.

Tensors and progress travel in the one file. A run that is killed at any instant therefore leaves the last
checkpoint or the checkpoint before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from freshet.core.decoding import Undecodable, decode
from freshet.files import sync, written_whole
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from freshet_training.layout import check_version

VERSION = 1
HEADER = "checkpoint"
"""The entry of the file's metadata that holds the header, as JSON."""


class GeneratorState(msgspec.Struct, frozen=True):
    """The state of NumPy's PCG64. `state` and `inc` have 128 bits, and stand here in hexadecimal."""

    state: str
    inc: str
    has_uint32: int
    uinteger: int


class FitProgress(msgspec.Struct, frozen=True):
    """How far a fit is: its epoch and step, the best epoch so far, and the state of its random numbers."""

    epoch: int
    step: int
    best_epoch: int
    best_step: int
    best_score: float
    random: GeneratorState


class _Header(msgspec.Struct, frozen=True):
    version: int
    run: str
    progress: FitProgress


_decoder = msgspec.json.Decoder(_Header)


class Checkpoint:
    """The checkpoint of one run; `run` is the digest of everything that decides the run."""

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run

    def save(self, tensors: Mapping[str, Tensor], progress: FitProgress) -> None:
        """Replace the checkpoint. Raises `OSError`, on a full disk too."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        header = msgspec.json.encode(_Header(VERSION, self._run, progress)).decode()
        with written_whole(self._path) as partial:
            try:
                save_file(whole, partial, metadata={HEADER: header})
            except SafetensorError as error:  # on a full disk, for one
                raise OSError(f"{partial}: {error}") from None
            sync(partial)

    def load(self) -> tuple[dict[str, Tensor], FitProgress] | None:
        """The last checkpoint, or None where no whole checkpoint of this run is there. Raises `LayoutError`."""
        try:
            with safe_open(self._path, framework="pt") as stored:
                raw = (stored.metadata() or {}).get(HEADER, "{}").encode()
                check_version(self._path, raw, VERSION)
                header = decode(_decoder, raw)
                if isinstance(header, Undecodable) or header.run != self._run:
                    return None
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
                return tensors, header.progress
        except (OSError, SafetensorError):
            return None

    def remove(self) -> None:
        """Remove the checkpoint: the run is over."""
        self._path.unlink(missing_ok=True)
