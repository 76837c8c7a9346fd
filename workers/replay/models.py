"""One model version under replay: its lists, and how they are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.core.evaluation.prequential import Judgement, Prequential
from workers.core.ranking import Prior
from workers.core.state import Consent, UserState, decode_state, encode_state
from workers.lists import ListMaker, MadeList
from workers.live_model import Live, LiveModel
from workers.ports import Encoded
from workers.replay.actions import Act, Action, Moment
from workers.replay.clock import Counts, SlotRows

NEW_USER_EVENTS = 5
"""A user with fewer events before is a new one."""


class View(NamedTuple):
    """Which list a user is taken to look at when they act.

    `period` None: the one published after their last moment. 0: one made that
    very minute of all that was known before. Seconds: the one that a job running
    every so often made at the last boundary.
    """

    name: str
    period: int | None


PUBLISHED = View("as published", None)


class Shown(NamedTuple):
    """The list a user looks at; `made` is the event time (ms) it is of."""

    items: list[str]
    scores: list[float]
    made: int


class _Latest(NamedTuple):
    """A user as of their last moment, encoded: what later views rank."""

    state: UserState
    history: NDArray[np.int32]
    topk_index: NDArray[np.int32]
    topk_score: NDArray[np.float32]
    embedding: NDArray[np.float32]


_Ticket = dict[View, int | MadeList | None]
"""Per view a list: the number of its job, one that is ready, or None for an erased user's."""


class _Jobs:
    """Lists to be made together."""

    def __init__(self) -> None:
        self.users: list[str] = []
        self.latest: list[_Latest] = []
        self.priors: list[Prior] = []

    def add(self, user_id: str, latest: _Latest, prior: Prior) -> int:
        self.users.append(user_id)
        self.latest.append(latest)
        self.priors.append(prior)
        return len(self.users) - 1

    def make(self, maker: ListMaker, live: Live) -> list[MadeList]:
        if not self.users:
            return []
        states, history, index, score, embedding = zip(*self.latest, strict=True)
        encoded = Encoded(np.stack(index), np.stack(score), np.stack(embedding))
        return maker.make(live, self.users, states, np.stack(history), encoded, self.priors)


