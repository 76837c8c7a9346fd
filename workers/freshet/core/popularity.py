"""The streaming prior: decayed popularity by distinct users.

Each source partition keeps its own partial counts; the sum of the partials is
the prior. An item counts once per user (`Outcome.FIRST_TOUCH`), so one busy
account cannot lift it. Decay is exponential in event time (forward decay,
Cormode et al., ICDE 2009): counts are kept relative to a reference time, so
adding one event touches one number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from freshet.core.decoding import Undecodable, decode
from freshet.core.events import MAX_TS_MS, Id

KEPT_ITEMS = 1000
"""Items kept per partition when it is published; the tail is forgotten."""
MAX_EXPONENT = 64.0


class Partial(msgspec.Struct, frozen=True):
    """Counts of one partition of the events topic: a record of the popularity topic, keyed by partition number.

    Attributes:
        partition: The partition of the events topic.
        offset: Offset of the newest event that is counted, -1 for none.
        ts: Event time that the counts are decayed to, ms since the epoch.
        half_life: Half-life of a count, in seconds of event time.
        counts: Decayed number of distinct users by item id.
    """

    partition: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    offset: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
    ts: Annotated[int, msgspec.Meta(ge=0, le=MAX_TS_MS)]
    half_life: Annotated[float, msgspec.Meta(gt=0)]
    counts: dict[Id, Annotated[float, msgspec.Meta(ge=0, le=1e12)]]


class PartialPopularity:
    """The counts of one source partition."""

    def __init__(self, partition: int, half_life: float, restored: Partial | None = None) -> None:
        self.partition = partition
        self.half_life_ms = half_life * 1000.0
        self.offset = -1
        self.ts = 0
        self._reference = 0
        self._counts: dict[str, float] = {}
        if restored is not None:
            self.offset, self.ts, self._reference = restored.offset, restored.ts, restored.ts
            self._counts = dict(restored.counts)

    def add(self, item: str, ts: int, offset: int) -> None:
        """Count one distinct user of `item` at event time `ts` (ms)."""
        if self._reference == 0:
            self._reference = ts
        exponent = (ts - self._reference) / self.half_life_ms
        if exponent > MAX_EXPONENT:
            self._rebase(ts)
            exponent = 0.0
        elif exponent < -MAX_EXPONENT:
            exponent = -MAX_EXPONENT
        counts = self._counts
        counts[item] = counts.get(item, 0.0) + 2.0**exponent
        self.offset = offset
        self.ts = max(self.ts, ts)

    def snapshot(self) -> Partial:
        """The counts decayed to the newest event time, the largest `KEPT_ITEMS` of them."""
        self._rebase(self.ts)
        largest = sorted(self._counts.items(), key=lambda pair: (-pair[1], pair[0]))[:KEPT_ITEMS]
        self._counts = dict(largest)
        return Partial(
            self.partition, self.offset, self.ts, self.half_life_ms / 1000.0, {item: round(c, 6) for item, c in largest}
        )

    def _rebase(self, ts: int) -> None:
        factor = 2.0 ** ((self._reference - ts) / self.half_life_ms)
        self._counts = {item: count * factor for item, count in self._counts.items()}
        self._reference = ts


def total(partials: Iterable[Partial]) -> dict[str, float]:
    """The sum of the partitions' counts, each decayed to the newest event time among them."""
    ordered = sorted(partials, key=lambda partial: partial.partition)
    newest = max((partial.ts for partial in ordered), default=0)
    counts: dict[str, float] = {}
    for partial in ordered:
        factor = 2.0 ** ((partial.ts - newest) / (partial.half_life * 1000.0))
        for item, count in partial.counts.items():
            counts[item] = counts.get(item, 0.0) + count * factor
    return counts


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Partial)


def encode_partial(partial: Partial) -> bytes:
    """The JSON bytes of a popularity record."""
    return _encoder.encode(partial)


def decode_partial(value: bytes, latest_ts: int = MAX_TS_MS) -> Partial | str:
    """Decode a record of the popularity topic, or say in a sentence why it is none.

    Counts as of a time after `latest_ts` (ms) are none: an event of the future has made nothing of all others.
    """
    partial = decode(_decoder, value)
    if isinstance(partial, Undecodable):
        return f"no counts of a partition: {partial.why}"
    if partial.ts > latest_ts:
        return f"the counts of partition {partial.partition} are of a time to come: `freshet popularity repair`"
    return partial
