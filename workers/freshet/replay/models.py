"""One model version under replay: its lists, and how they are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.evaluation.prequential import Judgement, Prequential, SavedJudge
from freshet.core.item_space import POPULAR_CANDIDATES, Prior, SlotRows
from freshet.core.state import Consent, UserState, decode_state, encode_state
from freshet.ports import Encoded
from freshet.replay.actions import Act, Action, Moment
from freshet.replay.clock import AtBoundary, Counts
from freshet.serving.list_maker import ListMaker, MadeList
from freshet.serving.live_versions import LiveVersions
from freshet.serving.servable_version import ServableVersion

NEW_USER_EVENTS = 5
"""A user with fewer events before is a new one."""


class Policy(Enum):
    """What ranks a list: the model with its prior, or popularity alone without what the user has seen."""

    MODEL = 0
    RECENT = 1
    ALL_TIME = 2


class ListSchedule(NamedTuple):
    """Which list a user is taken to look at when the user acts.

    If `period` is None, it is the list published after the user's last moment. If `period` is 0, the list is made in
    that very minute from everything known before. Otherwise a job that runs every `period` seconds made the list at
    the last boundary, from the profile, the popularity and the items of that time. An item that has become
    unavailable since is in no list.
    """

    name: str
    period: int | None
    policy: Policy = Policy.MODEL


PUBLISHED = ListSchedule("as published", None)
BASELINES = (
    ListSchedule("recent popularity", 0, Policy.RECENT),
    ListSchedule("all-time popularity", 0, Policy.ALL_TIME),
)
"""What any model must beat, refreshed at every event."""


class ShownList(NamedTuple):
    """The list a user looks at."""

    items: list[str]
    scores: list[float]


class _Latest(NamedTuple):
    """A user as of their last moment, encoded. Later schedules rank this."""

    state: UserState
    history: NDArray[np.int32]
    topk_index: NDArray[np.int32]
    topk_score: NDArray[np.float32]
    embedding: NDArray[np.float32]


class SavedLatest(msgspec.Struct, frozen=True, array_like=True):
    """A user as of their last moment in a checkpoint: the encoded state, int32 and float32 vectors."""

    state: bytes
    history: bytes
    topk_index: bytes
    topk_score: bytes
    embedding: bytes


class SavedProfile(msgspec.Struct, frozen=True, array_like=True):
    """A user now and at the last boundary of a period, in a checkpoint."""

    now: SavedLatest | None
    then: SavedLatest | None
    boundary: int


class SavedModel(msgspec.Struct, frozen=True):
    """A `ReplayedModel` in a checkpoint: lists and boundaries by user for each schedule, profiles, judges."""

    shown: list[dict[str, ShownList]]
    asked: list[dict[str, int]]
    profiles: dict[str, list[SavedProfile]]
    judges: list[SavedJudge]


_Ticket = dict[ListSchedule, int | MadeList | None]
"""Per schedule a list: the number of its job, one that is ready, or None for an erased user's."""


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

    def make(self, maker: ListMaker, live: ServableVersion) -> list[MadeList]:
        if not self.users:
            return []
        states, history, index, score, embedding = zip(*self.latest, strict=True)
        encoded = Encoded(np.stack(index), np.stack(score), np.stack(embedding))
        return maker.make(live, self.users, states, np.stack(history), encoded, self.priors)


