"""The order of a user's published lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def went_back(lists: Iterable[dict[str, Any]], number: Callable[[dict[str, Any]], int]) -> int:
    """How many lists have a lower number than one that their user had before."""
    highest: dict[str, int] = {}
    count = 0
    for published in lists:
        before = highest.get(published["user_id"], -1)
        count += number(published) < before
        highest[published["user_id"]] = max(before, number(published))
    return count
