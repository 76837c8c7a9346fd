"""The comparison of a candidate with the live version, and the bands of a canary."""

from collections.abc import Callable

import pytest
from freshet.core.comparison import WINDOW, Comparison, ComparisonWindow, Thresholds, average_overlap, out_of_band
from freshet.core.recommendation import Item
from freshet.serving import canary

BANDS = Thresholds(lists=100, error_rate=0.01, latency_ratio=2.0, overlap=0.1)
GOOD = Comparison(lists=1000, failed=0, overlap=0.5, live_ms=2.0, candidate_ms=3.0)
ANN, BOB = [Item("ann", 1.0, "model")], [Item("bob", 3.0, "model")]


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [("abc", "abc", 1.0), ("abc", "xyz", 0.0), ("ab", "ba", 0.5), ("abc", "bac", 2 / 3), ("", "", 1.0), ("a", "", 0.0)],
)
def test_average_overlap(first: str, second: str, overlap: float) -> None:
    """The overlap is 1 for equal rankings and 0 for disjoint ones, weighs the top most and is symmetric."""
    assert average_overlap(first, second) == pytest.approx(overlap)
    assert average_overlap(second, first) == pytest.approx(overlap)


@pytest.mark.parametrize(
    ("comparison", "why"),
    [
        (GOOD, ""),
        (Comparison(lists=99, overlap=0.0), ""),
        (Comparison(lists=99, failed=1, error_rate=0.01, overlap=0.5), ""),
        (Comparison(lists=90, failed=10, error_rate=0.1, overlap=0.5), "10.0% of its inferences failed"),
        (Comparison(lists=0, failed=100, error_rate=1.0), "100.0% of its inferences failed"),
        (Comparison(lists=100, overlap=0.09), "overlap by 0.090"),
        (Comparison(lists=100, overlap=0.5, live_ms=2.0, candidate_ms=4.1), "2.0 times as long"),
    ],
)
def test_a_canary_is_judged_by_its_bands(comparison: Comparison, why: str) -> None:
    """After enough users a canary is judged by errors, overlap and latency, and the reason gives the figures."""
    said = out_of_band(comparison, BANDS)
    assert why in said
    assert bool(said) is bool(why)


def agree(window: ComparisonWindow) -> None:
    window.add(ANN, ANN)


def differ(window: ComparisonWindow) -> None:
    window.add(ANN, BOB)


def fail(window: ComparisonWindow) -> None:
    window.add_failed(1)


@pytest.mark.parametrize(
    ("worse", "why"), [(differ, "its lists overlap by"), (fail, "1.1% of its inferences failed, more than 1.0%")]
)
def test_an_old_canary_is_rolled_back_as_soon_as_a_new_one(worse: Callable[[ComparisonWindow], None], why: str) -> None:
    """Bands judge the newest users alone, so many earlier good lists delay no rollback."""
    window = ComparisonWindow(BANDS.lists)
    for _ in range(10 * WINDOW):
        agree(window)
    for _ in range(WINDOW):
        worse(window)
        if said := out_of_band(window.so_far(), BANDS):
            break
    assert why in said
    found = window.so_far()
    assert found.lists + found.failed > 10 * WINDOW


def test_what_was_bad_is_forgiven_when_it_is_old() -> None:
    """A failed sample and differing lists count only while they belong to the newest users."""
    window = ComparisonWindow(BANDS.lists)
    for _ in range(WINDOW):
        agree(window)
    window.add_failed(canary.SAMPLE_USERS)
    assert out_of_band(window.so_far(), BANDS) == ""
    window.add_failed(canary.SAMPLE_USERS)
    assert "1.6% of its inferences failed" in out_of_band(window.so_far(), BANDS)
    differ(window)
    assert window.so_far().overlap < 1.0
    for _ in range(WINDOW):
        agree(window)
    found = window.so_far()
    assert (found.lists, found.failed) == (2 * WINDOW + 1, 2 * canary.SAMPLE_USERS)
    assert (found.error_rate, found.overlap, found.score_gap) == (0.0, 1.0, 0.0)


def test_a_canary_that_only_failed_of_late_has_no_overlap_to_judge() -> None:
    """With an error band of 1, users whose inferences all failed count as no difference of lists."""
    window = ComparisonWindow(BANDS.lists)
    agree(window)
    window.add_failed(WINDOW)
    assert out_of_band(window.so_far(), Thresholds(lists=100, error_rate=1.0, latency_ratio=2.0, overlap=0.1)) == ""