@dataclass
class ReplayedModel:
    """A version with its lists.

    `side_inputs` has been started with the version, and nothing but items is applied to it.
    `judges` has a judge for each view that is judged, and may be empty;
    `periods` are the clock's.
    """

    name: str
    side_inputs: LiveModel
    maker: ListMaker
    judges: Mapping[View, Prequential] = field(default_factory=dict)
    periods: Sequence[int] = ()

    def __post_init__(self) -> None:
        assert self.side_inputs.live is not None
        self.live = self.side_inputs.live
        self._rows = SlotRows(self.live.space)
        self._remembers = any(view.period is not None for view in self.judges)
        self._latest: dict[str, _Latest] = {}
        self._shown: dict[View, dict[str, Shown]] = {view: {} for view in {PUBLISHED, *self.judges}}

    def process(
        self, actions: Sequence[Action], history: NDArray[np.int32], encoded: Encoded | None
    ) -> tuple[list[tuple[Moment, MadeList | None]], list[list[str]]]:
        """Make the lists of the moments, in order, and judge the acts between them.

        `history` and `encoded` hold one row per moment of `encodable`; `encoded` is
        None where there is none. Returns the published lists (None for an erased user),
        and for each act the items of the first judged view's list.
        """
        jobs = _Jobs()
        rows = iter(zip(history, *encoded, strict=True)) if encoded is not None else iter(())
        tickets = [
            self._moment(action, rows, jobs) if isinstance(action, Moment) else self._act(action, jobs)
            for action in actions
        ]
        made = jobs.make(self.maker, self.live)
        published: list[tuple[Moment, MadeList | None]] = []
        looked_at: list[list[str]] = []
        for action, ticket in zip(actions, tickets, strict=True):
            lists = {view: made[one] if isinstance(one, int) else one for view, one in ticket.items()}
            if isinstance(action, Moment):
                published.append((action, self._publish(action, lists[PUBLISHED])))
            else:
                looked_at.append(self._judge(action, lists))
        return published, looked_at

    def _moment(self, moment: Moment, rows: Iterator[Any], jobs: _Jobs) -> _Ticket:
        state, user = moment.state, moment.user_id
        if state.consent is Consent.ERASED:
            self._latest.pop(user, None)
            return {PUBLISHED: None}
        if not encodable(state):
            self._latest.pop(user, None)
            return {PUBLISHED: self.maker.make_popular(self.live, user, None, self._prior(moment.counts))}
        latest = _Latest(state, *next(rows))
        if self._remembers:
            self._latest[user] = latest
        return {PUBLISHED: jobs.add(user, latest, self._prior(moment.counts))}

    def _act(self, act: Act, jobs: _Jobs) -> _Ticket:
        """Lists that the act is judged by and that are not there yet."""
        user = act.event.user_id
        ticket: _Ticket = {}
        for view in self.judges:
            if view.period is None:
                if user not in self._shown[view]:
                    ticket[view] = self._popular(user, act.counts)
                continue
            counts, made = act.counts, act.event.ts
            if view.period:
                place = self.periods.index(view.period)
                counts, made = act.at_boundary[place], act.boundaries[place]
                known = self._shown[view].get(user)
                if known is not None and known.made == made:
                    continue
            self._shown[view][user] = Shown([], [], made)
            latest = self._latest.get(user)
            ticket[view] = (
                self._popular(user, counts) if latest is None else jobs.add(user, latest, self._prior(counts))
            )
        return ticket

    def _popular(self, user_id: str, counts: Counts) -> MadeList:
        return self.maker.make_popular(self.live, user_id, None, self._prior(counts))

    def _prior(self, counts: Counts) -> Prior:
        return counts.prior(self.live.space, self._rows)

    def _publish(self, moment: Moment, made: MadeList | None) -> MadeList | None:
        if made is None:
            self._shown[PUBLISHED].pop(moment.user_id, None)
        elif self.judges:
            self._show(PUBLISHED, moment.user_id, made, moment.event.ts)
        return made

    def _show(self, view: View, user_id: str, made: MadeList, ts: int) -> None:
        items = [item.item_id for item in made.items]
        self._shown[view][user_id] = Shown(items, [item.score for item in made.items], ts)
        judge = self.judges.get(view)
        if judge is not None:
            judge.shown(user_id, items)

    def _judge(self, act: Act, lists: Mapping[View, MadeList | None]) -> list[str]:
        event = act.event
        trained = self.live.space.is_trained(event.item_id or "")
        segments = (
            "new user" if act.history < NEW_USER_EVENTS else "known user",
            "trained item" if trained else "cold item",
        )
        for view, judge in self.judges.items():
            made = lists.get(view)
            stood = self._shown[view].get(event.user_id)
            if made is not None and (stood is None or view.period is not None):
                self._show(view, event.user_id, made, stood.made if stood else event.ts)
            shown = self._shown[view][event.user_id]
            judge.judge(
                Judgement(
                    event.user_id,
                    event.ts,
                    event.type,
                    event.item_id or "",
                    shown.items,
                    shown.scores,
                    shown.made,
                    segments,
                )
            )
            judge.interacted(event.item_id or "")
        return self._shown[next(iter(self.judges))][event.user_id].items

    def dump(self) -> dict[str, Any]:
        """Everything that a replay that goes on needs, as plain values."""
        return {
            "shown": [list(self._shown[view].items()) for view in self._shown],
            "latest": [
                (user, encode_state(latest.state), *(part.tobytes() for part in latest[1:]))
                for user, latest in self._latest.items()
            ],
            "judges": [judge.dump() for judge in self.judges.values()],
        }

    def restore(self, dumped: dict[str, Any]) -> None:
        """Take over what `dump` gave; the views are the same."""
        for view, shown in zip(self._shown, dumped["shown"], strict=True):
            self._shown[view] = {user: Shown(*one) for user, one in shown}
        for user, raw, history, index, score, embedding in dumped["latest"]:
            self._latest[user] = _Latest(
                decode_state(raw),
                np.frombuffer(history, np.int32),
                np.frombuffer(index, np.int32),
                np.frombuffer(score, np.float32),
                np.frombuffer(embedding, np.float32),
            )
        for judge, raw in zip(self.judges.values(), dumped["judges"], strict=True):
            judge.restore(raw)


def encodable(state: UserState) -> bool:
    """Whether the user has a profile to encode."""
    return not state.consent and state.length > 0
