"""How much of its time a worker may spend on making lists again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BURST_SECONDS = 2.0
"""Time that was not spent is kept up to so much."""
RESERVED_SECONDS = 1.5
"""So much of what is kept is for items that went alone."""


class RefreshBudget:
    """A share of the time, kept up to `BURST_SECONDS` where it is not spent."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._kept = BURST_SECONDS
        self._at = clock()

    def allows(self, *, urgent: bool) -> bool:
        """Whether something may be done now."""
        now = self._clock()
        self._kept = min(BURST_SECONDS, self._kept + self._share * (now - self._at))
        self._at = now
        return self._kept > (0.0 if urgent else RESERVED_SECONDS)

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Whatever is done in this block costs its time."""
        start = self._clock()
        try:
            yield
        finally:
            self._kept -= self._clock() - start
