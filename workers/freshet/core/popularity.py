"""The streaming prior: decayed popularity by distinct users, published as what changed.

Each source partition keeps its own partial counts, and the sum of the partials is the prior. An item counts once per
user (`Outcome.FIRST_TOUCH`), so one busy account cannot lift it. Decay is exponential in event time (forward decay,
Cormode et al., ICDE 2009): counts are kept relative to a reference time, so adding one event touches one number.

A partition publishes the counts that changed, as a log on a ring of `RING` keys of a compacted topic: a record takes
the next slot of the ring, and carries on the items whose newest counts stand in the record that it replaces. The
newest record of each key therefore always holds every count, however much of the topic is compacted away.

Bound: a partition keeps `MOST_ITEMS` items. A count below `LEAST_COUNT` is no count: one user ten half-lives ago,
which moves a score by a thousandth of the prior's weight. Nothing else is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.decoding import Undecodable, decode
from freshet.core.events import MAX_TS_MS, Id

RING = 256
"""Keys of a partition. A record carries on one in so many of the partition's items."""
MOST_ITEMS = 100_000
"""Items that a partition counts. Where there are more, the tenth with the smallest counts goes."""
LEAST_COUNT = 1e-3
RECORD_BYTES = 500_000
"""Counts in one record; librdkafka sends records up to 1,000,000 bytes."""
COUNT_BYTES = 24
"""At most what a count costs beside its item."""
MAX_EXPONENT = 64.0
WHOLE = -1


class Partial(msgspec.Struct, frozen=True):
    """Counts of one partition of the events topic that changed: a record of the popularity topic.

    Its key is the partition's number and, after a slash, the slot of the ring.

    Attributes:
        partition: The partition of the events topic.
        offset: Offset of the newest event that is counted, -1 for none.
        ts: Event time that the counts are decayed to, ms since the epoch.
        half_life: Half-life of a count, in seconds of event time.
        counts: Decayed number of distinct users by item id. An item's newest count replaces the older ones.
        ring_slot: The record's slot of the ring. -1 says that the partition has these counts and no older ones.
    """

    partition: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    offset: Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
    ts: Annotated[int, msgspec.Meta(ge=0, le=MAX_TS_MS)]
    half_life: Annotated[float, msgspec.Meta(ge=1e-3)]
    counts: dict[Id, Annotated[float, msgspec.Meta(ge=0, le=1e12)]]
    ring_slot: Annotated[int, msgspec.Meta(ge=WHOLE, lt=RING)] = WHOLE

    @property
    def key(self) -> bytes:
        """The record's key."""
        return f"{self.partition}/{self.ring_slot}".encode() if self.ring_slot >= 0 else str(self.partition).encode()


class Popularity(NamedTuple):
    """How popular items are at one moment: `counts` is float64 `[len(items)]`. `items` may grow at its end."""

    items: Sequence[str]
    counts: NDArray[np.float64]

    @classmethod
    def of(cls, counts: Mapping[str, float]) -> Popularity:
        """The popularity that a mapping says."""
        return cls(list(counts), np.array(list(counts.values()), np.float64))


class PublishedCounts(NamedTuple):
    """All counts of a partition as they stand on the topic, decayed to `ts`, and the slot of each item's newest."""

    offset: int
    ts: int
    half_life: float
    counts: dict[str, float]
    ring_slots: dict[str, int]
    next_slot: int


