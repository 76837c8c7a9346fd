"""MovieLens-100K's raw files as Freshet's items and events, with their real times.

    python -m deploy.demo.movielens .parts/data/ml-100k OUT

writes `items.jsonl` and `events.jsonl` under OUT, for `freshet produce` and `freshet train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from freshet.core.catalogue import CatalogueItem, encode_item
from freshet.core.events import Event, encode_event

from deploy.demo.tsv import RawDataError, read_rows, run
from deploy.local.parts import PARTS

FOLDER = PARTS / "data" / "ml-100k"
SESSION_SPAN = 6000
ARTICLES = frozenset({"The", "A", "An", "Le", "La", "Les", "Das", "Der", "Die", "Il"})
TERMS = "MovieLens-100K: research use, without redistribution of the data (GroupLens)"
TYPE_BY_RATING = {1: "view", 2: "view", 3: "click", 4: "purchase", 5: "purchase"}
INTERACTIONS_HEADER = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
ITEMS_HEADER = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]


class MovieLensError(RawDataError):
    """What is wrong with the raw files."""

    remedy = ": run `make setup`"


def read_events(folder: Path = FOLDER) -> list[Event]:
    """One event per rating, in the order of (time, user, item). Raises `MovieLensError`."""
    rows = read_rows(folder / "ml-100k.inter", INTERACTIONS_HEADER, MovieLensError)
    events = [_event(where, user, item, rating, seconds) for where, (user, item, rating, seconds) in rows]
    events.sort(key=lambda event: (event.ts, _number(event.user_id), _number(event.item_id or "")))
    return events


def read_items(folder: Path = FOLDER) -> list[CatalogueItem]:
    """One catalogue item per film: genres are its category, the year its description. Raises `MovieLensError`."""
    return [
        CatalogueItem(item, title=title, category=genres, description=year, available=True)
        for _, (item, title, year, genres) in read_rows(folder / "ml-100k.item", ITEMS_HEADER, MovieLensError)
    ]


def at_once(events: Sequence[Event], span: int = SESSION_SPAN) -> list[Event]:
    """The same events with sessions drawn out over `span` places each, so that many users are active at once.

    In MovieLens most users rate all their films in one sitting, alone. Each user's own order stays.
    """
    starts: dict[str, int] = {}
    sessions: dict[tuple[str, int], list[Event]] = {}
    for position, event in enumerate(events):
        start = starts.get(event.user_id, -span)
        if position >= start + span:
            start = starts[event.user_id] = position
        sessions.setdefault((event.user_id, start), []).append(event)
    placed = [
        (start + number * span / len(session), start, number, event)
        for (_, start), session in sessions.items()
        for number, event in enumerate(session)
    ]
    placed.sort(key=itemgetter(0, 1, 2))
    return [event for *_, event in placed]


def convert(source: Path, target: Path) -> None:
    """Write a folder's `items.jsonl` and `events.jsonl` under `target`. Raises `MovieLensError`."""
    items, events = read_items(source), read_events(source)
    target.mkdir(parents=True, exist_ok=True)
    (target / "items.jsonl").write_bytes(b"".join(encode_item(item) + b"\n" for item in items))
    (target / "events.jsonl").write_bytes(b"".join(encode_event(event) + b"\n" for event in events))


def spoken_title(item: CatalogueItem) -> str:
    """A film's title as people say it: `Matrix, The` is The Matrix."""
    bare, comma, article = item.title.rpartition(", ")
    return f"{article} {bare}" if comma and article in ARTICLES else item.title


def _event(where: str, user: str, item: str, rating: str, seconds: str) -> Event:
    try:
        kind = TYPE_BY_RATING[round(float(rating))]
        ts = round(float(seconds)) * 1000
    except (KeyError, ValueError):
        raise MovieLensError(f"{where}: rating {rating!r} at {seconds!r}") from None
    return Event(f"ml-{user}-{item}", user, kind, ts, item_id=item)


def _number(identifier: str) -> tuple[int, str]:
    """Numeric ids in numeric order, any other ones after them."""
    return (int(identifier), "") if identifier.isdigit() else (sys.maxsize, identifier)


if __name__ == "__main__":
    sys.exit(run(convert, "python -m deploy.demo.movielens ML-100K-FOLDER OUT"))
