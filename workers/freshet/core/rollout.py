"""The life of a version: rollout records, and which versions make lists because of them.

Each version has one record, keyed by its number, which its next step replaces;
so a compacted topic still holds every version's last stage, and two who write
the same step have written one. The version promoted last is live; one that is
in shadow or canary is the candidate beside it; rolling a version back is a
record of that version, which gives way to the one promoted before it.

A worker that rolls back by itself says which step it judged. Its record has a key
of its own, for it counts only while that step is the version's last: one that
comes late neither undoes nor replaces what an operator has decided since.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from freshet.core.comparison import Comparison
from freshet.core.decoding import Int64, Undecodable, decode

MODEL = "user_encoder"
"""The model whose version names a bundle; its item tower shares the number."""

Stage = Literal["shadow", "canary", "promoted", "rolled_back"]


class Rollout(msgspec.Struct, frozen=True, tag_field="record", tag="rollout"):
    """A step of a version: a record of the models topic, keyed by model and version.

    Attributes:
        model: Name of the model.
        version: Number of the version.
        stage: What the step makes of the version.
        ts: When the step was taken, ms since the epoch.
        share: Share of the users, by hash, whose lists are made with the version in canary, and compared in shadow.
        reason: Why the step was taken, where somebody said.
        judged: The `ts` of the step that a worker takes back by itself; null for an operator's.
    """

    model: str
    version: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    stage: Stage
    ts: Int64
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    reason: str = ""
    judged: Int64 | None = None

    @property
    def key(self) -> bytes:
        """The record's key."""
        judged = "" if self.judged is None else f"/{self.judged}"
        return f"{self.model}/{self.version}{judged}".encode()


class Report(msgspec.Struct, frozen=True, tag_field="record", tag="report"):
    """What a worker makes lists with now: a record of the models topic, keyed by model and worker.

    Attributes:
        model: Name of the model.
        worker: Name of the worker.
        ts: When the report was made, ms since the epoch.
        live: Number of the live version.
        candidate: Number of the version that is being tried, 0 for none.
        comparison: How the candidate compares so far.
    """

    model: str
    worker: str
    ts: Int64
    live: Int64
    candidate: Int64 = 0
    comparison: Comparison = Comparison()

    @property
    def key(self) -> bytes:
        """The record's key."""
        return f"{self.model}@{self.worker}".encode()


_decoder: msgspec.json.Decoder[Rollout | Report] = msgspec.json.Decoder(Rollout | Report)


def decode_record(value: bytes) -> Rollout | Report | str:
    """Decode a record of the models topic, or say in a sentence why it is none."""
    record = decode(_decoder, value)
    return f"no record of a rollout: {record.why}" if isinstance(record, Undecodable) else record


def encode_record(record: Rollout | Report) -> bytes:
    """The JSON bytes of a record."""
    return msgspec.json.encode(record)


class Versions:
    """The fold of the models topic for one model."""

    def __init__(self) -> None:
        self.steps: dict[int, Rollout] = {}
        """Each version's last step, in the order in which they were taken."""
        self.reports: dict[str, Report] = {}

    def apply(self, value: bytes | None, key: bytes | None) -> Rollout | Report | str | None:
        """Apply the next record; returns it, or None for a tombstone or one too late, or what is wrong with it."""
        if value is None:
            self.reports.pop((key or b"").decode(errors="replace").removeprefix(f"{MODEL}@"), None)
            return None
        record = decode_record(value)
        if isinstance(record, str) or record.model != MODEL:
            return record
        if isinstance(record, Report):
            self.reports[record.worker] = record
            return record
        last = self.steps.get(record.version)
        if record.judged is not None and (last is None or last.ts != record.judged):
            return None
        self.steps.pop(record.version, None)
        self.steps[record.version] = record
        return record

    @property
    def promoted(self) -> list[int]:
        """The promoted versions, the last one first."""
        return [version for version, step in reversed(self.steps.items()) if step.stage == "promoted"]

    @property
    def live(self) -> int | None:
        """The version that lists are made with; None before the first promotion."""
        return next(iter(self.promoted), None)

    @property
    def candidate(self) -> Rollout | None:
        """The step of the version that is being tried beside it."""
        return next((step for step in reversed(self.steps.values()) if step.stage in {"shadow", "canary"}), None)
