"""Concurrent calls taken together: what waits while one call is under way goes out as the next.

At low load a call goes out at once; under load the cost of a call is shared
by all partitions that wait for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Coalescer(Generic[Item, Answer]):
    """Gathers calls of the same kind and runs them together, at most `in_flight` groups at a time.

    `run` gets the kind and the items in order of arrival and returns an answer
    for each; what it raises is raised by every call of the group. A group's
    sizes add up to at most `limit`, unless one item alone is larger.
    """

    def __init__(
        self, run: Callable[[Hashable, Sequence[Item]], Awaitable[Sequence[Answer]]], *, limit: int, in_flight: int
    ) -> None:
        self._run = run
        self._limit = limit
        self._free = in_flight
        self._waiting: deque[tuple[Hashable, Item, int, asyncio.Future[Answer]]] = deque()
        self._groups: set[asyncio.Task[None]] = set()

    async def call(self, kind: Hashable, item: Item, size: int) -> Answer:
        """Run `item` with whatever else of its kind is waiting."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((kind, item, size, future))
        self._start()
        return await future

    def _start(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            group = asyncio.create_task(self._run_group(self._take()))
            self._groups.add(group)
            group.add_done_callback(self._groups.discard)

    def _take(self) -> list[tuple[Hashable, Item, int, asyncio.Future[Answer]]]:
        kind = self._waiting[0][0]
        taken: list[tuple[Hashable, Item, int, asyncio.Future[Answer]]] = []
        total = 0
        while self._waiting and self._waiting[0][0] == kind:
            total += self._waiting[0][2]
            if taken and total > self._limit:
                break
            taken.append(self._waiting.popleft())
        return taken

    async def _run_group(self, group: list[tuple[Hashable, Item, int, asyncio.Future[Answer]]]) -> None:
        kind, futures = group[0][0], [future for *_, future in group]
        try:
            answers = await self._run(kind, [item for _, item, _, _ in group])
            for future, answer in zip(futures, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._free += 1
            self._start()