@dataclass
class ReplayedModel:
    """A version with its lists.

    `side_inputs` has been started with the version, and only items are applied to it. `judges` has a judge for each
    schedule that is judged, and may be empty. `periods` are those of the clock.
    """

    name: str
    side_inputs: LiveVersions
    maker: ListMaker
    judges: Mapping[ListSchedule, Prequential] = field(default_factory=dict)
    periods: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.live = self.side_inputs.current
        self._rows = SlotRows(self.live.space)
        self._remembers = any(schedule.period is not None for schedule in self.judges)
        self._profiles: dict[str, list[AtBoundary[_Latest | None]]] = {}
        self._sizes = [AtBoundary(self.live.space.size, self.live.space.size) for _ in self.periods]
        self._shown: dict[ListSchedule, dict[str, ShownList]] = {
            schedule: {} for schedule in dict.fromkeys((PUBLISHED, *self.judges))
        }
        self._asked: dict[ListSchedule, dict[str, int]] = {schedule: {} for schedule in self.judges if schedule.period}

    def grown(self, ts: int) -> None:
        """Items came to the space in the minute that began at `ts` (ms)."""
        for period, size in zip(self.periods, self._sizes, strict=True):
            size.change(self.live.space.size, ts - ts % (period * 1000))

    def process(
        self, actions: Sequence[Action], history: NDArray[np.int32], encoded: Encoded | None
    ) -> tuple[list[tuple[Moment, MadeList | None]], list[list[str]]]:
        """Make the lists of the moments, in order, and judge the acts between them.

        `history` and `encoded` hold one row per moment of `encodable`. If there is no such moment, `encoded` is None.
        Returns the published lists (None for an erased user), and for each judged act the items of the first judged
        schedule's list.
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
            lists = {schedule: made[ready] if isinstance(ready, int) else ready for schedule, ready in ticket.items()}
            if isinstance(action, Moment):
                published.append((action, self._publish(action, lists[PUBLISHED])))
            elif action.judged:
                looked_at.append(self._judge(action, lists))
            for judge in self.judges.values() if isinstance(action, Act) else ():
                judge.interacted(action.event.item_id or "")
        return published, looked_at

    def _moment(self, moment: Moment, rows: Iterator[Any], jobs: _Jobs) -> _Ticket:
        state, user = moment.state, moment.user_id
        if not encodable(state):
            self._forget(moment)
            if state.consent is Consent.ERASED:
                return {PUBLISHED: None}
            return {PUBLISHED: self._popular(user, None, self._prior(moment.counts))}
        latest = _Latest(state, *next(rows))
        if self._remembers:
            for at, boundary in zip(self._profile(user), (0, *moment.boundaries), strict=True):
                at.change(latest, boundary)
        return {PUBLISHED: jobs.add(user, latest, self._prior(moment.counts))}

    def _profile(self, user_id: str) -> list[AtBoundary[_Latest | None]]:
        """The user as of their last moment, and as of the last boundary of each period."""
        known = self._profiles.get(user_id)
        if known is None:
            known = self._profiles[user_id] = [AtBoundary(None, None) for _ in (0, *self.periods)]
        return known

    def _forget(self, moment: Moment) -> None:
        """Forget a user who has no profile now, at past boundaries too."""
        self._profiles.pop(moment.user_id, None)
        for asked in self._asked.values():
            asked.pop(moment.user_id, None)

    def _act(self, act: Act, jobs: _Jobs) -> _Ticket:
        """Lists that the act is judged by and that are not there yet."""
        ticket: _Ticket = {}
        if not act.judged:
            return ticket
        user = act.event.user_id
        profile = self._profile(user) if self._remembers else []
        for schedule in self.judges:
            if schedule.period is None:
                if user not in self._shown[schedule]:
                    ticket[schedule] = self._popular(user, None, self._prior(act.counts))
                continue
            latest, counts, size = profile[0].now, act.counts, None
            if schedule.period:
                number = self.periods.index(schedule.period)
                boundary = act.boundaries[number]
                if self._asked[schedule].get(user) == boundary:
                    continue
                self._asked[schedule][user] = boundary
                latest, size = profile[number + 1].at(boundary), self._sizes[number].at(boundary)
                counts = act.at_boundary[number]
            if schedule.policy is not Policy.MODEL:
                counts = act.all_time if schedule.policy is Policy.ALL_TIME else counts
                ticket[schedule] = self._popular(user, latest, self._prior(counts, size, None))
            elif latest is None:
                ticket[schedule] = self._popular(user, None, self._prior(counts, size))
            else:
                ticket[schedule] = jobs.add(user, latest, self._prior(counts, size))
        return ticket

    def _popular(self, user_id: str, latest: _Latest | None, prior: Prior) -> MadeList:
        return self.maker.make_popular(self.live, user_id, None if latest is None else latest.state, prior)

    def _prior(self, counts: Counts, size: int | None = None, candidates: int | None = POPULAR_CANDIDATES) -> Prior:
        return counts.prior(self.live.space, self._rows, size, candidates)

    def _publish(self, moment: Moment, made: MadeList | None) -> MadeList | None:
        if not encodable(moment.state):
            for shown in self._shown.values():
                shown.pop(moment.user_id, None)
        if made is not None and self.judges:
            segment = _user_segment(moment.state.folded)
            self._show(PUBLISHED, moment.user_id, made, moment.event.ts, segment, judged=moment.judged)
        return made

    def _show(
        self, schedule: ListSchedule, user_id: str, made: MadeList, ts: int, segment: str, *, judged: bool = True
    ) -> None:
        items = [item.item_id for item in made.items]
        self._shown[schedule][user_id] = ShownList(items, [item.score for item in made.items])
        judge = self.judges.get(schedule)
        if judge is not None and judged:
            judge.shown(user_id, ts, items, segment)

    def _judge(self, act: Act, lists: Mapping[ListSchedule, MadeList | None]) -> list[str]:
        event, item = act.event, act.event.item_id or ""
        segment = _user_segment(act.history)
        segments = segment, "trained item" if self.live.space.is_trained(item) else "cold item"
        for schedule, judge in self.judges.items():
            made = lists.get(schedule)
            stood = self._shown[schedule].get(event.user_id)
            if made is not None and (stood is None or schedule.period is not None):
                self._show(schedule, event.user_id, made, event.ts, segment)
            shown = self._shown[schedule][event.user_id]
            judge.judge(Judgement(event.user_id, event.ts, event.type, item, shown.items, shown.scores, segments))
        return self._shown[next(iter(self.judges))][event.user_id].items

    def saved(self) -> SavedModel:
        """Everything that a replay that goes on needs, for a checkpoint."""
        return SavedModel(
            shown=list(self._shown.values()),
            asked=list(self._asked.values()),
            profiles={
                user: [SavedProfile(_saved(at.now), _saved(at.then), at.boundary) for at in profile]
                for user, profile in self._profiles.items()
            },
            judges=[judge.saved() for judge in self.judges.values()],
        )

    def restore(self, saved: SavedModel) -> None:
        """Take over what `saved` gave; the schedules are the same."""
        self._shown = dict(zip(self._shown, saved.shown, strict=True))
        self._asked = dict(zip(self._asked, saved.asked, strict=True))
        self._profiles = {
            user: [AtBoundary(_restored(at.now), _restored(at.then), at.boundary) for at in profile]
            for user, profile in saved.profiles.items()
        }
        for judge, of_judge in zip(self.judges.values(), saved.judges, strict=True):
            judge.restore(of_judge)


def _user_segment(history: int) -> str:
    return "new user" if history < NEW_USER_EVENTS else "known user"


def _saved(latest: _Latest | None) -> SavedLatest | None:
    return latest and SavedLatest(encode_state(latest.state), *(part.tobytes() for part in latest[1:]))


def _restored(saved: SavedLatest | None) -> _Latest | None:
    if saved is None:
        return None
    return _Latest(
        decode_state(saved.state),
        np.frombuffer(saved.history, np.int32),
        np.frombuffer(saved.topk_index, np.int32),
        np.frombuffer(saved.topk_score, np.float32),
        np.frombuffer(saved.embedding, np.float32),
    )


def encodable(state: UserState) -> bool:
    """Whether the user has a profile to encode."""
    return not state.consent and state.length > 0
