"""A simulated shop on disk: its events, its catalogue, and the truth that opens the shop again.

`truth.json` is written last. A shop follows from `truth.json` and `items.jsonl` alone, so that the chance of any
click can be computed later. `truth.json` holds samples of these chances. A shop that is opened again must give the
same chances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from freshet.core.catalogue import CatalogueItem
from freshet.core.decoding import Undecodable, decode
from freshet.core.events import encode_event
from freshet.core.lines import catalogue_line
from freshet.errors import FreshetError
from freshet.files import aside
from freshet.simulate.catalogue import Offer
from freshet.simulate.shop import Plan, Shop
from freshet.simulate.shoppers import BEHAVIOURS, DAY_MS

EVENTS, ITEMS, TRUTH = "events.jsonl", "items.jsonl", "truth.json"
SAMPLES = 20
AGREES = 1e-5
WRITTEN_TOGETHER = 4096


class SimulationError(FreshetError):
    """The folder or catalogue cannot be used; the message says why."""


class Sample(msgspec.Struct, frozen=True):
    """The chance that a shopper clicks an item that a list shows them in its first slot at a time (ms)."""

    shopper: int
    item_id: str
    ts: int
    click: float


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a simulated shop; `looks` are the chances that slots are looked at, first to last."""

    plan: Plan
    events: int
    behaviours: tuple[str, ...]
    looks: list[float]
    samples: list[Sample]


def write(folder: Path, shop: Shop, advanced: Callable[[int, int], None]) -> int:
    """Write a shop's events, catalogue and truth. Returns the number of events.

    `advanced` is called with the event time (ms from the start) and the number of events so far. If something goes
    wrong, half-written files are left as `*.partial`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = shop.plan
    days = zip(shop.catalogue.items, shop.catalogue.days.tolist(), strict=True)
    lines = [_encoded(msgspec.to_builtins(item) | {"ts": plan.origin + day * DAY_MS}) for item, day in days]
    aside(folder / ITEMS).write_bytes(b"".join(lines))
    count = 0
    with aside(folder / EVENTS).open("wb") as file:
        for event in shop.events():
            file.write(encode_event(event) + b"\n")
            count += 1
            if count % WRITTEN_TOGETHER == 0:
                advanced(event.ts - plan.origin, count)
    truth = Truth(
        plan=plan, events=count, behaviours=BEHAVIOURS, looks=shop.shoppers.looks.tolist(), samples=_samples(shop)
    )
    aside(folder / TRUTH).write_bytes(msgspec.json.format(msgspec.json.encode(truth)) + b"\n")
    for name in (ITEMS, EVENTS, TRUTH):
        aside(folder / name).rename(folder / name)
    return count


def open_shop(folder: Path) -> Shop:
    """The shop that a folder's truth tells of. Raises `SimulationError`."""
    try:
        truth = decode(_truth, (folder / TRUTH).read_bytes())
    except FileNotFoundError:
        raise SimulationError(f"{folder} has no {TRUTH}: make it with `freshet simulate --out {folder}`") from None
    if isinstance(truth, Undecodable):
        raise SimulationError(f"{folder / TRUTH} cannot be read: {truth.why}")
    shop = Shop(truth.plan, read_offers(folder / ITEMS, truth.plan.origin))
    for was, now in zip(truth.samples, _samples(shop), strict=True):
        if was.item_id != now.item_id or abs(was.click - now.click) > AGREES:
            raise SimulationError(f"{folder} was made with another catalogue or another Freshet: its truth is lost")
    return shop


def read_offers(path: Path, origin: int) -> list[Offer]:
    """Read a catalogue with one item a line. A `ts` says when the item enters.

    An item without a `ts`, or with a `ts` before `origin`, is there from the start. Raises `SimulationError`.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SimulationError(f"{path}: {error.strerror}") from None
    offers = []
    for number, line in enumerate(lines, 1):
        item, key = decode(_item, line), catalogue_line(line)
        if isinstance(item, Undecodable):
            raise SimulationError(f"{path}:{number}: not a catalogue item: {item.why}")
        if isinstance(key, Undecodable):
            raise SimulationError(f"{path}:{number}: not a catalogue item: {key.why}")
        offers.append(Offer(item, max(0, ((key.ts or 0) - origin) // DAY_MS)))
    if not offers:
        raise SimulationError(f"{path} holds no items")
    return offers


_truth = msgspec.json.Decoder(Truth)
_item = msgspec.json.Decoder(CatalogueItem)


def _samples(shop: Shop) -> list[Sample]:
    plan, items = shop.plan, shop.catalogue.items
    samples = []
    for number in range(SAMPLES):
        shopper = number * 7919 % shop.joined(0)
        item = items[number * 104_729 % len(items)]
        ts = plan.origin + number * plan.days * DAY_MS // SAMPLES
        samples.append(
            Sample(shopper, item.item_id, ts, round(float(shop.expected(shopper, [item.item_id], ts)[0, 1]), 6))
        )
    return samples


def _encoded(line: dict[str, Any]) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def taken(folder: Path) -> Sequence[str]:
    """Which of the files that would be written are there."""
    return [name for name in (EVENTS, ITEMS, TRUTH) if (folder / name).exists()]
