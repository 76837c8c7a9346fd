"""How a worker ends where it cannot go on."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import NoReturn

EXIT_FAILED = 70
"""Exit status after a surprise: what was not committed is read again, and a supervisor should restart the worker."""

STOP_SECONDS = 90
"""A stop waits for the batch under way, which itself waits for whoever is away: no longer than this."""

TICK_SECONDS = 0.5

log = logging.getLogger(__name__)


def fail_fast(error: BaseException) -> NoReturn:
    """End the process at once, without a commit: what was not committed is read again after a restart.

    For what fails inside Faust, which would log it and go on, or end one task of many.
    """
    log.critical("the worker ends", exc_info=error)
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


class Watchdog:
    """Ends a process that stood still for longer than its group waits for it, as one that was frozen and wakes up.

    Its partitions are others' by then, and what it was about to publish is older than what these have published; what
    is with the Kafka client already is sent all the same. A thread notices, not the event loop, for that one may be
    busy while the group still hears of the worker. The sleep of a whole machine does not count.
    """

    def __init__(self, limit: float) -> None:
        """`limit` in seconds."""
        self._limit = limit
        self._last = time.monotonic()
        threading.Thread(target=self._run, name="pulse", daemon=True).start()

    def check(self) -> None:
        """End the process where it has just woken up; otherwise it is seen to be alive."""
        now = time.monotonic()
        still = now - self._last
        if still > self._limit:
            fail_fast(
                TimeoutError(f"the process stood still for {still:.0f} s: its partitions may be another worker's")
            )
        self._last = now

    def _run(self) -> None:
        while True:
            self.check()
            time.sleep(TICK_SECONDS)
