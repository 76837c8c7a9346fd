"""The options of a replay job."""

from __future__ import annotations

import pytest
from freshet.replay.job import OutputTaken, refuse_live
from freshet.settings import Settings


@pytest.mark.parametrize("topic", ["events", "items", "recommendations", "events.dlq", "models", "popularity"])
def test_live_topics_are_refused(topic: str) -> None:
    """A live topic and a topic of the live group are refused as output, and any other name is free."""
    with pytest.raises(OutputTaken, match="is the live"):
        refuse_live(Settings(), topic)
    with pytest.raises(OutputTaken, match="belongs to the live group"):
        refuse_live(Settings(), "freshet-user_state-changelog")
    refuse_live(Settings(), f"{topic}.again")
