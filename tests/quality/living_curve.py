"""What living lists are worth: HR@10 of the list that stands when its user acts, by lists made again per event.

    python -m tests.quality.living_curve EVENTS.jsonl --items ITEMS.jsonl --models DIR --config FILE.toml

A log is walked in event time, with the worker's own fold, encoder, `ListMaker`, `WorldWatch` and `StandingLists`. What
moves is seen once a minute. A list is made at each moment of its user; between them lists are made again, as many per
event as a budget says, in the order in which a worker makes them again. Acts are judged as `freshet replay` judges
them: a user's first touch of an item, by the list that stood, after the burn-in. The points beside the curve are of
the same walk: lists as published, and lists made when they are read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from freshet.adapters.onnx import OnnxEncoder
from freshet.cli.replay import _items
from freshet.core.events import Event
from freshet.core.features import featurise
from freshet.core.popularity import Popularity
from freshet.core.snapshots import Snapshots
from freshet.core.standing_lists import ItemNumbers, StandingList, StandingLists
from freshet.core.state import Outcome, UserState, decode_state, empty_state, encode_state, fold
from freshet.logs.source import open_log
from freshet.ports import Encoded, Record
from freshet.replay.merge import DecodedRecord, steps
from freshet.replay.models import encodable
from freshet.serving.list_maker import ListMaker, MadeList
from freshet.serving.live_versions import LiveVersions
from freshet.serving.living_lists import OLD_SECONDS, POPULARITY_REST_SECONDS, REST_SECONDS
from freshet.serving.world_watch import WorldWatch
from freshet.settings import Settings, load_settings

from deploy.local.parts import TEXT_ENCODER

BUDGETS = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
CUTOFF = 10
WARM_UP = 0.05
"""Share of the log before the burn-in's end in which lists live already."""


@dataclass
class Known:
    """A user as of the last moment, encoded; rows of one."""

    state: UserState
    history: np.ndarray
    encoded: Encoded


@dataclass
class Figures:
    """What one budget gave."""

    hits: int = 0
    acts: int = 0
    again: int = 0
    events: int = 0
    read_hits: int = 0
    changed: int = 0


@dataclass
class Walk:
    """One walk over a log with a budget of lists made again per event."""

    settings: Settings
    model: LiveVersions
    encoder: OnnxEncoder
    catalogue: deque[Record]
    origin_s: float
    per_event: float
    with_read: bool
    is_living: bool = False
    is_judged: bool = False
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        self.maker = ListMaker(self.settings, reasons=False)
        self.watch = WorldWatch(self.model, self.maker)
        self.numbers = ItemNumbers()
        self.record = StandingLists(self.settings.list_size, self.origin_s)
        self.counts = Snapshots(self.settings.popularity_half_life)
        self.opened: dict[str, None] = {}
        self.now_ms = self.ticks = 0
        self.known: dict[str, Known] = {}
        self.states: dict[str, UserState] = {}
        self.shown: dict[str, list[str]] = {}
        self.credit = 0.0

    def make(self, users: Sequence[str]) -> list[MadeList]:
        """The lists of encoded users as of now."""
        known = [self.known[user] for user in users]
        encoded = Encoded(
            *(np.concatenate(parts) for parts in zip(*(one_user.encoded for one_user in known), strict=True))
        )
        history = np.concatenate([one_user.history for one_user in known])
        return self.maker.make(self.model.current, users, [one_user.state for one_user in known], history, encoded)

    async def moments(self, users: Sequence[str]) -> None:
        """Encode users who acted, and give them their lists."""
        live = self.model.current
        profiled = [user for user in users if encodable(self.states[user])]
        for user in set(users) - set(profiled):
            self.known.pop(user, None)
            self.shown.pop(user, None)
        if not profiled:
            return
        states = [decode_state(encode_state(self.states[user])) for user in profiled]
        tensors = featurise(states, live.item_index, live.type_index, live.length)
        encoded = await self.encoder.encode(tensors, live.version)
        for row, user in enumerate(profiled):
            self.known[user] = Known(states[row], tensors["item_index"][row : row + 1], encoded.take([row]))
        self.enter(profiled, self.make(profiled), is_remade=False)

    def enter(self, users: Sequence[str], lists: Sequence[MadeList], *, is_remade: bool) -> None:
        """Let lists stand."""
        entries = []
        for user, made in zip(users, lists, strict=True):
            items = [item.item_id for item in made.items]
            self.figures.changed += self.is_judged and is_remade and items != self.shown.get(user)
            self.shown[user] = items
            acted_s = self.known[user].state.newest_ts / 1000
            version = self.model.current.version
            facts = self.numbers.of(items), version, made.margin, made.needed_prior, int(acted_s * 1000), acted_s
            entries.append(StandingList(user, *facts))
        self.record.enter(entries, self.now_ms / 1000, is_remade=is_remade)

    async def come_to(self, ts: int) -> None:
        """Close the moments before a time (ms), and let the world move up to its minute."""
        if ts <= self.now_ms:
            return
        await self.moments(list(self.opened))
        self.opened.clear()
        self.now_ms = ts
        due = []
        while self.catalogue and self.catalogue[0].timestamp <= ts:
            due.append(self.catalogue.popleft())
        if due:
            self.model.apply_items(due)
            await self.model.settle()
        if self.counts.advance(ts) or due:
            self.ticks += 1
            live = self.model.current
            live.space.set_popularity(Popularity(self.counts.items, self.counts.counts()))
            live.side_inputs = msgspec.structs.replace(live.side_inputs, popularity=self.ticks)
            if self.is_living:
                self.minute(ts / 1000)

    def take(self, step: DecodedRecord, *, makes_list: bool) -> None:
        """Fold an event, and have it judge the list that stands."""
        event = step.event
        assert isinstance(event, Event)
        user = self.states.setdefault(event.user_id, empty_state(step.partition))
        outcome = fold(user, event, step.partition, step.record.offset, self.settings.history)
        if outcome not in (Outcome.APPLIED, Outcome.FIRST_TOUCH):
            return
        if makes_list:
            self.opened[event.user_id] = None
        if outcome is Outcome.FIRST_TOUCH:
            if self.is_judged:
                self.judge(event)
            if self.settings.behaviours.get(event.type, 0.0) > 0:
                self.counts.add(event.item_id or "")
        self.figures.events += self.is_judged
        self.credit += self.per_event * self.is_living

    def minute(self, now_s: float) -> None:
        """See what moved, and make lists again as far as the budget goes."""
        record = self.record
        moved = self.watch.look(now_s)
        if numbers := self.numbers.known(moved.items):
            record.mark_items(numbers, now_s, REST_SECONDS)
        if moved.rises is not None:
            record.mark_rises(moved.rises, now_s, POPULARITY_REST_SECONDS)
        record.mark_older(min(now_s - OLD_SECONDS, self.watch.changed_s), now_s)
        self.credit = min(self.credit, self.per_event * 200)
        while self.credit >= 1:
            due = record.due(now_s, now_s - self.settings.living_horizon)
            if not len(due):
                return
            best = due[np.argsort(-record.gains(due, now_s), kind="stable")][: min(256, int(self.credit))]
            users = [record.take(position) for position in best.tolist()]
            self.enter(users, self.make(users), is_remade=True)
            self.credit -= len(users)
            self.figures.again += len(users) * self.is_judged

    def judge(self, event: Event) -> None:
        """Compare the list that stands with what its user touches."""
        user, item = event.user_id, event.item_id
        stands = self.shown.get(user)
        if stands is None:
            stands = [shown.item_id for shown in self.maker.make_popular(self.model.current, user, None).items]
            self.shown[user] = stands
        self.figures.acts += 1
        self.figures.hits += item in stands[:CUTOFF]
        if self.with_read:
            if user in self.known:
                [made] = self.make([user])
            else:
                made = self.maker.make_popular(self.model.current, user, None)
            self.figures.read_hits += item in [shown.item_id for shown in made.items[:CUTOFF]]


