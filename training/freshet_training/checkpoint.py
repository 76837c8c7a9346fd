"""Where a run stands, on disk: one safetensors file, replaced whole.

Tensors and facts travel in the one file, so a run killed at any instant finds
either the last checkpoint or the one before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freshet.files import sync, written_whole
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

RUN = "run"
"""The fact by which a checkpoint knows its run: a digest of everything that decides it."""


class Checkpoint:
    """The checkpoint of one run; `run` is the digest of its log, settings and start."""

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace what is there. Raises `OSError`, a full disk being one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        with written_whole(self._path) as partial:
            try:
                save_file(whole, partial, metadata={"facts": json.dumps({**facts, RUN: self._run})})
            except SafetensorError as error:  # a full disk among them
                raise OSError(f"{partial}: {error}") from None
            sync(partial)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last, or None where there is nothing of this run."""
        try:
            with safe_open(self._path, framework="pt") as stored:
                facts: dict[str, Any] = json.loads((stored.metadata() or {})["facts"])
                if facts.get(RUN) != self._run:
                    return None
                return {name: stored.get_tensor(name) for name in stored.keys()}, facts  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def remove(self) -> None:
        """The run is over."""
        self._path.unlink(missing_ok=True)
