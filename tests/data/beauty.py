"""The Beauty purchases as Freshet's items and events, for trainings and benchmarks.

    python -m tests.data.beauty FOLDER OUT

reads FOLDER's `Beauty.txt` (a line a user: user, then items in order) and
`items.tsv`. The data has an order and no times, so a user's purchases are laid
out a week apart, ending together: a split by time is then a split of the order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from freshet.core.catalogue import CatalogueItem
from freshet.core.events import Event, encode_event

END_MS = 1_400_000_000_000
WEEK_MS = 7 * 86_400_000


def read_events(folder: Path) -> list[Event]:
    """One event per purchase, in time order."""
    events = []
    for line in (folder / "Beauty.txt").read_text().splitlines():
        user, *items = line.split()
        for left, item in enumerate(reversed(items)):
            # users apart by a second: no two events of the log are of one time
            ts = END_MS - left * WEEK_MS + int(user) * 1000
            events.append(Event(f"beauty-{user}-{len(items) - left}", user, "purchase", ts, item_id=item))
    events.sort(key=lambda event: event.ts)
    return events


def read_items(folder: Path) -> Iterator[CatalogueItem]:
    """The products; an empty title where the join found none."""
    for line in (folder / "items.tsv").read_text().splitlines()[1:]:
        item, _, title = line.split("\t")
        yield CatalogueItem(item, title)


def convert(folder: Path, out: Path) -> None:
    """Write `items.jsonl` and `events.jsonl`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "items.jsonl").write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in read_items(folder)))
    (out / "events.jsonl").write_bytes(b"".join(encode_event(event) + b"\n" for event in read_events(folder)))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
