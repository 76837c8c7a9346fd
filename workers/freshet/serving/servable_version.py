"""A model version that is ready to rank with, and one that is tried beside the live version."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from freshet.bundle.bundle import Bundle
from freshet.core.assignment import variant
from freshet.core.catalogue import Text
from freshet.core.item_space import ItemSpace
from freshet.core.recommendation import SideInputs
from freshet.core.rollout import MODEL, Rollout


@dataclass
class ServableVersion:
    """One version, ready to rank with, and the side inputs that its space reflects."""

    version: int
    bundle: Bundle
    space: ItemSpace
    item_index: dict[str, int]
    type_index: dict[str, int]
    side_inputs: SideInputs
    unembedded: deque[Text] = field(default_factory=deque)
    """Texts of cold items, in offset order, that have no place in the space yet. Superseded texts stand here too:
    two offsets then name the space, in a worker that has been running and in a worker that has just begun."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Items whose newest text could not be placed, with the offset of that text: they are in no list."""

    @property
    def length(self) -> int:
        """How many recent events the version reads."""
        return self.bundle.manifest.length


@dataclass(frozen=True)
class Candidate:
    """A version that is being tried beside the live one, ready to rank with."""

    step: Rollout
    ready: ServableVersion

    def has(self, user_id: str) -> bool:
        """Whether the user is of its share: by hash, so for good, and still so when the share grows."""
        shares = {"candidate": self.step.share, "live": 1.0 - self.step.share}
        return variant(user_id, f"{MODEL}/{self.step.version}", shares) == "candidate"


def place_items(space: ItemSpace, skipped: dict[str, int], vectors: Mapping[Text, NDArray[np.float32] | None]) -> None:
    """Give items the places of their texts, in the order of the texts; without a vector an item is skipped."""
    placed: dict[str, NDArray[np.float32]] = {}
    for text, vector in vectors.items():
        if vector is None:
            skipped[text.item_id] = text.offset
        else:
            skipped.pop(text.item_id, None)
            placed[text.item_id] = vector
    if placed:
        space.add_cold(list(placed), np.stack(list(placed.values())))
