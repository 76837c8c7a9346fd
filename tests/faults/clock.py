"""Times that are late, out of order, in the future, and a wall clock that jumps."""

from __future__ import annotations

import time
from collections.abc import Sequence

from freshet.core.events import Event

from tests.faults.arena import Arena
from tests.faults.catalogue import fault
from tests.integration.test_worker import stream

TS = 890_000_000_000
YEAR_MS = 31_536_000_000


@fault("F34", "events late, out of order, and from years ahead")
def disorder(arena: Arena) -> Sequence[str]:
    """Times within what is allowed are folded in log order; times ahead are dead letters, and popularity stays."""
    trial = arena.trial(1)
    trial.worker()
    trial.send(stream(arena.seed, 200))
    trial.settle()
    events = [
        Event(f"e-late{number}", f"user-{number % 20}", "view", TS - arena.rng.randrange(YEAR_MS), str(number + 1))
        for number in range(100)
    ]
    trial.send(events)
    trial.settle()
    ahead = int(time.time() * 1000) + 10 * YEAR_MS
    trial.send([Event(f"e-ahead{number}", "ahead", "view", ahead, "7") for number in range(3)])
    trial.send([Event("e-new", "new", "view", TS, "1")])
    trial.send([Event("e-out", "new", "user.opt_out", TS + 1)])
    made: dict[str, object] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (made and not made["personalised"]):
        made = trial.lists().get("new", {})
        time.sleep(0.5)
    reasons = [dict(letter.headers)["reason"].decode() for letter in trial.records("events.dlq")]
    said = [] if reasons == ["ahead_of_time"] * 3 else [f"dead letters of the times ahead: {reasons}"]
    items = made.get("items") or []
    if not items or not any(item["score"] > 0 for item in items):  # type: ignore[attr-defined]
        said.append("nothing is popular any more")
    return said


@fault("F38", "the worker's wall clock jumps by a day, forth and back")
def clock_jumps(arena: Arena) -> Sequence[str]:
    """The fold takes no time but the events'; what is measured by the clock may be wrong, nothing else."""
    trial = arena.trial()
    trial.worker(error="clock")
    with trial.traffic(arena.seed, 100):
        time.sleep(6)
    return trial.verdict()
