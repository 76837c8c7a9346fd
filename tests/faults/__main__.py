"""`make faults`: every fault, one after the other, and a table of what holds.

    python -m tests.faults [NAME ...] [--seed N] [--quick] [--write]
    python -m tests.faults soak --hours N [--seed N]

`--write` puts the table into tests/faults/README.md. Exits 1 where a fault breaks what is not known to break, or where
the judge does not find an error that was put in.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

from deploy import local
from deploy.local.parts import ROOT
from tests.faults import broker, clock, controls, crash, files, load, model, poison, store
from tests.faults.arena import Arena
from tests.faults.catalogue import FAULTS, Fault

FAMILIES = (crash, broker, files, model, store, poison, load, clock, controls)
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- the last run -->\n", "<!-- end of the run -->\n"


class Outcome(NamedTuple):
    """What became of a fault: a word, how long it took in s, and what was complained of."""

    fault: Fault
    verdict: str
    seconds: float
    complaints: list[str]


def main() -> int:
    """Run what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.faults", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="faults, families, or `soak`; all faults without any")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--quick", action="store_true", help="those of `make test`")
    parser.add_argument("--write", action="store_true", help="write the table into the README")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="freshet-faults-"))
    stack = start_stack(folder / "stack")
    try:
        if given.names == ["soak"]:
            return soak(stack, folder, given.seed, given.hours)
        wanted = [
            fault
            for name, fault in FAULTS.items()
            if (not given.names or name in given.names or fault.family in given.names)
            and (fault.quick or not given.quick)
        ]
        if not wanted:
            parser.error(f"no such fault; there are {', '.join(FAULTS)}")
        outcomes = [show(attempt(fault, stack, folder, given.seed, quick=given.quick)) for fault in wanted]
    finally:
        local.stop(stack)
        shutil.rmtree(folder, ignore_errors=True)
    table = rows(outcomes)
    if given.write:
        write(outcomes, given.seed)
    print("\n".join(table))
    return int(any(outcome.verdict == "breaks" for outcome in outcomes))


def start_stack(folder: Path) -> local.Stack:
    """The parts, with a listener of the broker that is reached through a proxy."""
    return broker.start_stack(folder)


def attempt(fault: Fault, stack: local.Stack, folder: Path, seed: int, *, quick: bool) -> Outcome:
    """Run a fault. A scenario that cannot go on complains of it."""
    arena = Arena(stack, folder / fault.name, seed, quick=quick)
    began = time.monotonic()
    try:
        complaints = list(fault.run(arena))
    except Exception as error:
        complaints = [f"{type(error).__name__}: {str(error).strip()[:1500]}"]
    finally:
        arena.close()
    seconds = time.monotonic() - began
    if not complaints:
        return Outcome(fault, "refused as documented" if fault.refusal else "holds", seconds, complaints)
    return Outcome(fault, "known to break" if fault.known else "breaks", seconds, complaints)


def soak(stack: local.Stack, folder: Path, seed: int, hours: float) -> int:
    """Random mixes of faults on two workers, seed after seed, until the time is up."""
    deadline = time.monotonic() + hours * 3600
    for number in count(seed):
        arena = Arena(stack, folder / f"soak{number}", number)
        try:
            complaints = list(load.random_mix(arena, min(600.0, deadline - time.monotonic())))
        finally:
            arena.close()
        print(f"seed {number}: {'; '.join(complaints) or 'holds'}", flush=True)
        if complaints:
            return 1
        if time.monotonic() > deadline:
            return 0
    return 0


def show(outcome: Outcome) -> Outcome:
    """Print an outcome as soon as it is there."""
    print(f"{outcome.fault.name:4} {outcome.verdict:22} {outcome.seconds:5.0f} s  {outcome.fault.title}", flush=True)
    for complaint in outcome.complaints:
        print(f"       {complaint}", flush=True)
    return outcome


def rows(outcomes: list[Outcome]) -> list[str]:
    """The table, as Markdown."""
    lines = ["| | fault | | s |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        said = outcome.fault.refusal if outcome.verdict == "refused as documented" else outcome.fault.known
        verdict = f"{outcome.verdict}: {said}" if said and outcome.verdict != "holds" else outcome.verdict
        lines.append(f"| {outcome.fault.name} | {outcome.fault.title} | {verdict} | {outcome.seconds:.0f} |")
    return lines


def write(outcomes: list[Outcome], seed: int) -> None:
    """Put the outcomes into the README, those of other faults beside them as they were."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    stored = README.with_name("outcomes.json")
    known = json.loads(stored.read_text()) if stored.exists() else {}
    when = f"{datetime.now(UTC):%Y-%m-%d}, {commit.stdout.strip()}, seed {seed}"
    for outcome, line in zip(outcomes, rows(outcomes)[2:], strict=True):
        known[outcome.fault.name] = f"{line} {when} |"
    stored.write_text(json.dumps(known, indent=1) + "\n")
    table = ["| | fault | | s | run |", "| --- | --- | --- | --- | --- |"]
    table += [known[name] for name in FAULTS if name in known]
    text = README.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    README.write_text(before + BEGIN + "\n" + "\n".join(table) + "\n\n" + END + after)


if __name__ == "__main__":
    sys.exit(main())
