"""The clock of a replay."""

from __future__ import annotations

from freshet.replay.clock import Clock

from tests.simulation.memory_replays import START


def test_a_clock_is_the_same_after_a_checkpoint() -> None:
    """A restored clock has the minutes, boundaries and counts of a clock without a break."""
    clocks = [Clock(3600.0, (3600,), all_time=True) for _ in range(2)]
    for clock in clocks:
        for minute, item in enumerate("abac"):
            clock.advance(START + minute * 1_800_000)
            clock.add(item)
    again = Clock(3600.0, (3600,), all_time=True)
    again.restore(clocks[0].saved())
    for clock in (again, clocks[1]):
        clock.add("d")
        clock.advance(START + 9_000_000)
    for restored, continued in (
        (again.counts, clocks[1].counts),
        (again.all_time, clocks[1].all_time),
        (again.at_boundary[0], clocks[1].at_boundary[0]),
    ):
        assert restored.items == continued.items
        assert restored.values.tolist() == continued.values.tolist()
    assert again.all_time.values.tolist() == [2.0, 1.0, 1.0, 1.0]
    assert again.boundaries == clocks[1].boundaries
