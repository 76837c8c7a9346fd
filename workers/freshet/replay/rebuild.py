"""Make published lists again, from the state at their event and the side inputs that the lists name.

A list says which event it is as of, which model version made it, and how far the side-input topics were read. Any
list can therefore be made again. With the version that made it, this tells whether the list is what the code says.
With another version, this tells what that version would have shown.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.events import ERASE
from freshet.core.features import featurise
from freshet.core.item_space import Prior
from freshet.core.popularity import Popularity, PopularityTable, decode_partial
from freshet.core.recommendation import MAX_SKIPPED, Recommendation, SideInputs
from freshet.core.state import UserState, empty_state, fold
from freshet.logs.source import events
from freshet.ports import Encoded, Encoder, Log, Record
from freshet.replay.models import encodable
from freshet.serving.list_maker import ListMaker, MadeList, fallback_encoded
from freshet.serving.live_versions import LiveVersions
from freshet.serving.servable_version import ServableVersion
from freshet.settings import Settings

CHUNK = 256
"""Lists made again together."""


class PublishedList(NamedTuple):
    """A published list, and its user's state at the event it is as of (None where the log lacks that event)."""

    list: Recommendation
    state: UserState | None


@dataclass(frozen=True)
class SideInputTopics:
    """The records of the side-input topics, in offset order."""

    items: Sequence[Record]
    popularity: Sequence[Record]

    def has(self, side_inputs: SideInputs) -> bool:
        """Whether what stood at these offsets is known and can still be read: compaction may have taken it."""
        if len(side_inputs.items_skipped) == MAX_SKIPPED:  # there may be more
            return False
        return _is_whole(self.items, side_inputs.items) and _is_whole(self.popularity, side_inputs.popularity)


def _is_whole(records: Sequence[Record], offset: int) -> bool:
    if offset < 0:
        return True
    if not records or offset > records[-1].offset:
        return False
    return offset == records[-1].offset or (offset < len(records) and records[offset].offset == offset)


class FoldedLog:
    """The states of all users at the end of a log, and at the events that lists are as of.

    `recorded` is in no order. `erased` holds the offset at which a user was last erased.
    """

    def __init__(self, log: Log, settings: Settings, lists: Iterable[Recommendation]) -> None:
        """Reads the whole log. Memory grows with the number of users and of lists."""
        wanted: dict[tuple[int, int], list[Recommendation]] = defaultdict(list)
        for made in lists:
            wanted[made.as_of.partition, made.as_of.offset].append(made)
        self.states: dict[str, UserState] = {}
        self.recorded: list[PublishedList] = []
        self.erased: dict[str, int] = {}
        for partition, record, event in events(log, settings):
            state = self.states.setdefault(event.user_id, empty_state(partition))
            fold(state, event, partition, record.offset, settings.history)
            if event.type == ERASE:
                self.erased[event.user_id] = record.offset
            for made in wanted.pop((partition, record.offset), ()):
                known = copy.copy(state) if made.user_id == event.user_id else None
                self.recorded.append(PublishedList(made, known))
        self.recorded.extend(PublishedList(made, None) for lists in wanted.values() for made in lists)


