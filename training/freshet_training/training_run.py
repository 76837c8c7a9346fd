"""One training run: what is asked, and the context that all its steps share."""

from __future__ import annotations

import hashlib
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from freshet.bundle.bundle import WEIGHTS, Bundle
from freshet.core.events import encode_event

from freshet_training.checkpoint import Checkpoint
from freshet_training.config import TrainingConfig
from freshet_training.defaults import Choice
from freshet_training.evaluate import EvaluationReplay
from freshet_training.tracking import MlflowTracker
from freshet_training.training_set import TrainingFiles, TrainingSet

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RunRequest:
    """What is asked of a run.

    The gate compares the candidate with `live`; an `incremental` run starts from `live`. `source` says where the log
    comes from, and `left_out` counts by reason the records of the source that were no events. Both are for the
    manifest. `minutes` are the time that a run may take, about. Where `given` is not None, the settings that it does
    not name are chosen for the log. `tracking` is the URI of the MLflow store, None for no record.
    """

    files: TrainingFiles
    out: Path
    source: str
    left_out: Mapping[str, int] = field(default_factory=dict)
    live: Path | None = None
    incremental: bool = False
    search_seconds: float | None = None
    minutes: float | None = None
    given: frozenset[str] | None = None
    tracking: str | None = None


@dataclass(frozen=True)
class TrainingRun:
    """The context of a run: the request, the settings, the training set, and what was made of them.

    `chosen` are the settings that were chosen for the log. `live` is the version that the gate compares with, and
    `digest` the digest of everything that decides the run.
    """

    request: RunRequest
    config: TrainingConfig
    training_set: TrainingSet
    replay: EvaluationReplay
    live: Bundle | None
    digest: str
    tracker: MlflowTracker | None
    chosen: Choice | None = None

    @property
    def parent(self) -> Bundle | None:
        """The version that an incremental run starts from; a live version without a network gives no start."""
        return self.live if self.request.incremental and self.live is not None and self.live.manifest.network else None

    @property
    def left_out(self) -> Counter[str]:
        """How many events were not learned from, by reason: in the export of the log, and in its cleaning."""
        return Counter(self.request.left_out) + Counter(self.training_set.log.cleaning)

    def checkpoint(self, teacher: int = 0, *, refit: bool = False) -> Checkpoint:
        """The checkpoint of the run, or of its `teacher` of that number; of the `refit` on the whole log."""
        name = f"teacher-{teacher}.safetensors" if teacher else "checkpoint.safetensors"
        return Checkpoint(self.request.files.work / (f"refit-{name}" if refit else name), self.digest)

    def remove_checkpoints(self) -> None:
        """The run is over."""
        for number in range(self.config.teachers + 1):
            self.checkpoint(number).remove()
            self.checkpoint(number, refit=True).remove()

    @property
    def parameters(self) -> dict[str, object]:
        """The settings as parameters of an MLflow run, the tables flat."""
        values = msgspec.to_builtins(self.config)
        flat = {
            f"{group}.{name}": value
            for group in ("model", "gate", "privacy")
            for name, value in (values.pop(group) or {}).items()
        }
        return {**values, **flat}

    @property
    def tags(self) -> dict[str, str]:
        """Where the data and the code come from, as tags of an MLflow run."""
        log = self.training_set.log
        return {
            "commit": commit(),
            "source": self.request.source,
            "data.digest": log.digest,
            "data.first": str(log.events[0].ts),
            "data.last": str(log.events[-1].ts),
            "data.cleaning": ", ".join(f"{count} {reason}" for reason, count in self.left_out.items()) or "none",
        }


def commit() -> str:
    """The commit of the code that runs, with `+` where files differ from the commit; empty outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def run_digest(config: TrainingConfig, training_set: TrainingSet, parent: Bundle | None) -> str:
    """The digest of everything that decides a run: settings, data, the weights that it starts from, torch."""
    return hashlib.sha256(
        f"{config.digest} {training_set.digest} {_start(parent)} {torch.__version__}".encode()
    ).hexdigest()


def increment_digest(config: TrainingConfig, training_set: TrainingSet, parent: Bundle | None) -> str:
    """The digest of an incremental run's settings before a search, of its start, its new events and the code.

    Files that an earlier run left in the work folder do not count.
    """
    digest = hashlib.sha256(f"{config.digest} {_start(parent)} {commit()}".encode())
    for event in training_set.log.events:
        if event.ts >= training_set.since:
            digest.update(encode_event(event))
    return digest.hexdigest()


def _start(parent: Bundle | None) -> str:
    """The digest of the weights that a run starts from; empty where a run starts anew."""
    return parent.manifest.files[WEIGHTS] if parent is not None else ""
