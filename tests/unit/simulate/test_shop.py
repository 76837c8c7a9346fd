"""The simulated shop: what it does follows from its seed, and its truth is what happens."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import islice, pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from freshet.cli import app
from freshet.core.catalogue import CatalogueItem
from freshet.core.events import Event, decode_event, encode_event
from freshet.simulate import files
from freshet.simulate.catalogue import Offer, invent
from freshet.simulate.shop import Plan, Shop, user_id
from freshet.simulate.shoppers import DAY_MS, WEEK_MS
from typer.testing import CliRunner


def make(seed: int = 3, days: int = 3, **plan: int) -> Shop:
    """A small shop that grows every day."""
    whole = {"users": 150, "items": 200, "daily_users": 30, "daily_items": 20} | plan
    return Shop(Plan(seed=seed, days=days, **whole), invent(seed, whole["items"], whole["daily_items"], days))


def test_the_same_seed_gives_the_same_bytes() -> None:
    """The same seed gives the same bytes, and another seed gives others."""
    once, again, other = ([encode_event(event) for event in make(seed).events()] for seed in (3, 3, 4))
    assert len(once) > 500
    assert once == again
    assert once != other


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    """A longer run begins with the events of a shorter run, up to its last day."""
    short, long = make(days=2), make(days=4).events()
    ends = short.plan.origin + 2 * DAY_MS
    whole_days = [event for event in short.events() if event.ts < ends]
    assert list(islice(long, len(whole_days))) == whole_days


def test_events_are_valid_and_in_order() -> None:
    """Ids are unique, times never fall, purchases have a price, and every record decodes."""
    over = make()
    prices = {item.item_id: item.price for item in over.catalogue.items}
    events = list(over.events())
    assert all(first.ts <= later.ts for first, later in pairwise(events))
    assert len({event.event_id for event in events}) == len(events)
    for event in events:
        assert decode_event(encode_event(event), event.user_id.encode()) == event
        assert event.amount == (prices[event.item_id or ""] if event.type == "purchase" else None)


def test_a_purchase_follows_a_click_and_a_click_a_view() -> None:
    """Within a visit a purchase follows a click and a click follows a view of the item."""
    done: dict[tuple[str, str | None, str | None], list[str]] = defaultdict(list)
    counts = Counter[str]()
    for event in make().events():
        before = done[event.user_id, event.session_id, event.item_id]
        assert event.type == "view" or {"click": "view", "purchase": "click"}[event.type] in before
        before.append(event.type)
        counts[event.type] += 1
    assert counts["view"] > counts["click"] > counts["purchase"] > 0


def test_items_and_shoppers_come_day_by_day() -> None:
    """No event comes before the day of its item or shopper, and later items and shoppers appear."""
    over = make()
    late_items = late_users = 0
    for event in over.events():
        day = (event.ts - over.plan.origin) // DAY_MS
        item, shopper = over.catalogue.number[event.item_id or ""], int(event.user_id.removeprefix("shopper-"))
        assert over.catalogue.days[item] <= day
        assert shopper < over.joined(int(day))
        late_items += item >= 200
        late_users += shopper >= 150
    assert late_items > 10
    assert late_users > 10


def test_the_truth_is_what_happens() -> None:
    """Over many times a list's views, clicks and purchases are as frequent as their chances say."""
    over = make()
    items = [item.item_id for item in over.catalogue.items[:10]]
    start, times = over.plan.origin + DAY_MS, 2000
    happened = np.zeros((10, 3))
    for moment in range(times):
        for event in over.react(7, items, start + moment).events:
            happened[items.index(event.item_id or ""), ("view", "click", "purchase").index(event.type)] += 1
    expected = over.expected(7, items, start)
    error = (happened / times - expected) / np.sqrt(np.maximum(expected * (1 - expected), 1e-4) / times)
    assert np.abs(error).max() < 4.5  # 30 chances


def test_a_reaction_is_repeatable_and_names_its_list() -> None:
    """The same list at the same time has the same reaction, and unsold items have none."""
    over = make()
    items = [item.item_id for item in over.catalogue.items[:20]]
    moments = range(over.plan.origin, over.plan.origin + 50)
    reactions = [over.react(1, items, ts, "list-9") for ts in moments]
    assert reactions == [over.react(1, items, ts, "list-9") for ts in moments]
    events = [event for reaction in reactions for event in reaction.events]
    assert events
    assert all(event.context == {"recommendation_id": "list-9"} for event in events)
    assert all(event.user_id == user_id(1) for event in events)
    assert not any(over.react(1, ["unsold"] * 10, ts).events for ts in moments)
    assert not over.expected(1, ["unsold"], over.plan.origin).any()


