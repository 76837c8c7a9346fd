"""Lists as of now: from a user's features, the side inputs and, where it must be asked, the encoder.

The worker's own `ListMaker` makes them. What it needs of the worker's state stands in the features
(`core.features.state_of`), and so do the encoder's outputs: while they are of the version that makes the user's list,
nothing is encoded.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.events import BadEvent, decode_event
from freshet.core.features import featurise, state_of
from freshet.core.neighbours import nearest
from freshet.core.recommendation import AsOf, recommendation_id
from freshet.core.state import UserState, empty_state, fold, joined
from freshet.http.cursor import MAX_SHOWN, decode_cursor, encode_cursor, fingerprint
from freshet.http.messages import (
    Explanation,
    ExplanationQuery,
    ListQuery,
    ServedList,
    Session,
    Similar,
    SimilarItems,
    SimilarQuery,
)
from freshet.http.problems import ProblemError
from freshet.ports import Encoded, Encoder, FeatureStore, Unavailable
from freshet.process import metrics
from freshet.serving.explanation import explain
from freshet.serving.list_maker import ListMaker, MadeList, fallback_encoded
from freshet.serving.live_versions import LiveVersions
from freshet.serving.servable_version import ServableVersion
from freshet.settings import Settings

NOWHERE = AsOf(-1, -1, 0)
"""The position that a list's id is made with where the list knows of no event on the topic."""

log = logging.getLogger(__name__)


