"""The rollout of a version by its records: the steps that count, and the errors of late steps."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import pytest
from freshet.core.comparison import Comparison
from freshet.core.rollout import MODEL, Report, Rollout, Versions, decode_record, encode_record
from freshet.release import publish
from freshet.release.errors import ReleaseError

from tests.memory_ports import MemoryRecords

LIVE = Rollout(MODEL, 1, "promoted", 1_000)
CANARY = Rollout(MODEL, 2, "canary", 2_000, share=0.1)
ENDED = Rollout(MODEL, 2, "rolled_back", 3_000, reason="w1: too slow", judged=CANARY.ts)
ENDED_TOO = Rollout(MODEL, 2, "rolled_back", 3_001, reason="w2: too slow", judged=CANARY.ts)
PROMOTED = Rollout(MODEL, 2, "promoted", 4_000)
RENEWED = Rollout(MODEL, 2, "canary", 4_000, share=0.5)
ENDED_AGAIN = Rollout(MODEL, 2, "rolled_back", 5_000, judged=RENEWED.ts)
BY_HAND = Rollout(MODEL, 2, "rolled_back", 4_000, reason="a test")
OLD_REPORT = (
    b'{"record":"report","model":"user_encoder","worker":"w1","ts":3000,"live":1,"candidate":2,"comparison":'
    b'{"lists":90,"failed":10,"overlap":0.5,"score_gap":0.25,"live_ms":1.0,"candidate_ms":2.0}}'
)
OLD = (
    b'{"record":"rollout","model":"user_encoder","version":2,"stage":"rolled_back","ts":3000,"share":1.0,"reason":"w1"}'
)


def compacted(steps: Iterable[Rollout]) -> list[Rollout]:
    """What the topic keeps: of each key the last record, where it was."""
    newest: dict[bytes, Rollout] = {}
    for step in steps:
        newest.pop(step.key, None)
        newest[step.key] = step
    return list(newest.values())


@pytest.mark.parametrize(
    ("steps", "live", "last"),
    [
        ([CANARY, ENDED], 1, "rolled_back"),
        ([CANARY, ENDED, ENDED_TOO], 1, "rolled_back"),
        ([CANARY, PROMOTED, ENDED], 2, "promoted"),
        ([CANARY, ENDED, PROMOTED], 2, "promoted"),
        ([CANARY, ENDED, PROMOTED, ENDED_TOO], 2, "promoted"),
        ([CANARY, RENEWED, ENDED], 1, "canary"),
        ([CANARY, RENEWED, ENDED, ENDED_AGAIN], 1, "rolled_back"),
        ([CANARY, RENEWED, ENDED_AGAIN, ENDED], 1, "rolled_back"),
        ([CANARY, BY_HAND, ENDED], 1, "rolled_back"),
    ],
)
def test_a_worker_takes_back_the_step_that_it_judged(steps: list[Rollout], live: int, last: str) -> None:
    """A worker's rollback undoes the step that the worker judged and no later step, compacted or not."""
    for kept in ([LIVE, *steps], compacted([LIVE, *steps])):
        found = MemoryRecords(*kept).read()
        assert (found.live, found.steps[2].stage) == (live, last)


def test_a_rollback_on_record_from_before_still_counts() -> None:
    """An older rollback record, which names no judged step, still counts."""
    found = Versions()
    for value in (*map(encode_record, (LIVE, CANARY)), OLD):
        found.apply(value, b"")
    assert (found.live, found.candidate) == (1, None)
    old = decode_record(OLD)
    assert isinstance(old, Rollout)
    assert old.key == CANARY.key


def test_a_report_on_record_from_before_is_still_read() -> None:
    """An older report, which has no rate of the newest users, is still read."""
    report = Report(MODEL, "w1", 3_000, 1, 2, Comparison(90, 10, 0.0, 0.5, 0.25, 1.0, 2.0))
    assert decode_record(OLD_REPORT) == report


class Overtaken(MemoryRecords):
    """While the publisher waits, another step arrives."""

    def __init__(self, arriving: Rollout, *steps: Rollout) -> None:
        super().__init__(*steps)
        self.arriving = arriving

    def wait(self) -> list[str]:
        """Every worker obeys what came last."""
        self.steps.append(self.arriving)
        return []


def test_a_step_that_was_taken_back_meanwhile_is_no_success() -> None:
    """A step that was undone meanwhile is an error that names the later record."""
    late = decode_record(OLD)
    assert isinstance(late, Rollout)
    for taken, arriving, why in (
        (PROMOTED, late, "version 2 promoted, but then version 2 rolled back (w1): `freshet models`"),
        (CANARY, ENDED, "version 2 in canary for 10% of the users, but then version 2 rolled back (w1: too slow)"),
        (CANARY, RENEWED, "but then version 2 in canary for 50% of the users: `freshet models`"),
    ):
        with pytest.raises(ReleaseError) as refused:
            publish._take(Overtaken(arriving, LIVE), taken, lambda _name: nullcontext())
        assert why in str(refused.value)


@pytest.mark.parametrize("taken", [PROMOTED, RENEWED, BY_HAND])
def test_a_step_stands_though_a_worker_took_back_the_one_before(taken: Rollout) -> None:
    """A step stands where a worker's late rollback concerns the step before."""
    records = Overtaken(ENDED, LIVE, CANARY)
    assert publish._take(records, taken, lambda _name: nullcontext()) == taken
    assert records.read().steps[2] == taken
