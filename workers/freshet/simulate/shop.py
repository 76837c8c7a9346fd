"""The shop: shoppers who come, look at what they are shown, and react to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.events import Event
from freshet.simulate.catalogue import Assortment, Offer
from freshet.simulate.draws import Draw, generator
from freshet.simulate.shoppers import BEHAVIOURS, DAY_MS, HOUR_MS, SLOTS, Shoppers

PAGE = 10
"""Slots of the shop's own pages."""
SLOT_MS = 4000
STEP_MS = 1000
"""Between a view, its click and its purchase."""
PAGE_MS = PAGE * SLOT_MS + 5000
DRAWN = 3 * PAGE
"""Items drawn to fill a page: the first distinct ones are taken."""
TURN_PAGE = 0.6
BROWSE = 0.3
"""Share of pages that show a department that the shopper is not after."""
BY_HOUR = (1, 1, 1, 1, 1, 1, 2, 3, 4, 4, 4, 4, 5, 5, 4, 4, 4, 5, 6, 7, 7, 6, 4, 2)
"""How visits spread over a day, in parts."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Some = Annotated[int, msgspec.Meta(ge=1)]


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is simulated. Everything else follows from the plan, and from the catalogue if one is given.

    `users` are there on day 0, and `daily_users` join on each later day. `items` and `daily_items` do likewise.
    `origin` is the time (ms) at which day 0 begins, and is a whole hour. `visits` is the mean number of visits of a
    shopper a day.
    """

    seed: Count
    users: Some
    items: Some
    days: Some
    daily_users: Count
    daily_items: Count
    origin: int = 1_767_571_200_000  # 2026-01-05, a Monday
    visits: float = 0.5


@dataclass(frozen=True)
class Reaction:
    """What a shopper did with a list: which slots were looked at, and the events, in order of time."""

    looked: list[bool]
    events: list[Event]


class _Pages(NamedTuple):
    """Pages that are shown: whose, when, in which visit, and what; item -1 is an empty slot."""

    shoppers: NDArray[np.int64]
    times: NDArray[np.int64]
    visits: NDArray[np.int64]
    items: NDArray[np.int64]

    def take(self, which: NDArray[np.bool_]) -> _Pages:
        return _Pages(*(part[which] for part in self))


class _Act(NamedTuple):
    """One thing that was done; sorts by time."""

    ts: int
    shopper: int
    step: int
    item: int
    visit: int


