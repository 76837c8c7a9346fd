"""What the pipeline needs from the outside: one small protocol per edge.

Every implementation in `adapters` passes the contract suite of its protocol
(`tests/contract`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.features import Tensors
from freshet.errors import FreshetError


class Fetched(Protocol):
    """One Kafka record, as whatever client fetched it hands it over."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""

    @property
    def timestamp(self) -> int:
        """The broker's time, ms since the epoch."""

    @property
    def key(self) -> bytes | None:
        """The raw key."""

    @property
    def value(self) -> bytes | None:
        """The raw value."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """Names and raw values."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A `Fetched` of our own making; made at a third of a named tuple's cost, and no collection looks at it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Message(NamedTuple):
    """One record to publish; a `value` of None is a tombstone."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Encoded(NamedTuple):
    """The user encoder's outputs for a batch of B users: `[B, K]`, `[B, K]`, `[B, D]`."""

    topk_index: NDArray[np.int32]
    topk_score: NDArray[np.float32]
    embedding: NDArray[np.float32]

    def take(self, places: Sequence[int]) -> Encoded:
        """The outputs of some of the users."""
        return Encoded(self.topk_index[places], self.topk_score[places], self.embedding[places])


class FeatureRow(NamedTuple):
    """One user's row of a feature view; `timestamp_us` is µs since the epoch, strictly increasing per user."""

    user_id: str
    timestamp_us: int
    values: tuple[Any, ...]


RUN_RECORDS = 2048
"""Most records of a log that are read at once."""


class DeliveryError(FreshetError):
    """The broker did not take a record; the message names the topic and why."""


class TooLargeError(DeliveryError):
    """The broker refused records as too large; all others of the call were delivered."""

    def __init__(self, messages: Sequence[Message], why: str) -> None:
        super().__init__(why)
        self.messages = messages


class Unavailable(FreshetError):
    """A served part (encoder, feature store) cannot answer now; the message says why."""


class StateStore(Protocol):
    """Per-user state bytes of one partition."""

    def read(self, user_ids: Sequence[str]) -> list[bytes | None]:
        """The stored states in the given order, None where there is none."""

    async def write(self, states: Mapping[str, bytes]) -> None:
        """Store states by user id; they are durable on return. Raises whatever kept them from being so."""


class Encoder(Protocol):
    """The model server: user vectors with their candidates, and vectors of new items."""

    async def encode(self, tensors: Tensors, version: int) -> Encoded:
        """Encode a batch of users with the pinned version. Raises `Unavailable`."""

    async def item_vectors(self, texts: Sequence[str], version: int) -> NDArray[np.float32]:
        """Vectors `[len(texts), D]` for item texts in the pinned version's space. Raises `Unavailable`."""


class FeatureStore(Protocol):
    """The online feature store."""

    async def write(
        self, behaviour: Sequence[FeatureRow], embedding: Sequence[FeatureRow] = (), lists: Sequence[FeatureRow] = ()
    ) -> None:
        """Write rows of the views; a reader sees all of a user's rows of one call, or none.

        Behaviour values are in the order of `core.features.behaviour_features`, embedding values are
        (vector, model version), and list values are in the order of `core.features.LIST_FEATURES`.
        """

    async def delete(self, user_ids: Sequence[str]) -> None:
        """Remove every row of these users."""

    async def read(self, user_id: str) -> dict[str, Any]:
        """All features of one user; None for those absent."""


class Publisher(Protocol):
    """The output topics."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Return once every message is acknowledged by the broker. Raises `DeliveryError`, `TooLargeError`."""


class LogError(FreshetError):
    """The log cannot be read; the message says why and what to do."""


class EmptyLog(LogError):
    """The log is there and holds nothing in the window."""


class Window(NamedTuple):
    """The part of a log: record times in ms, the end left out, and offsets `(first, last)` by partition."""

    start_ms: int | None = None
    end_ms: int | None = None
    offsets: Mapping[int, tuple[int, int | None]] = MappingProxyType({})

    def holds(self, partition: int, record: Record) -> bool:
        """Whether the record is in the window."""
        if self.start_ms is not None and record.timestamp < self.start_ms:
            return False
        if self.end_ms is not None and record.timestamp >= self.end_ms:
            return False
        if not self.offsets:
            return True
        first, last = self.offsets.get(partition, (0, -1))
        return first <= record.offset and (last is None or record.offset <= last)

    def narrow(self, where: str, partition: int, low: int, bounds: tuple[int, int]) -> tuple[int, int]:
        """The first offset and the end of a partition, narrowed to the window's offsets.

        `low` is the first offset that the partition has, and `where` names the partition in an error. Raises
        `LogError` if the window begins before `low`.
        """
        first, end = bounds
        if not self.offsets:
            return bounds
        wanted, last = self.offsets.get(partition, (0, -1))
        if last is not None and last < wanted:
            return first, min(end, last + 1)
        if wanted < low:
            raise LogError(f"{where}: offset {wanted} is not there, the first is {low}")
        return max(first, wanted), end if last is None else min(end, last + 1)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.start_ms is None and self.end_ms is None and not self.offsets


WHOLE = Window()


class Log(Protocol):
    """A log of events: a topic, an archive of a topic, or a file."""

    @property
    def name(self) -> str:
        """What the log is called in messages."""

    @property
    def partitions(self) -> Sequence[int]:
        """The numbers of the partitions, in order."""

    @property
    def total(self) -> int | None:
        """How many records the window holds; None where only reading the log tells."""

    @property
    def starts(self) -> Mapping[int, int] | None:
        """The first offset of each partition that has records; None where the source has no offsets of its own."""

    def read(self, partition: int, start: int = 0) -> Iterator[list[Record]]:
        """Runs of one partition from an offset on, in offset order, none empty. Raises `LogError`."""

    def close(self) -> None:
        """Let go of what reading holds open."""