class Rebuilder:
    """Makes recorded lists again with one model version."""

    def __init__(
        self, settings: Settings, version: int, encoder: Encoder, repository: Path, topics: SideInputTopics
    ) -> None:
        self.version = version
        self._maker = ListMaker(settings)
        self._text_fields = settings.text_fields
        self._encoder = encoder
        self._repository = repository
        self._topics = topics
        self._model: LiveVersions | None = None
        self._at = SideInputs(-1, -1, -1)
        self._items_read = 0
        self._popularity = _PopularityAt(topics.popularity, settings)

    async def make(self, recorded: Sequence[PublishedList]) -> AsyncIterator[tuple[PublishedList, MadeList]]:
        """Yield the lists again, in the order of their side inputs.

        Each list needs a state and readable side inputs. Raises `BundleError`, `Unavailable`.
        """
        ordered = sorted(recorded, key=_side_inputs)
        for start in range(0, len(ordered), CHUNK):
            for pair in await self._chunk(ordered[start : start + CHUNK]):
                yield pair

    async def _chunk(self, chunk: Sequence[PublishedList]) -> list[tuple[PublishedList, MadeList]]:
        live = await self._live_at(chunk[0].list.side_inputs)
        profiled = [published for published in chunk if encodable(_state(published))]
        kinds = [
            (degraded, [published for published in profiled if published.list.degraded is degraded])
            for degraded in (False, True)
        ]
        answers = [(degraded, *await self._answer(live, of_kind, degraded)) for degraded, of_kind in kinds if of_kind]
        rows = {id(published): row for _, of_kind in kinds for row, published in enumerate(of_kind)}
        made: list[tuple[PublishedList, MadeList]] = []
        start = 0
        while start < len(chunk):
            side_inputs = chunk[start].list.side_inputs
            group = [published for published in chunk[start:] if _same(published.list.side_inputs, side_inputs)]
            start += len(group)
            live = await self._live_at(side_inputs)
            offsets = dict.fromkeys(published.list.side_inputs.popularity for published in group)
            priors = {offset: self._prior(live, offset) for offset in offsets}
            for degraded, history, encoded in answers:
                personal = [
                    published for published in group if id(published) in rows and published.list.degraded is degraded
                ]
                where = [rows[id(published)] for published in personal]
                lists = self._maker.make(
                    live,
                    [published.list.user_id for published in personal],
                    [_state(published) for published in personal],
                    history[where],
                    encoded.take(where),
                    [priors[published.list.side_inputs.popularity] for published in personal],
                    degraded=degraded,
                )
                made.extend(zip(personal, lists, strict=True))
            for published in group:
                if id(published) not in rows:
                    prior = priors[published.list.side_inputs.popularity]
                    popular = self._maker.make_popular(live, published.list.user_id, None, prior)
                    made.append((published, popular))
        return made

    async def _answer(
        self, live: ServableVersion, profiled: Sequence[PublishedList], degraded: bool
    ) -> tuple[NDArray[np.int32], Encoded]:
        """The inputs of lists (`item_index`) and the encoder's outputs.

        If the encoder was away when the lists were made, the encoder is not asked now.
        """
        states = [_state(published) for published in profiled]
        tensors = featurise(states, live.item_index, live.type_index, live.length)
        history = tensors["item_index"]
        if degraded:
            return history, fallback_encoded(live, history)
        return history, await self._encoder.encode(tensors, self.version)

    async def _live_at(self, side_inputs: SideInputs) -> ServableVersion:
        """The version with the catalogue as it stood. To go back in time, the catalogue is read anew."""
        model = self._model
        if (
            model is None
            or side_inputs.items < self._at.items
            or side_inputs.items_embedded < self._at.items_embedded
            or side_inputs.items_skipped != self._at.items_skipped
        ):
            model = self._model = LiveVersions(self._encoder, self._repository, text_fields=self._text_fields)
            self._items_read = 0
            await model.start(self.version)
        due: list[Record] = []
        records = self._topics.items
        while self._items_read < len(records) and records[self._items_read].offset <= side_inputs.items:
            due.append(records[self._items_read])
            self._items_read += 1
        model.apply_items(due)
        await model.settle(side_inputs.items_embedded, side_inputs.items_skipped)
        self._at = side_inputs
        return model.current

    def _prior(self, live: ServableVersion, offset: int) -> Prior:
        live.space.set_popularity(self._popularity.at(offset))
        return live.space.prior


class _PopularityAt:
    """The popularity topic as read up to one offset or another; what was applied last can be taken back."""

    def __init__(self, records: Sequence[Record], settings: Settings) -> None:
        self._records = records
        self._settings = settings
        self._table = PopularityTable()
        self._taken_back_by: list[Callable[[], None] | None] = []

    def at(self, offset: int) -> Popularity:
        """What a worker that has read so far knows."""
        applied = self._taken_back_by
        while applied and self._records[len(applied) - 1].offset > offset:
            if (take_back := applied.pop()) is not None:
                take_back()
        while len(applied) < len(self._records) and (record := self._records[len(applied)]).offset <= offset:
            partial = decode_partial(record.value or b"", self._settings.latest_ts(record.timestamp))
            done = partial if isinstance(partial, str) else self._table.apply(partial)
            applied.append(None if isinstance(done, str) else done)  # a worker counts a bad record and goes on
        return self._table.popularity()


def _state(published: PublishedList) -> UserState:
    assert published.state is not None
    return published.state


def _side_inputs(published: PublishedList) -> tuple[tuple[int, ...], int, int, int]:
    side_inputs = published.list.side_inputs
    return side_inputs.items_skipped, side_inputs.items, side_inputs.items_embedded, side_inputs.popularity


def _same(first: SideInputs, second: SideInputs) -> bool:
    """Whether the catalogue stood the same."""
    return msgspec.structs.replace(first, models=0, popularity=0) == msgspec.structs.replace(
        second, models=0, popularity=0
    )


def embeddings_equal(stored: Sequence[float] | None, made: np.ndarray) -> bool:
    """Whether a stored vector is the encoder's output to the last bit."""
    return stored is not None and np.array_equal(np.asarray(stored, np.float32), made)
