"""A tiny log whose right answer is known: every user walks two rings of items in turn, one further at each visit.

What comes next follows from the event before the last, which a network learns. Counts of what is taken together
cannot tell the two rings' next items apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from freshet.core.events import Event, encode_event

NOW = 1_700_000_000_000
ITEMS = 24
RING = ITEMS // 2
MODEL = {"length": 2, "dim": 16, "feed_forward": 16, "blocks": 1, "dropout": 0.0}


def walk(users: int = 30, steps: int = 12, start: int = 0) -> list[Event]:
    """Users take turns; each begins somewhere in either ring, and is in the other ring at every second step."""
    return [
        Event(f"u{user}-{step}", f"u{user}", "view", NOW + (step * users + user) * 60_000, f"i{_item(user, step)}")
        for step in range(start, start + steps)
        for user in range(users)
    ]


def _item(user: int, step: int) -> int:
    start = user if step % 2 == 0 else 5 * user + user // RING
    return (start + step // 2) % RING + RING * (step % 2)


def write_log(path: Path, events: Iterable[Event]) -> Path:
    """The events as a file of JSON lines."""
    path.write_bytes(b"".join(encode_event(event) + b"\n" for event in events))
    return path


def write_items(path: Path, without: Iterable[int] = ()) -> Path:
    """A catalogue of the ring's items and one more that nobody has seen."""
    missing = set(without)
    lines: list[dict[str, Any]] = [
        {"item_id": f"i{number}", "title": "" if number in missing else f"film {number}, series {chr(97 + number % 7)}"}
        for number in range(ITEMS + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_config(path: Path, **training: Any) -> Path:
    """A settings file for the ring: views alone, a small model."""
    given = {"name": "ring", "epochs": 8, "positions": 16, "learning_rate": 0.02, "average": 0.9, **training}
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
    model = [f"{name} = {json.dumps(value)}" for name, value in MODEL.items()]
    path.write_text("\n".join(["[behaviours]", "view = 1.0", "[training]", *lines, "[training.model]", *model, ""]))
    return path
