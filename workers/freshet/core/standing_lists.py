"""The lists that stand: a compact record of each user's current list, and which of them a change can touch.

A record holds what is needed to tell, without ranking, that a change cannot touch the list: the items, by how much the
last slot beats what was left out, and what popularity has to add to an item that was left out before the item can beat
the last slot. Records are columns of numpy arrays. A change is compared with whole columns, and a list is marked as
waiting where the change can touch the list. Marks are conservative: a marked list may come out as it stands.

Memory: 50 bytes a user with ten slots (70 where more than 65,535 different items stand in lists), the user's id, and
6 to 12 bytes of index.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshet.core.popularity_moves import Rises

ROUNDING = 2e-5
"""Scores of lists are rounded, so a margin may be less by so much; scores that are equal go by the items' order."""
NO_ITEM = 0
UNKNOWN = -1
"""Stands for the version of a list that another worker made."""
INDEX_PARTS = 64
"""The index of users is in parts, so that a part that grows holds up nobody."""
FEWEST_CELLS = 16
LARGEST = 60_000.0
"""What a float16 holds."""
FULLEST = 0.7
"""Share of an index part's cells that are taken at most."""
ITEM_FIRST = 1e12
"""A list with an item that went comes before any list that could only be better."""
OFF = np.array([0.0, ITEM_FIRST, 0.5, 0.1, 0.1], np.float32)
"""How far off a list is taken to be, by its wait: for popularity the least, to which comes what rose beyond."""
MOST_OFF_POPULARITY = 0.4
SOON_SECONDS = 86_400.0
"""Who acted within a day is as likely to be back as anybody; after that the chance falls as one over the quiet time."""


class Wait(IntEnum):
    """Why a list waits to be made again, the most urgent first."""

    NONE = 0
    ITEM = 1
    MODEL = 2
    POPULARITY = 3
    TIME = 4


class ItemNumbers:
    """Numbers of the items that stand in lists, from 1. They outlive versions, whose rows do not."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def of(self, item_ids: Iterable[str]) -> list[int]:
        """The items' numbers; new items get one."""
        numbers = self._numbers
        return [numbers.setdefault(item_id, len(numbers) + 1) for item_id in item_ids]

    def known(self, item_ids: Iterable[str]) -> list[int]:
        """The numbers of those items that have one."""
        return [number for item_id in item_ids if (number := self._numbers.get(item_id)) is not None]


class StandingList(NamedTuple):
    """A list as it is entered.

    `event_ts` is the event time (ms) that the list is as of. `acted_s` is when the user acted last, seconds since the
    epoch. `numbers` are those of the items, in order. `margin` and `needed_prior` are as in `core.ranking.RankedList`.
    """

    user_id: str
    numbers: Sequence[int]
    version: int
    margin: float
    needed_prior: float
    event_ts: int
    acted_s: float


