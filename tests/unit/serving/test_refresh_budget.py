"""The share of its time that a worker may spend on making lists again."""

from __future__ import annotations

from freshet.serving.refresh_budget import BURST_SECONDS, RESERVED_SECONDS, RefreshBudget


class Clock:
    """A clock that is set."""

    now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def test_in_the_long_run_the_share_is_kept() -> None:
    """However much there is to do."""
    clock = Clock()
    budget = RefreshBudget(0.2, clock)
    spent = 0.0
    while clock.now < 1000:
        if budget.allows(urgent=True):
            with budget.spend():
                clock.now += 0.05
                spent += 0.05
        else:
            clock.now += 0.01
    assert 0.19 < (spent - BURST_SECONDS) / clock.now < 0.21


def test_some_of_a_burst_is_kept_for_what_is_urgent() -> None:
    """What could only be better leaves the reserve alone."""
    clock = Clock()
    budget = RefreshBudget(0.1, clock)
    while budget.allows(urgent=False):
        with budget.spend():
            clock.now += 0.1
    assert clock.now < (BURST_SECONDS - RESERVED_SECONDS) * 1.4
    assert budget.allows(urgent=True)


def test_what_was_not_spent_is_kept_up_to_a_burst() -> None:
    """After a night without work nobody works through the morning."""
    clock = Clock()
    budget = RefreshBudget(0.5, clock)
    clock.now = 10_000.0
    started = clock.now
    while budget.allows(urgent=True):
        with budget.spend():
            clock.now += 0.1
    assert clock.now - started < 3 * BURST_SECONDS
