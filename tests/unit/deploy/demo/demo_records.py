"""Events and lists for the tests of the demo."""

from freshet.core.events import Event
from freshet.core.recommendation import AsOf, Item, Reason, Recommendation, SideInputs, Timings


def event(number: int, user: str = "u") -> Event:
    return Event(f"e{number}", user, "click", 881_250_949_000 + number, item_id=f"i{number}")


def made(offset: int, items: str = "abc", user: str = "u", *, degraded: bool = False) -> Recommendation:
    ranked = [Item(name, 1.0, "model", reasons=(Reason("i0", "click", 0, 0.5),)) for name in items]
    timings = Timings(0, 0, 0, 0, 0)
    as_of = AsOf(0, offset, 0)
    return Recommendation("r", user, ranked, 3, as_of, SideInputs(-1, -1, -1), timings, degraded, personalised=True)