class StandingLists:
    """The standing lists of one partition of the events topic.

    Times are seconds since the epoch where they come in, and are kept to a tenth of a second.
    """

    def __init__(self, slots: int, origin_s: float) -> None:
        """Lists have `slots` items. `origin_s` is a time before everything that will be entered."""
        self._slots = slots
        self._origin_s = origin_s
        self.size = 0
        self._ids = bytearray()
        self._versions: list[int] = []
        self._taken: set[int] = set()
        self._fallen = 0.0
        """What any item may have fallen by so far: so much less does an item need that was left out since."""
        self._index = [np.zeros(FEWEST_CELLS, np.uint32) for _ in range(INDEX_PARTS)]
        self._indexed = [0] * INDEX_PARTS
        self._rows = np.zeros((0, slots), np.uint16)
        self._margin = np.zeros(0, np.float32)
        self._needed = np.zeros(0, np.float16)
        self._moment = np.zeros(0, np.uint32)
        self._acted = np.zeros(0, np.uint32)
        self._event_ts = np.zeros(0, np.int64)
        self._version = np.zeros(0, np.uint16)
        self._wait = np.zeros(0, np.uint8)
        self._remade_for = np.zeros(0, np.uint8)
        self._end = np.zeros(0, np.uint32)

    _COLUMNS = (
        "_rows", "_margin", "_needed", "_moment", "_acted", "_event_ts", "_version", "_wait", "_remade_for", "_end",
    )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Memory of the records, bytes."""
        columns: int = sum(getattr(self, name).nbytes for name in self._COLUMNS)
        return columns + len(self._ids) + sum(part.nbytes for part in self._index)

    def __contains__(self, user_id: str) -> bool:
        return self._find(user_id.encode()) is not None

    def enter(self, lists: Sequence[StandingList], now_s: float, *, is_remade: bool = False) -> None:
        """Take up lists that are being published: none of them waits any more, or is being made again."""
        if not lists:
            return
        positions = np.array([self._position(entry.user_id.encode()) for entry in lists], np.int64)
        rows = np.zeros((len(lists), self._slots), np.int64)
        for row, entry in zip(rows, lists, strict=True):
            row[: len(entry.numbers)] = entry.numbers
        if rows.max(initial=0) > np.iinfo(self._rows.dtype).max:
            self._rows = self._rows.astype(np.uint32)
        _, _, versions, margins, needed, event_ts, acted_s = zip(*lists, strict=True)
        self._rows[positions] = rows
        self._margin[positions] = margins
        exact = np.array(needed, np.float64) + self._fallen
        clipped = np.clip(exact, -LARGEST, LARGEST)
        self._needed[positions] = np.where(np.isfinite(exact), clipped - np.abs(clipped) * 2.0**-9, exact)  # downwards
        self._moment[positions] = self._tenths(now_s)
        self._event_ts[positions] = event_ts
        self._acted[positions] = acted_s
        self._version[positions] = [self._version_number(version) for version in versions]
        self._remade_for[positions] = self._wait[positions] if is_remade else Wait.NONE
        self._wait[positions] = Wait.NONE
        self._taken.difference_update(positions.tolist())

    def take_over(self, users: Sequence[tuple[str, int]], now_s: float) -> int:
        """Let users' lists wait that another worker made, of which nothing is known; users that are here stay.

        A user comes with the event time (ms) of the newest event. Returns how many lists wait.
        """
        new = [(user_id, event_ts) for user_id, event_ts in users if user_id not in self]
        unknown = [StandingList(user_id, (), UNKNOWN, 0.0, np.inf, ts, max(0, ts) / 1000) for user_id, ts in new]
        self.enter(unknown, now_s)
        positions = [self._position(user_id.encode()) for user_id, _ in new]
        self._wait[positions] = Wait.TIME
        return len(positions)

    def forget(self, user_ids: Iterable[str]) -> None:
        """Forget users, their ids too."""
        for user_id in user_ids:
            position = self._find(user_id.encode())
            if position is not None:
                start, end = self._span(position)
                self._ids[start:end] = bytes(end - start)
                self._rows[position] = NO_ITEM
                self._wait[position] = Wait.NONE
                self._acted[position] = self._event_ts[position] = 0
                self._needed[position] = np.inf
                self._margin[position] = np.inf
                self._taken.discard(position)

    def mark_items(self, numbers: Collection[int], now_s: float, rest_s: float) -> None:
        """Let the lists wait that hold one of these items."""
        changed = np.zeros(max(int(self._rows.max(initial=0)), *numbers) + 1, np.bool_)
        changed[list(numbers)] = True
        self._mark(changed[self._rows[: self.size]].any(axis=1), Wait.ITEM, now_s, rest_s)

    def mark_user(self, user_id: str, now_s: float) -> None:
        """Let a user's list wait: an item of it went while it was being published."""
        position = self._find(user_id.encode())
        if position is not None:
            self._wait[position], self._moment[position] = Wait.ITEM, self._tenths(now_s)

    def mark_rises(self, rises: Rises, now_s: float, rest_s: float) -> None:
        """Let the lists wait into which an item may have come.

        That is where an item got what it needed, or an item that had what it needed rose by more than the margin. Of
        all other lists the margin is less by what moved.
        """
        size = self.size
        needed = self._needed[:size].astype(np.float32) - np.float32(self._fallen)
        had = np.searchsorted(rises.before, needed)
        self._fallen += rises.fall
        needed -= np.float32(rises.fall)
        has = np.searchsorted(rises.now, needed)
        reach = np.searchsorted(-rises.priors, -needed, side="right")
        gained = np.concatenate([np.zeros(1, np.float32), rises.highest])[reach] + np.float32(rises.fall)
        touched = (self._margin[:size] <= gained + np.float32(ROUNDING)) & (gained > 0)
        self._margin[:size] -= np.where(np.isinf(self._margin[:size]), np.float32(0), gained)
        self._mark(touched | (has < had), Wait.POPULARITY, now_s, rest_s)

    def mark_versions(self, served: Collection[int], now_s: float, rest_s: float) -> None:
        """Let the lists wait that none of the versions made that make lists now."""
        numbers = [number for number, version in enumerate(self._versions) if version in served or version == UNKNOWN]
        self._mark(np.isin(self._version[: self.size], numbers, invert=True), Wait.MODEL, now_s, rest_s)

    def mark_older(self, than_s: float, now_s: float) -> None:
        """Let the lists wait that were made before a time."""
        self._mark(self._moment[: self.size] < self._tenths(than_s), Wait.TIME, now_s, 0.0)

    def _mark(self, touched: Any, wait: Wait, now_s: float, rest_s: float) -> None:
        """Let the `touched` lists wait, bool `[size]`.

        A list that was made again for this or a more urgent reason is due only after a rest.
        """
        size = self.size
        waits, moment, remade_for = self._wait[:size], self._moment[:size], self._remade_for[:size]
        touched &= (waits == Wait.NONE) | (waits > wait)
        touched &= self._acted[:size] > 0
        now, rest = self._tenths(now_s), np.uint32(10 * rest_s)
        rests = (remade_for != Wait.NONE) & (remade_for <= wait)
        made_at = np.where(waits == Wait.NONE, moment, now)
        due = np.where(rests, np.maximum(made_at + rest, now), now)
        due = np.where(waits == Wait.NONE, due, np.minimum(moment, due))
        moment[touched] = due[touched]
        waits[touched] = wait

    def due(self, now_s: float, since_s: float) -> NDArray[np.int64]:
        """Positions of the lists to be made again now.

        Of users who have not acted since `since_s`, only the lists with an item that went or changed are.
        """
        size = self.size
        waits = self._wait[:size]
        wanted = (waits == Wait.ITEM) | ((waits != Wait.NONE) & (self._acted[:size] >= since_s))
        positions: NDArray[np.int64] = np.flatnonzero(wanted & (self._moment[:size] <= self._tenths(now_s)))
        return positions

    def gains(self, positions: NDArray[np.int64], now_s: float) -> NDArray[np.float32]:
        """What making these lists again is expected to gain `[n]`.

        That is how far off a list is × how long it has waited × how soon its user may come back. A wait grows without
        bound, so every list has its turn.
        """
        waits = self._wait[positions]
        off = OFF[waits]
        beyond = np.clip(-self._margin[positions], 0.0, MOST_OFF_POPULARITY)
        off = off + np.where(waits == Wait.POPULARITY, beyond, np.float32(0))
        quiet = np.maximum(0.0, now_s - self._acted[positions])
        waited = np.maximum(1.0, self.ages(positions, now_s))
        gains: NDArray[np.float32] = (off * waited / (SOON_SECONDS + quiet)).astype(np.float32)
        return gains

    def ages(self, positions: NDArray[np.int64], now_s: float) -> NDArray[np.float32]:
        """How long these lists have waited `[n]`, seconds."""
        ages: NDArray[np.float32] = (now_s - self._origin_s - self._moment[positions] / 10).astype(np.float32)
        return ages

    def share_of(self, version: int, since_s: float) -> tuple[int, int]:
        """How many lists of users who acted since `since_s` a version made, and how many there are."""
        active = self._acted[: self.size] >= max(since_s, 1.0)
        made_by = self._version[: self.size] == self._version_number(version)
        return int(np.count_nonzero(active & made_by)), int(np.count_nonzero(active))

    def take(self, position: int) -> str:
        """The user at a position, whose list is now being made again."""
        self._taken.add(position)
        start, end = self._span(position)
        return bytes(self._ids[start:end]).decode()

    def is_taken(self, position: int) -> bool:
        """Whether a list that was taken still is what it was then: its user has no newer list."""
        return position in self._taken

    def put_back(self, position: int) -> None:
        """A list that was taken is not made again now. It goes on waiting."""
        self._taken.discard(position)

    def give_up(self) -> None:
        """Nothing that was taken is what it was then."""
        self._taken.clear()

    def waits(self, position: int) -> tuple[Wait, float]:
        """Why a list waits, and since when."""
        return Wait(int(self._wait[position])), self._origin_s + int(self._moment[position]) / 10

    def event_ts(self, position: int) -> int:
        """The event time (ms) that a list is as of."""
        return int(self._event_ts[position])

    def acted_s(self, position: int) -> int:
        """When the user acted last."""
        return int(self._acted[position])

    def is_same(self, position: int, numbers: Sequence[int], version: int) -> bool:
        """Whether a list is the one that stands: the same items in the same order, by the same version."""
        mine = [*numbers, *[NO_ITEM] * (self._slots - len(numbers))]
        return self._versions[int(self._version[position])] == version and bool(self._rows[position].tolist() == mine)

    def _tenths(self, at_s: float) -> np.uint32:
        return np.uint32(max(0.0, (at_s - self._origin_s) * 10))

    def _version_number(self, version: int) -> int:
        if version not in self._versions:
            self._versions.append(version)
        return self._versions.index(version)

    def _span(self, position: int) -> tuple[int, int]:
        return int(self._end[position - 1]) if position else 0, int(self._end[position])

    def _find(self, key: bytes) -> int | None:
        """The position of a user's record; None where there is none."""
        found = self._seek(*self._start(key), lambda position: self._is_at(position, key))
        return found if found >= 0 else None

    def _start(self, key: bytes) -> tuple[int, int]:
        digest = hash(key)
        return digest % INDEX_PARTS, digest // INDEX_PARTS

    def _is_at(self, position: int, key: bytes) -> bool:
        start, end = self._span(position)
        return end - start == len(key) and self._ids[start:end] == key

    def _seek(self, part: int, start: int, is_it: Callable[[int], bool]) -> int:
        """The position that an index part has from `start` on and that `is_it`; else -1 minus the free cell."""
        cells = self._index[part]
        cell = start % len(cells)
        while entry := int(cells.item(cell)):
            if is_it(entry - 1):
                return entry - 1
            cell = (cell + 1) % len(cells)
        return -1 - cell

    def _position(self, key: bytes) -> int:
        """The position of a user's record, which is made where there is none."""
        part, start = self._start(key)
        found = self._seek(part, start, lambda position: self._is_at(position, key))
        if found >= 0:
            return found
        position = self.size
        if position == len(self._end):
            self._grow(position + max(64, position // 16))
        self._ids += key
        self._end[position] = len(self._ids)
        self.size += 1
        self._index[part][-1 - found] = position + 1
        self._indexed[part] += 1
        if self._indexed[part] > FULLEST * len(self._index[part]):
            self._spread(part)
        return position

    def _grow(self, size: int) -> None:
        for name in self._COLUMNS:
            column: NDArray[Any] = getattr(self, name)
            grown = np.zeros((size, *column.shape[1:]), column.dtype)
            grown[: len(column)] = column
            setattr(self, name, grown)

    def _spread(self, part: int) -> None:
        """Give an index part twice as many cells."""
        cells = self._index[part]
        self._index[part] = np.zeros(2 * len(cells), np.uint32)
        for entry in cells[cells > 0].tolist():
            start, end = self._span(entry - 1)
            _, at = self._start(bytes(self._ids[start:end]))
            free = -1 - self._seek(part, at, lambda _: False)
            self._index[part][free] = entry
