"""A publisher that dies: SIGKILL on entering or on leaving a step.

    python -m tests.integration.publisher BUNDLE REPOSITORY TRITON KEYS LIVE STEP enter|leave

`STEP` is the beginning of a step's name. Steps that were recorded are printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.release.publish import Service, publish_bundle
from tests.integration.bundles import MemoryRecords
from workers.core.rollout import MODEL, Rollout


def main() -> None:
    """Publish, and die on the way."""
    bundle, repository, triton, keys, live, name, where = sys.argv[1:]

    @contextmanager
    def step(entered: str) -> Iterator[None]:
        if entered.startswith(name) and where == "enter":
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if entered.startswith(name):
            os.kill(os.getpid(), signal.SIGKILL)

    records = MemoryRecords(Rollout(MODEL, int(live), "promoted", 0))
    publish_bundle(Path(bundle), Service(Path(repository), triton, Path(keys), 5), records, step=step)


if __name__ == "__main__":
    main()