def test_the_first_slot_is_looked_at_most() -> None:
    """An item's chance falls from slot to slot."""
    over = make()
    chances = over.expected(2, [over.catalogue.items[0].item_id] * 10, over.plan.origin)[:, 1]
    assert (np.diff(chances) < 0).all()


def test_tastes_drift() -> None:
    """A shopper's tastes are alike from day to day, less alike after weeks, and never unrelated."""
    over = make(users=400)
    shoppers = np.arange(400)
    now = over.shoppers.tastes(shoppers, over.plan.origin)

    def alike(later: int) -> float:
        then = over.shoppers.tastes(shoppers, over.plan.origin + later)
        return float(np.corrcoef(now.ravel(), then.ravel())[0, 1])

    assert alike(DAY_MS) > 0.9
    assert 0.4 < alike(5 * WEEK_MS) < 0.6
    assert alike(DAY_MS) > alike(3 * DAY_MS) > alike(WEEK_MS) - 0.02


def test_shoppers_differ() -> None:
    """No list is the best for all shoppers."""
    over = make()
    numbers = np.arange(200)[None]
    first, other = (over.shoppers.chances(np.array([n]), numbers, over.plan.origin)[0, :, 0] for n in (0, 1))
    assert np.corrcoef(first, other)[0, 1] < 0.6


def test_a_catalogue_of_ones_own_is_sold() -> None:
    """A shop with a given catalogue has tastes about that catalogue's words."""
    items = [Offer(CatalogueItem(f"x{n}", category=("red", "blue")[n % 2], price=5.0), 0) for n in range(40)]
    over = Shop(Plan(seed=1, users=50, items=40, days=2, daily_users=0, daily_items=0), items)
    assert over.catalogue.vocabulary == ["blue", "red"]
    assert {event.item_id for event in over.events()} <= {offer.item.item_id for offer in items}


def write(folder: Path, **options: int) -> Shop:
    over = make(**options)
    files.write(folder, over, lambda _position, _count: None)
    return over


def test_a_shop_is_opened_again(tmp_path: Path) -> None:
    """A shop opened from its files has the same truth and events."""
    over = write(tmp_path)
    again = files.open_shop(tmp_path)
    items = [item.item_id for item in over.catalogue.items[:50]]
    ts = over.plan.origin + DAY_MS + 5
    assert np.array_equal(again.expected(3, items, ts), over.expected(3, items, ts))
    assert again.react(3, items, ts) == over.react(3, items, ts)
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=Event) for line in lines] == list(again.events())
    assert not list(tmp_path.glob("*.partial"))


def test_another_catalogue_is_not_that_shop(tmp_path: Path) -> None:
    """A shop's truth is refused with another catalogue."""
    write(tmp_path)
    lines = (tmp_path / "items.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "items.jsonl").write_bytes(b"".join(reversed(lines)))
    with pytest.raises(files.SimulationError, match="its truth is lost"):
        files.open_shop(tmp_path)


SIMULATE = ("simulate", "--users", "20", "--items", "30", "--days", "1", "--out")


def test_simulate_writes_a_shop(tmp_path: Path) -> None:
    """`simulate` gives the same bytes twice and leaves an existing folder alone."""
    for name in ("a", "b"):
        assert CliRunner().invoke(app, [*SIMULATE, str(tmp_path / name)]).exit_code == 0
    for name in (files.EVENTS, files.ITEMS, files.TRUTH):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = CliRunner().invoke(app, [*SIMULATE, str(tmp_path / "a")])
    assert again.exit_code == 1
    assert "exists: choose another --out" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "yesterday"], "--from is a date such as 2026-01-05, not 'yesterday'"),
        (["--from", "1816-01-01"], "from 1974 to 2089"),
        (["--catalogue", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["--catalogue", "EMPTY"], "holds no items"),
        (["--catalogue", "BAD"], "BAD:2: not a catalogue item"),
    ],
)
def test_simulate_says_what_is_wrong(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`simulate` refuses bad input in one line and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").touch()
    Path("BAD").write_text('{"item_id": "a"}\n{"item_id": 7}\n')
    done = CliRunner().invoke(app, [*SIMULATE, "out", *options])
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("out").exists()
