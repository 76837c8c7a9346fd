"""How a worker ends where it cannot go on."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

EXIT_FAILED = 70
"""Exit status after a surprise: what was not committed is read again, and a supervisor should restart the worker."""

STOP_SECONDS = 90
"""A stop waits for the batch under way, which itself waits for whoever is away: no longer than this."""

log = logging.getLogger(__name__)


def die(error: BaseException) -> NoReturn:
    """End the process at once, without a commit: what was not committed is read again after a restart.

    For what fails inside Faust, which would log it and go on, or end one task of many.
    """
    log.critical("the worker ends", exc_info=error)
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.flush()
    os._exit(EXIT_FAILED)
