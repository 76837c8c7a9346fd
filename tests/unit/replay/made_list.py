"""A list as a version makes it, for the tests of what a replay publishes and verifies."""

from freshet.core.recommendation import AsOf, Item, SideInputs
from freshet.serving.list_maker import MadeList

from tests.simulation.memory_replays import START

AS_OF = AsOf(0, 5, START)
MADE = MadeList("live", [Item("a", 2.0, "model"), Item("b", 1.0, "cold")], SideInputs(1, 2, 3))