class PartialPopularity:
    """The counts of one source partition, for the worker that counts."""

    def __init__(
        self, partition: int, half_life: float, published: PublishedCounts | None = None, *, anew: bool = False
    ) -> None:
        """Go on from what is `published`; under another half-life all of it is published again.

        With `anew` the first record replaces what the topic has of the partition.
        """
        self.partition = partition
        self.half_life_ms = half_life * 1000.0
        self.offset = -1
        self.ts = 0
        self._reference = 0
        self._counts: dict[str, float] = {}
        self._changed: dict[str, None] = {}
        self._ring: list[dict[str, None]] = [{} for _ in range(RING)]
        self._slot_of: dict[str, int] = {}
        self._next = 0
        self._whole = anew
        if published is not None:
            self.offset, self.ts, self._reference = published.offset, published.ts, published.ts
            self._counts = published.counts
            self._whole = published.half_life != half_life
            if self._whole:
                self._changed = dict.fromkeys(self._counts)
            else:
                self._next = published.next_slot
                for item, ring_slot in published.ring_slots.items():
                    self._move(item, ring_slot)
        self._published = self.offset

    def add(self, item: str, ts: int, offset: int) -> None:
        """Count one distinct user of `item` at event time `ts` (ms), unless the event at `offset` is counted already.

        What is published is published before the user's state is written: after a crash in between, the event comes
        again and is a first touch again.
        """
        if offset <= self._published:
            return
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
        self._changed[item] = None
        self.offset = offset
        self.ts = max(self.ts, ts)

    def changes(self) -> list[Partial]:
        """The records to publish: what changed since the last call.

        Where that is more than fits into one record, only the last record claims the newest offset.
        """
        if len(self._counts) > MOST_ITEMS:
            self._evict()
        decay = 2.0 ** ((self._reference - self.ts) / self.half_life_ms)
        records = []
        pending = list(self._changed)
        while pending or self._whole:
            ring_slot = WHOLE if self._whole else self._next
            counts = {} if self._whole else self._carried(ring_slot, decay)
            room = RECORD_BYTES - sum(map(_size, counts))
            while pending and (not counts or (room := room - _size(pending[-1])) >= 0):
                item = pending.pop()
                counts[item] = self._publish(item, ring_slot, decay)
            offset = self._published if pending else self.offset
            if not self._whole:
                self._next = (ring_slot + 1) % RING
            self._whole = False
            records.append(Partial(self.partition, offset, self.ts, self.half_life_ms / 1000.0, counts, ring_slot))
        self._changed.clear()
        self._published = self.offset
        return records

    def _carried(self, ring_slot: int, decay: float) -> dict[str, float]:
        """The unchanged counts whose newest record is the one at `ring_slot`; those that have faded are forgotten."""
        kept = {}
        for item in [item for item in self._ring[ring_slot] if item not in self._changed]:
            count = self._counts[item] * decay
            if count < LEAST_COUNT:
                self._forget(item)
            else:
                kept[item] = round(count, 6)
        return kept

    def _publish(self, item: str, ring_slot: int, decay: float) -> float:
        count = self._counts[item] * decay
        if count:
            self._move(item, ring_slot)
        else:
            self._forget(item)
        return round(count, 6)

    def _move(self, item: str, ring_slot: int) -> None:
        before = self._slot_of.pop(item, None)
        if before is not None:
            del self._ring[before][item]
        if ring_slot >= 0:
            self._ring[ring_slot][item] = None
            self._slot_of[item] = ring_slot

    def _forget(self, item: str) -> None:
        self._move(item, WHOLE)
        del self._counts[item]

    def _evict(self) -> None:
        """Let the smallest counts go, those of equal size by name; they are published once more, as 0."""
        smallest = sorted(self._counts, key=lambda item: (self._counts[item], item))
        for item in smallest[: len(smallest) - MOST_ITEMS * 9 // 10]:
            self._counts[item] = 0.0
            self._changed[item] = None

    def _rebase(self, ts: int) -> None:
        factor = 2.0 ** ((self._reference - ts) / self.half_life_ms)
        self._counts = {item: count * factor for item, count in self._counts.items()}
        self._reference = ts


def _size(item: str) -> int:
    return len(_encoder.encode(item)) + COUNT_BYTES


@dataclass(eq=False)
class _PartitionCounts:
    """A partition's newest counts by slot; a weight is the count times 2 to the half-lives since `reference` of them.

    A weight is made of its own record alone, and references differ by whole half-lives, by which numbers are scaled
    without rounding. So weights are the same to the last bit, whichever older records were read before.
    """

    half_life: float
    reference: int
    weights: NDArray[np.float64]
    ring_slots: NDArray[np.int16]
    offset: int = -1
    ts: int = 0
    next_slot: int = 0

    def fraction(self, ts: int) -> tuple[int, float]:
        """Event time in half-lives: the whole ones, and 2 to the rest."""
        lives = ts / (self.half_life * 1000.0)
        whole = math.floor(lives)
        return whole, 2.0 ** (lives - whole)

    def decayed(self, ts: int) -> NDArray[np.float64]:
        """The counts by slot at event time `ts` (ms)."""
        whole, rest = self.fraction(ts)
        counts: NDArray[np.float64] = self.weights * math.ldexp(1.0 / rest, self.reference - whole)
        return counts


class PopularityTable:
    """The fold of the popularity topic. Items have slots in order of their first count; `items[slot]` names them."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self._slots: dict[str, int] = {}
        self._partitions: dict[int, _PartitionCounts] = {}

    def apply(self, partial: Partial) -> Callable[[], None] | str:
        """Fold a record; returns how to take it back, or says in a sentence why it does not count."""
        number = partial.partition
        known = self._partitions.get(number)
        if known is not None and partial.ring_slot != WHOLE:
            if partial.half_life != known.half_life:
                return f"counts of partition {number} with half-life {partial.half_life:g} s, not {known.half_life:g} s"
            if partial.offset < known.offset:
                return f"counts of partition {number} up to offset {partial.offset}, which newer counts precede"
            counts = known
        else:
            counts = _PartitionCounts(partial.half_life, 0, np.zeros(0), np.zeros(0, np.int16))
            counts.reference, _ = counts.fraction(partial.ts)
            self._partitions[number] = counts
        slots = np.fromiter((self._slot(item) for item in partial.counts), np.int64, len(partial.counts))
        if len(counts.weights) < len(self.items):
            more = len(self.items) + len(self.items) // 2 - len(counts.weights)
            counts.weights = np.concatenate([counts.weights, np.zeros(more)])
            counts.ring_slots = np.concatenate([counts.ring_slots, np.full(more, WHOLE, np.int16)])
        before = counts.weights[slots], counts.ring_slots[slots], counts.offset, counts.ts, counts.next_slot
        reference = counts.reference
        whole, rest = counts.fraction(partial.ts)
        if whole - counts.reference > MAX_EXPONENT:
            counts.weights = np.ldexp(counts.weights, counts.reference - whole)
            counts.reference = whole
        values = np.fromiter(partial.counts.values(), np.float64, len(slots))
        counts.weights[slots] = np.ldexp(values * rest, whole - counts.reference)
        counts.ring_slots[slots] = partial.ring_slot
        counts.offset, counts.ts = max(counts.offset, partial.offset), max(counts.ts, partial.ts)
        if partial.ring_slot != WHOLE:
            counts.next_slot = (partial.ring_slot + 1) % RING

        def take_back() -> None:
            weights, ring_slots, counts.offset, counts.ts, counts.next_slot = before
            counts.weights[slots] = np.ldexp(weights, reference - counts.reference)
            counts.ring_slots[slots] = ring_slots
            if known is None:
                del self._partitions[number]
            else:
                self._partitions[number] = known

        return take_back

    def _slot(self, item: str) -> int:
        slot = self._slots.get(item)
        if slot is None:
            slot = self._slots[item] = len(self.items)
            self.items.append(item)
        return slot

    def popularity(self) -> Popularity:
        """The sum of the partitions' counts, in the order of partitions, each decayed to the newest event time."""
        newest = max((counts.ts for counts in self._partitions.values()), default=0)
        summed = np.zeros(len(self.items))
        for _, counts in sorted(self._partitions.items()):
            decayed = counts.decayed(newest)[: len(summed)]
            summed[: len(decayed)] += np.where(decayed < LEAST_COUNT, 0.0, decayed)
        return Popularity(self.items, summed)

    def published(self, partition: int) -> PublishedCounts | None:
        """What stands on the topic of a partition."""
        counts = self._partitions.get(partition)
        if counts is None:
            return None
        decayed = counts.decayed(counts.ts)
        slots = np.flatnonzero(decayed >= LEAST_COUNT).tolist()
        items = [self.items[slot] for slot in slots]
        return PublishedCounts(
            counts.offset,
            counts.ts,
            counts.half_life,
            dict(zip(items, decayed[slots].tolist(), strict=True)),
            dict(zip(items, counts.ring_slots[slots].tolist(), strict=True)),
            counts.next_slot,
        )

    def forget_faded(self) -> None:
        """Give up the slots of items that have no count any more, so that memory is bounded by what counts."""
        kept = np.flatnonzero(self.popularity().counts)
        self.items = [self.items[slot] for slot in kept.tolist()]
        self._slots = {item: slot for slot, item in enumerate(self.items)}
        for counts in self._partitions.values():
            there = kept[kept < len(counts.weights)]
            missing = len(kept) - len(there)
            counts.weights = np.concatenate([counts.weights[there], np.zeros(missing)])
            counts.ring_slots = np.concatenate([counts.ring_slots[there], np.full(missing, WHOLE, np.int16)])


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
