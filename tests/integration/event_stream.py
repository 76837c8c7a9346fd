"""A seeded stream of events."""

import random

from freshet.core.events import Event


def stream(seed: int, count: int, users: int = 40, start: int = 0) -> list[Event]:
    """A seeded stream with unique event ids, some of them produced twice in a row."""
    rng = random.Random(seed)
    events: list[Event] = []
    for number in range(start, start + count):
        kind = rng.choices(("view", "click", "purchase"), (6, 3, 1))[0]
        amount = round(rng.uniform(1, 50), 2) if kind == "purchase" else None
        event = Event(
            f"e{seed}-{number}",
            f"user-{rng.randrange(users)}",
            kind,
            890_000_000_000 + number * 7_000,
            str(rng.randrange(1, 1600)),
            amount,
        )
        events.append(event)
        if rng.random() < 0.03:
            events.append(event)
    return events