async def walk(arguments: argparse.Namespace, settings: Settings, per_event: float, *, with_read: bool) -> Figures:
    """Walk over the log once."""
    encoder = OnnxEncoder(Path(settings.model_repository), TEXT_ENCODER)
    model = LiveVersions(encoder, Path(settings.model_repository), text_fields=settings.text_fields)
    await model.start(arguments.version)
    catalogue = deque(sorted(_items(arguments.items, settings), key=lambda item: item.timestamp))
    decoded = [step for step in steps(open_log(arguments.events, settings), {}, settings) if is_event(step)]
    burn_in, living_from = (int(share * len(decoded)) for share in (arguments.burn_in, arguments.burn_in - WARM_UP))
    last = {step.event.user_id: number for number, step in enumerate(decoded[:living_from])}
    walked = Walk(settings, model, encoder, catalogue, decoded[0].event.ts / 1000, per_event, with_read)
    for number, step in enumerate(decoded):
        await walked.come_to(step.event.ts)
        walked.is_living = number >= living_from
        walked.is_judged = number >= burn_in
        walked.take(step, makes_list=number >= living_from or last[step.event.user_id] == number)
    encoder.close()
    return walked.figures


def is_event(step: DecodedRecord) -> bool:
    """Whether a record of the log is an event."""
    return isinstance(step.event, Event)


def main() -> None:
    """Print a line of JSON for each budget."""
    parser = argparse.ArgumentParser(description="What living lists are worth, by lists made again per event.")
    parser.add_argument("events")
    parser.add_argument("--items", required=True)
    parser.add_argument("--models", required=True, help="the model repository")
    parser.add_argument("--version", type=int, default=1)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--burn-in", type=float, default=0.9)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    arguments = parser.parse_args()
    settings = load_settings(arguments.config, {"model_repository": arguments.models})
    for number, budget in enumerate(arguments.budgets):
        begin = time.perf_counter()
        found = asyncio.run(walk(arguments, settings, budget, with_read=number == 0))
        line = {
            "budget": budget,
            "again_per_event": round(found.again / found.events, 2),
            "changed_per_event": round(found.changed / found.events, 2),
            "acts": found.acts,
            "hr": round(found.hits / found.acts, 4),
            **({"hr_read": round(found.read_hits / found.acts, 4)} if number == 0 else {}),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
