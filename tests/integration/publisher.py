"""A publisher that ends by SIGKILL on entering or on leaving a step.

    python -m tests.integration.publisher BUNDLE REPOSITORY TRITON CONTROL_KEY KEYS LIVE STEP enter|leave

`STEP` is a word of a step's name. Steps of a version that were recorded are printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from freshet.adapters.triton_address import TritonAddress
from freshet.core.rollout import MODEL, Rollout, encode_record
from freshet.release.publish import Service, publish_bundle

from tests.memory_ports import MemoryRecords


class PrintedRecords(MemoryRecords):
    """What is written is on record whatever becomes of the publisher."""

    def write(self, step: Rollout) -> None:
        """Keep it, and print it."""
        super().write(step)
        sys.stdout.write(f"{encode_record(step).decode()}\n")
        sys.stdout.flush()


def main() -> None:
    """Publish, and end by SIGKILL on the way."""
    bundle, repository, address, key, keys, live, name, where = sys.argv[1:]

    @contextmanager
    def step(entered: str) -> Iterator[None]:
        here = name in entered.split()
        if here and where == "enter":
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if here:
            os.kill(os.getpid(), signal.SIGKILL)

    records = PrintedRecords(Rollout(MODEL, int(live), "promoted", 0))
    publish_bundle(
        Path(bundle),
        Service(Path(repository), TritonAddress(address, control_key=key), Path(keys), 5),
        records,
        step=step,
    )


if __name__ == "__main__":
    main()
