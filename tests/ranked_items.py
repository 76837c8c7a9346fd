"""What `rank` lists, without the bounds of each list."""

from __future__ import annotations

from typing import Any

from freshet.core import ranking
from freshet.core.recommendation import Item


def rank(*arguments: Any, **named: Any) -> list[list[Item]]:
    """The items of each user's list; arguments are those of `core.ranking.rank`."""
    return [user.items for user in ranking.rank(*arguments, **named)]
