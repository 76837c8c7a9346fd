"""Policies over a simulated shop, and their lists with clicks: experiments whose answer is known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import NamedTuple

import numpy as np
from freshet.core.evaluation.off_policy import LoggedLists, Slots
from freshet.core.exploration import explore
from freshet.simulate.catalogue import invent
from freshet.simulate.shop import Plan, Shop, user_id
from freshet.simulate.shoppers import DAY_MS

SIZE = 5
POOL = 10


@cache
def shop(seed: int, users: int = 400) -> Shop:
    """A small shop."""
    plan = Plan(seed=seed, users=users, items=60, days=30, daily_users=0, daily_items=0)
    return Shop(plan, invent(seed, plan.items, 0, 1))


@dataclass(frozen=True)
class Policy:
    """Ranks by what shoppers like, as well as it can tell: `blur` is the spread of its errors."""

    name: str
    blur: float

    def rankings(self, over: Shop, ts: int) -> list[list[str]]:
        """The whole catalogue for each shopper, best first."""
        appeal = appeals(over, ts)
        digest = hashlib.blake2b(f"{self.name} {ts}".encode(), digest_size=8).digest()
        errors = np.random.default_rng(int.from_bytes(digest)).standard_normal(appeal.shape)
        ids = [item.item_id for item in over.catalogue.items]
        order = np.argsort(-(np.log(appeal) + self.blur * errors), axis=1)
        return [[ids[item] for item in ranking] for ranking in order.tolist()]


def appeals(over: Shop, ts: int) -> np.ndarray:
    """The chance that each shopper clicks each item having looked at it, `[users, items]`."""
    users, items = over.plan.users, len(over.catalogue.items)
    chances = over.shoppers.chances(np.arange(users), np.broadcast_to(np.arange(items), (users, items)), ts)
    return chances[:, :, 0] * chances[:, :, 1]


class Moments:
    """Lists of a logging policy at fixed moments, drawn with exploration and clicked by chance, again and again.

    `truth` is what a target policy's lists would earn at these moments, in clicks a
    list. The target picks within the logging policy's pool, so that all of its
    lists could have been shown, unless told otherwise.
    """

    def __init__(self, over: Shop, logging: Policy, target: Policy, lists: int, *, within_pool: bool = True) -> None:
        self._shop = over
        self._moments: list[_Moment] = []
        self._looks = over.shoppers.looks[:SIZE]
        worth = 0.0
        for day in range(-(-lists // over.plan.users)):
            ts = over.plan.origin + day * DAY_MS
            sides = zip(appeals(over, ts).tolist(), logging.rankings(over, ts), target.rankings(over, ts), strict=True)
            for shopper, (appeal, ranking, wished) in enumerate(islice(sides, lists - len(self._moments))):
                pool = ranking[:POOL]
                wanted = [item for item in wished if item in pool or not within_pool][:SIZE]
                by_item = {item: appeal[over.catalogue.number[item]] for item in pool + wanted}
                worth += sum(look * by_item[item] for look, item in zip(self._looks, wanted, strict=True))
                self._moments.append(_Moment(shopper, ts, pool, wanted, by_item))
        self.truth = worth / lists

    def draw(self, draw: int, epsilon: float) -> Slots:
        """One history: what was shown, and what was clicked; `draw` is the luck."""
        rng = np.random.default_rng(draw)
        logged_lists = LoggedLists(SIZE)
        for moment in self._moments:
            shown = explore(moment.pool, SIZE, epsilon, f"{draw} {moment.shopper} {moment.ts}")
            chances = self._looks * [moment.appeal[item] for item in shown.items]
            rewards = (rng.random(SIZE) < chances).astype(float).tolist()
            logged_lists.add(user_id(moment.shopper), shown.items, shown.propensities, rewards, moment.target)
        return logged_lists.slots()

    def live(self, draw: int, epsilon: float) -> tuple[Slots, float]:
        """The same with shoppers who react: what the logging policy showed, and the target's clicks a list.

        The target's lists are really shown, to the same shoppers at the same moment with the same luck.
        """
        logged_lists = LoggedLists(SIZE)
        earned = 0.0
        for moment in self._moments:
            ts = moment.ts + draw  # within the hour only the luck is another
            shown = explore(moment.pool, SIZE, epsilon, f"{draw} {moment.shopper} {moment.ts}")
            rewards = self._clicks(moment.shopper, shown.items, ts)
            logged_lists.add(user_id(moment.shopper), shown.items, shown.propensities, rewards, moment.target)
            earned += sum(self._clicks(moment.shopper, moment.target, ts))
        return logged_lists.slots(), earned / len(self._moments)

    def _clicks(self, shopper: int, items: list[str], ts: int) -> list[float]:
        """Which items a shopper clicks who is shown them."""
        clicked = {event.item_id for event in self._shop.react(shopper, items, ts).events if event.type == "click"}
        return [float(item in clicked) for item in items]


class _Moment(NamedTuple):
    """When somebody is shown a list: what it is drawn from, what the target would show, and how items appeal."""

    shopper: int
    ts: int
    pool: list[str]
    target: list[str]
    appeal: dict[str, float]
