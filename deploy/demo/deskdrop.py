"""CI&T Deskdrop's event log as Freshet's items and events, with their real times.

    python -m deploy.demo.deskdrop FOLDER OUT

reads FOLDER's `events.tsv.gz` and `items.tsv`, and writes `items.jsonl` and
`events.jsonl` under OUT, for `freshet train`, `freshet replay` and `freshet produce`.
The data is not fetched by the set-up: nobody packages it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from freshet.core.catalogue import CatalogueItem
from freshet.core.events import Event, encode_event

from deploy.demo.tsv import RawDataError, read_rows, run

TYPES = ("view", "like", "bookmark", "comment_created", "follow")
EVENTS_HEADER = ["user_id", "item_id", "event_type", "ts"]
ITEMS_HEADER = ["item_id", "title"]


class DeskdropError(RawDataError):
    """What is wrong with the raw files."""


def read_events(folder: Path) -> list[Event]:
    """One event per line, in time order. Raises `DeskdropError`."""
    rows = read_rows(folder / "events.tsv.gz", EVENTS_HEADER, DeskdropError)
    events = []
    for number, (where, (user, item, kind, seconds)) in enumerate(rows):
        if kind not in TYPES or not seconds.isdigit():
            raise DeskdropError(f"{where}: {kind!r} at {seconds!r}")
        events.append(Event(f"deskdrop-{number}", user, kind, int(seconds) * 1000, item_id=item))
    events.sort(key=lambda event: event.ts)
    return events


def read_items(folder: Path, events: Sequence[Event]) -> list[tuple[int, CatalogueItem]]:
    """Every article that an event names, and when it came (ms): just behind its first event.

    The log does not say when an article was published. Its title is known for
    one in twelve; the others are articles without a name. Raises `DeskdropError`.
    """
    titles = {item: title for _, (item, title) in read_rows(folder / "items.tsv", ITEMS_HEADER, DeskdropError)}
    first: dict[str, int] = {}
    for event in events:
        first.setdefault(event.item_id or "", event.ts)
    return [
        (ts + 1, CatalogueItem(item, title=titles.get(item, ""), category="article", available=True))
        for item, ts in first.items()
    ]


def convert(source: Path, target: Path) -> None:
    """Write a folder's `items.jsonl` and `events.jsonl` under `target`. Raises `DeskdropError`."""
    events = read_events(source)
    items = read_items(source, events)
    target.mkdir(parents=True, exist_ok=True)
    lines = (msgspec.json.encode({**msgspec.to_builtins(item), "ts": ts}) + b"\n" for ts, item in items)
    (target / "items.jsonl").write_bytes(b"".join(lines))
    (target / "events.jsonl").write_bytes(b"".join(encode_event(event) + b"\n" for event in events))


if __name__ == "__main__":
    sys.exit(run(convert, "python -m deploy.demo.deskdrop DESKDROP-FOLDER OUT"))
