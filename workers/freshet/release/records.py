"""The models topic, as a release needs it."""

from __future__ import annotations

from typing import Protocol

from freshet.core.rollout import Rollout, Versions


class Records(Protocol):
    """Reads and writes rollout records."""

    def read(self) -> Versions:
        """All that the topic holds now."""

    def write(self, step: Rollout) -> None:
        """Write a step; it is durable on return."""

    def wait(self) -> list[str]:
        """Wait, not for ever, until every worker does what the records say; returns those that do not."""