class CurrentLists:
    """Makes lists for whoever asks. Call it from the event loop that the model lives in."""

    def __init__(
        self,
        settings: Settings,
        model: LiveVersions,
        encoder: Encoder,
        features: FeatureStore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._model = model
        self._encoder = encoder
        self._features = features
        self._clock = clock
        self._makers = functools.lru_cache(maxsize=64)(self._maker)

    async def of_user(self, user_id: str, query: ListQuery) -> ServedList:
        """The user's list as of now. Raises `ProblemError` for a cursor that does not fit."""
        try:
            features = await self._features.read(user_id)
        except Unavailable as error:
            log.warning("features away", extra={"why": str(error)})
            return await self._made(user_id, None, query, away=True)
        if features["recent_items"] is None:
            return await self._made(user_id, None, query)
        if query.events_before is None:
            return await self._made(user_id, features, query)
        return await self._made(user_id, _before(features, query.events_before), query)

    async def of_session(self, session: Session) -> ServedList:
        """The list of somebody who is only these events. Raises `ProblemError` for one that is no event."""
        state = empty_state(-1)
        now = self._now_ms()
        for number, given in enumerate(session.events):
            fields = {"event_id": str(number), "user_id": session.session_id, "ts": now, **given}
            key = session.session_id.encode(errors="surrogatepass")
            latest = self._settings.latest_ts(now)
            event = decode_event(msgspec.json.encode(fields), key, self._settings.behaviours, latest_ts=latest)
            if isinstance(event, BadEvent):
                raise ProblemError(400, f"events[{number}]: {event.reason.words}: {event.detail}")
            fold(state, event, -1, number, self._settings.history)
        query = ListQuery(session.limit, session.exclude, session.cursor)
        return await self._made(session.session_id, None, query, state)

    def similar(self, item_id: str, query: SimilarQuery) -> SimilarItems:
        """The available items nearest to an item. Raises `ProblemError` for an item without a place."""
        live = self.live
        row = live.space.index.get(item_id)
        if row is None or item_id in live.skipped:
            raise ProblemError(404, f"version {live.version} has no place for item {item_id!r}: see the items topic")
        found = nearest(live.space, row, query.limit, query.exclude)
        items = [Similar(live.space.ids[near], round(cosine, 5)) for near, cosine in found]
        return SimilarItems(item_id, items, live.version)

    async def explanation(self, user_id: str, query: ExplanationQuery) -> Explanation:
        """What the user's events do for items of their list. Raises `ProblemError`, `Unavailable`."""
        features = await self._features.read(user_id)
        state = state_of(features) if features["recent_items"] else None
        if state is None:
            raise ProblemError(404, f"no events are known of user {user_id!r}: their list is the popular items")
        [(live, _)] = self._model.parts([user_id], str)
        if query.item_id is not None:
            wanted = [query.item_id]
        else:
            made = await self._made(user_id, features, ListQuery())
            wanted = [item.item_id for item in made.items]
        if strange := [item_id for item_id in wanted if item_id not in live.space.index]:
            raise ProblemError(404, f"version {live.version} has no place for item {strange[0]!r}")
        return Explanation(user_id, live.version, await explain(self._encoder, live, state, wanted, query.limit))

    @property
    def live(self) -> ServableVersion:
        """The live version."""
        return self._model.current

    async def _made(
        self,
        user_id: str,
        features: Mapping[str, Any] | None,
        query: ListQuery,
        state: UserState | None = None,
        *,
        away: bool = False,
    ) -> ServedList:
        """The list of features, or of a state, or where there is neither the popular one."""
        [(live, _)] = self._model.parts([user_id], str)
        shown = decode_cursor(query.cursor, live.version)
        size = self._settings.list_size if query.limit is None else query.limit
        maker = self._makers(size + len(shown), bool(shown))
        if features is not None:
            state = state_of(features)
        known = state is not None and state.length > 0
        if query.exclude:
            state = state or empty_state(-1)
            state.seen_log += joined(query.exclude)[1:]
        if known:
            assert state is not None
            made, degraded = await self._personal(live, maker, user_id, state, features)
        else:
            made, degraded = maker.make_popular(live, user_id, state if query.exclude else None), away
        items = [item for item in made.items if fingerprint(item.item_id) not in shown][:size]
        as_of = AsOf(*features["as_of"]) if features is not None and features["as_of"] else None
        kind = "degraded" if degraded else "personalised" if known else "plain"
        metrics.READ_LISTS.labels(kind).inc()
        return ServedList(
            recommendation_id(user_id, as_of or NOWHERE, live.version, degraded),
            user_id,
            items,
            live.version,
            as_of,
            made.side_inputs,
            self._now_ms(),
            degraded,
            known,
            made.variant,
            _next(live.version, shown, [item.item_id for item in items], size),
        )

    async def _personal(
        self,
        live: ServableVersion,
        maker: ListMaker,
        user_id: str,
        state: UserState,
        features: Mapping[str, Any] | None,
    ) -> tuple[MadeList, bool]:
        """The list of a user with a profile, and whether the encoder was away."""
        tensors = featurise([state], live.item_index, live.type_index, live.length)
        history = tensors["item_index"]
        encoded, degraded = None if features is None else _encoded(features, live), False
        if encoded is None:
            try:
                encoded = await self._encoder.encode(tensors, live.version)
            except Unavailable as error:
                log.warning("degraded", extra={"why": str(error)})
                degraded, encoded = True, await asyncio.to_thread(fallback_encoded, live, history)
        [made] = maker.make(live, [user_id], [state], history, encoded, degraded=degraded)
        return made, degraded

    def _maker(self, size: int, later_page: bool) -> ListMaker:
        """Makes lists of so many items; only the first page explores, for propensities are of a whole list."""
        settings = msgspec.structs.replace(self._settings, list_size=size)
        if later_page:
            arms = {
                name: msgspec.structs.replace(arm, exploration=0.0) for name, arm in self._settings.variants.items()
            }
            settings = msgspec.structs.replace(settings, exploration=0.0, variants=arms)
        return ListMaker(settings)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _encoded(features: Mapping[str, Any], live: ServableVersion) -> Encoded | None:
    """The encoder's outputs that the store holds; None where there are none of this version."""
    if features["model_version"] != live.version or not features["candidates"]:
        return None
    parts: Sequence[tuple[str, type]] = (
        ("candidates", np.int32),
        ("candidate_scores", np.float32),
        ("embedding", np.float32),
    )
    outputs: list[NDArray[Any]] = [np.array([features[name]], kind) for name, kind in parts]
    return Encoded(*outputs)


def _before(features: Mapping[str, Any], moment: int) -> dict[str, Any]:
    """The features without the events from a moment (ms) on; nothing is encoded of what is left."""
    kept = [number for number, ts in enumerate(features["recent_times"]) if ts < moment]
    lists = {name: [features[name][number] for number in kept] for name in _RECENT}
    return {**features, **lists, "candidates": None, "as_of": None}


_RECENT = ("recent_items", "recent_types", "recent_times")


def _next(version: int, shown: Collection[int], items: Sequence[str], size: int) -> str | None:
    """The cursor behind a page; None where the page was the last."""
    if len(items) < size or len(shown) + len(items) > MAX_SHOWN:
        return None
    return encode_cursor(version, {*shown, *map(fingerprint, items)})
