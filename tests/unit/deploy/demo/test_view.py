"""The demo's picture in the terminal."""

import io

import pytest
from rich.console import Console

from deploy.demo.tracker import DemoTracker
from deploy.demo.view import Facts, line, render, sparkline
from tests.unit.deploy.demo.demo_records import event, made


def shown_at(width: int, height: int) -> str:
    tracker = DemoTracker()
    facts = Facts({"i2": "[red]Alien[/]", "a": "A" * 200}, 100, 0)
    for number in range(3):
        tracker.acknowledged(tracker.sending(event(number), at=number), number)
        tracker.consumed(made(number, "abcdefghij"[number:] + "xyz"[:number]), at=number + 0.01)
        tracker.shown(number + 0.02)
        tracker.tick(number)
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(render(tracker, facts, 3.0))
    assert "[red]Alien[/]" in line(tracker, facts, 3.0, 3.0)
    return capture.get()


@pytest.mark.parametrize(("width", "height"), [(100, 30), (80, 24), (200, 60), (40, 10)])
def test_a_frame_fills_the_terminal_exactly(width: int, height: int) -> None:
    """No line of a frame is too wide and no frame too high, for any size and titles."""
    lines = shown_at(width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_a_frame_shows_cause_and_effect() -> None:
    """A frame shows the user's event, the new item and the model version."""
    frame = shown_at(100, 30)
    assert "user u did" in frame
    assert "[red]Alien[/]" in frame
    assert "new" in frame
    assert "version 3" in frame


def test_sparklines_scale_to_their_largest_value() -> None:
    """A sparkline scales to its largest value, and zeros are a flat line."""
    assert sparkline([0, 1, 2], 10) == "▁▅█"
    assert sparkline([0, 0], 10) == "▁▁"
    assert len(sparkline(range(100), 15)) == 15
