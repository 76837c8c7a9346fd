"""`make soak`: reloads, swaps under load, killed publishers, workers that hand over, and training beside serving.

    python -m tests.soak [reloads] [kills] [swaps] [handovers] [training] [--reloads 200] [--swaps 20] [--handovers 30]

Exits 1 where an inference failed, a list was degraded or mixed versions, a killed publisher
was not swept up after, or where workers hand over a state is not the fold of the log or a list comes
behind a newer one. The figures are printed, not judged: the machine decides them.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.soak.handovers import hand_over_under_load
from tests.soak.kills import kill_at_every_step
from tests.soak.reloads import reload_many_times
from tests.soak.swaps import swap_under_load
from tests.soak.training import train_beside

PARTS = ("reloads", "kills", "swaps", "handovers", "training")


def main() -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all without any")
    parser.add_argument("--reloads", type=int, default=200)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--handovers", type=int, default=30)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    wanted = given.parts or PARTS
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"no part {min(unknown)}: there are {', '.join(PARTS)}")
    folder = Path(tempfile.mkdtemp(prefix="freshet-soak-"))
    good = True
    try:
        if "reloads" in wanted:
            good &= reload_many_times(folder / "reloads", given.reloads)
        if "kills" in wanted:
            good &= kill_at_every_step(folder / "kills")
        if "swaps" in wanted:
            good &= swap_under_load(folder / "swaps", given.swaps)
        if "handovers" in wanted:
            good &= hand_over_under_load(folder / "handovers", given.handovers)
        if "training" in wanted:
            good &= train_beside(folder / "training")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


def _end(_signal: int, _frame: object) -> None:
    """Ended from outside, what the parts have started is stopped all the same."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
