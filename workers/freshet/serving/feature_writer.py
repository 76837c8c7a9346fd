"""What a worker writes into the online feature store about the users of a micro-batch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshet.core.features import behaviour_row, list_row
from freshet.ports import Encoded, FeatureRow, FeatureStore, Unavailable
from freshet.process import metrics
from freshet.serving.servable_version import ServableVersion
from freshet.serving.touched_user import Touched

FEATURE_RETRIES = 8
"""Tries of a feature write before the worker gives up and ends; waits double from 0.1 s (25 s in all)."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Inference:
    """A chunk's encoder outputs, or where it was unavailable what stands in for them, with the version they are of."""

    live: ServableVersion
    history: NDArray[np.int32]
    encoded: Encoded
    degraded: bool
    done_ms: int


class FeatureWriter:
    """Writes behaviour, vectors and list features. `behaviours` are the types that are counted."""

    def __init__(self, store: FeatureStore, behaviours: Collection[str]) -> None:
        self._store = store
        self._behaviours = behaviours

    async def write(self, users: Sequence[Touched], inference: Inference | None = None) -> None:
        """Write the users' features, and their vectors where there is an answer of the encoder.

        Who withdrew consent has no features.
        """
        behaviour, embedding, lists = [], [], []
        for number, user in enumerate(users):
            user_id, state = user.user_id, user.state
            if state.consent:
                continue
            behaviour.append(FeatureRow(user_id, state.feature_ts, behaviour_row(state, self._behaviours)))
            found: tuple[Any, ...] = ()
            if inference is not None and not inference.degraded:
                candidates, scores, vector = (output[number] for output in inference.encoded)
                embedding.append(FeatureRow(user_id, state.feature_ts, (vector, inference.live.version)))
                found = candidates.tolist(), scores
            lists.append(FeatureRow(user_id, state.feature_ts, list_row(state, user.event_ts, *found)))
        gone = [user.user_id for user in users if user.state.consent]
        with metrics.STEP.labels("features").time():
            if behaviour:
                await _retried(lambda: self._store.write(behaviour, embedding, lists))
            if gone:
                await _retried(lambda: self._store.delete(gone))


async def _retried(write: Callable[[], Awaitable[None]]) -> None:
    """Try a feature write until the store answers; a store away for long ends the worker."""
    for attempt in range(FEATURE_RETRIES):
        try:
            await write()
        except Unavailable as error:
            metrics.FEATURE_RETRIES.inc()
            log.warning("feature store away", extra={"why": str(error), "attempt": attempt})
            await asyncio.sleep(0.1 * 2**attempt)
        else:
            return
    await write()