class Shop:
    """A simulated shop. Memory grows with shoppers and items, not with events."""

    def __init__(self, plan: Plan, offers: Sequence[Offer]) -> None:
        self.plan = plan
        self.catalogue = Assortment(plan.seed, offers)
        self.shoppers = Shoppers(plan.seed, self.catalogue, plan.origin, self.joined(plan.days - 1))
        members = [np.flatnonzero(self.catalogue.department == n) for n in range(len(self.catalogue.departments))]
        self._members = members

    def joined(self, day: int) -> int:
        """How many shoppers there are on a day: those with a smaller number."""
        return self.plan.users + day * self.plan.daily_users

    def events(self) -> Iterator[Event]:
        """What happens on the shop's own pages, in order of time."""
        number, hours = 0, self.plan.days * 24
        waiting: list[_Act] = []
        for hour in range(hours):
            ends = self.plan.origin + (hour + 1) * HOUR_MS
            acts = sorted(waiting + self._acts(hour))
            due = [act for act in acts if act.ts < ends]
            waiting = acts[len(due) :]
            for act in due if hour + 1 < hours else acts:
                yield self._event(f"sim{self.plan.seed}-{number}", act, f"visit-{act.visit}")
                number += 1

    def react(self, shopper: int, items: Sequence[str], ts: int, list_id: str | None = None) -> Reaction:
        """What a shopper does with a list that is shown at a time (ms).

        The same list and time give the same reaction. An item that the catalogue lacks gets no reaction. `list_id`
        goes into the events' context, so that an act names the list that was acted upon.
        """
        items = items[:SLOTS]
        numbers = np.array([[self.catalogue.number.get(item, -1) for item in items]], np.int64)
        uniform = generator(self.plan.seed, Draw.REACTION, shopper, ts).random((1, len(items), 4))
        page = _Pages(np.array([shopper]), np.array([ts]), np.zeros(1, np.int64), numbers)
        looked = uniform[0, :, 0] < self.shoppers.looks[: len(items)]
        context = {"recommendation_id": list_id} if list_id is not None else None
        events = [
            self._event(f"sim{self.plan.seed}-{shopper}-{ts}-{number}", act, f"visit-{shopper}-{ts}", context)
            for number, act in enumerate(sorted(self._done(page, uniform)))
        ]
        return Reaction(looked.tolist(), events)

    def expected(self, shopper: int, items: Sequence[str], ts: int) -> NDArray[np.float64]:
        """The truth: chances `[items, 3]` of view, click and purchase of each slot of a list that is shown once."""
        items = items[:SLOTS]
        numbers = np.array([self.catalogue.number.get(item, -1) for item in items], np.int64)
        return self.shoppers.expected(shopper, numbers.tolist(), ts) * (numbers >= 0)[:, None]

    def _acts(self, hour: int) -> list[_Act]:
        """What is done on the pages of the visits that begin in an hour."""
        pages = self._pages(hour)
        hours = pages.times // HOUR_MS
        acts: list[_Act] = []
        for hour_of_pages in np.unique(hours):
            of_hour = pages.take(hours == hour_of_pages)
            seed = self.plan.seed
            uniform = generator(seed, Draw.PAGES, hour, int(hour_of_pages)).random((*of_hour.items.shape, 4))
            acts += self._done(of_hour, uniform)
        return acts

    def _pages(self, hour: int) -> _Pages:
        rng = generator(self.plan.seed, Draw.VISITS, hour)
        day = hour // 24
        everybody = np.arange(self.joined(day))
        rate = self.plan.visits * BY_HOUR[hour % 24] / sum(BY_HOUR)
        visitors = np.repeat(everybody, rng.poisson(rate * self.shoppers.zeal(everybody)))
        starts = self.plan.origin + hour * HOUR_MS + rng.integers(HOUR_MS, size=len(visitors))
        turned = rng.geometric(1 - TURN_PAGE, len(visitors))
        visit = np.repeat(np.arange(len(visitors)), turned)
        page = np.arange(len(visit)) - np.repeat(np.cumsum(turned) - turned, turned)
        shoppers, times = visitors[visit], starts[visit] + page * PAGE_MS
        moods = self.shoppers.moods(shoppers, self.plan.origin + hour * HOUR_MS)
        elsewhere = rng.random(len(visit)) < BROWSE
        departments = np.where(elsewhere, rng.integers(len(self._members), size=len(visit)), moods)
        drawn = self._drawn(rng, departments, day)
        return _Pages(shoppers, times, hour * 1_000_000 + visit, drawn)

    def _drawn(self, rng: np.random.Generator, departments: NDArray[np.int64], day: int) -> NDArray[np.int64]:
        """Pages `[len(departments), PAGE]` of distinct items that are there by the day, drawn by fame."""
        shop = self.catalogue
        uniform = rng.random((len(departments), DRAWN))
        drawn = np.full((len(departments), DRAWN), -1, np.int64)
        for department, members in enumerate(self._members):
            mine = departments == department
            there = members[shop.days[members] <= day]
            if mine.any() and len(there):
                edges = np.cumsum(shop.fame[there])
                drawn[mine] = there[np.searchsorted(edges[:-1], uniform[mine] * edges[-1], side="right")]
        earlier = np.tri(DRAWN, k=-1, dtype=bool)
        again = ((drawn[:, :, None] == drawn[:, None, :]) & earlier).any(axis=2)
        drawn[again] = -1
        order = np.argsort(again, axis=1, kind="stable")[:, :PAGE]
        return np.take_along_axis(drawn, order, axis=1)

    def _done(self, pages: _Pages, uniform: NDArray[np.float64]) -> list[_Act]:
        """What is done on pages of one hour; `uniform` `[pages, slots, 4]` decides."""
        if not len(pages.shoppers):
            return []
        slots = pages.items.shape[1]
        chances = self.shoppers.chances(pages.shoppers, pages.items, int(pages.times[0]))
        there = (uniform[:, :, 0] < self.shoppers.looks[:slots]) & (pages.items >= 0)
        done = there[:, :, None] & np.logical_and.accumulate(uniform[:, :, 1:] < chances, axis=2)
        page, slot, step = np.nonzero(done)
        times = pages.times[page] + slot * SLOT_MS + step * STEP_MS
        columns = (times, pages.shoppers[page], step, pages.items[page, slot], pages.visits[page])
        return [_Act(*act) for act in zip(*(column.tolist() for column in columns), strict=True)]

    def _event(self, event_id: str, act: _Act, session: str, context: dict[str, str] | None = None) -> Event:
        item = self.catalogue.items[act.item]
        kind = BEHAVIOURS[act.step]
        amount = item.price if kind == "purchase" else None
        return Event(event_id, user_id(act.shopper), kind, act.ts, item.item_id, amount, session, context)


def user_id(shopper: int) -> str:
    """The user id of a shopper."""
    return f"shopper-{shopper}"


def shopper_number(user: str) -> int:
    """Inverse of `user_id`."""
    return int(user.removeprefix("shopper-"))


def day_of(plan: Plan, ts: int) -> int:
    """The day of a time (ms), from 0."""
    return (ts - plan.origin) // DAY_MS
