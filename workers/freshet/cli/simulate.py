"""`freshet simulate`: an event stream of invented shoppers, with the truth about them."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from freshet.cli.console import emit, progress, say
from freshet.cli.errors import UserError
from freshet.cli.options import Json

DAILY_SHARE = 100
"""By default one shopper and one item joins a day for so many on the first day."""


def simulate(
    to: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for events, items and truth.")],
    users: Annotated[int, typer.Option(min=1, help="Shoppers on the first day.")] = 1000,
    items: Annotated[int, typer.Option(min=1, help="Items on the first day.")] = 2000,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long, in days.")] = 28,
    seed: Annotated[int, typer.Option(min=0, help="Everything follows from it.")] = 0,
    daily_users: Annotated[int | None, typer.Option(min=0, help="Shoppers who join a day; 1 % if left out.")] = None,
    daily_items: Annotated[int | None, typer.Option(min=0, help="Items that are added a day; 1 % if left out.")] = None,
    visits: Annotated[float, typer.Option(min=0.001, max=100, help="Mean visits of a shopper a day.")] = 0.5,
    start: Annotated[str, typer.Option("--from", metavar="DATE", help="The first day (UTC).")] = "2026-01-05",
    catalogue: Annotated[
        Path | None, typer.Option(metavar="ITEMS.jsonl", help="Sell these items; without it a catalogue is invented.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Invent shoppers with drifting tastes and write what they do: events, catalogue, and the truth behind both.

    The same options give the same bytes. `freshet produce` sends the files, `freshet replay` and
    `freshet train` read them.
    """
    from freshet.simulate.catalogue import invent
    from freshet.simulate.files import read_offers, taken, write
    from freshet.simulate.shop import Plan, Shop
    from freshet.simulate.shoppers import DAY_MS

    if there := taken(to):
        raise UserError(f"{to / there[0]} exists: choose another --out")
    daily_items = items // DAILY_SHARE if daily_items is None else daily_items
    plan = Plan(
        seed=seed,
        users=users,
        items=items,
        days=days,
        daily_users=users // DAILY_SHARE if daily_users is None else daily_users,
        daily_items=daily_items,
        origin=_day(start),
        visits=visits,
    )
    fresh, began = not to.exists(), time.monotonic()
    try:
        offers = invent(seed, items, daily_items, days) if catalogue is None else read_offers(catalogue, plan.origin)
        shop = Shop(plan, offers)
        with progress(days * DAY_MS, "events") as advance:
            count = write(to, shop, advance)
    except BaseException:
        _undo(to, fresh=fresh)
        raise
    seconds = time.monotonic() - began
    shoppers, sold = shop.joined(days - 1), len(offers)
    if as_json:
        emit({"out": str(to), "events": count, "users": shoppers, "items": sold, "seconds": round(seconds, 3)})
    else:
        say(f"{count:,} events of {shoppers:,} shoppers and {sold:,} items in {to} ({count / seconds:,.0f}/s)")


def _undo(folder: Path, *, fresh: bool) -> None:
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        for path in folder.glob("*.json*.partial"):
            path.unlink()


def _day(text: str) -> int:
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise UserError(f"--from is a date such as 2026-01-05, not {text!r}") from None
    if not 1974 <= day.year < 2090:  # noqa: PLR2004 - what an event's time may be
        raise UserError(f"--from is a date from 1974 to 2089, not {text}")
    return int(day.timestamp() * 1000)
