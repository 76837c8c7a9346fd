"""The replay folds in the order of the log, encodes in batches, and hands everything on in order.

The replay calls what the live worker calls: `decode_event`, `fold`, `featurise`, the encoder, `ListMaker`. Its clock
is event time. The replay makes a list after each moment, that is when the log's time moves past the moment. Neither
the size of batches nor the number of partitions decides which lists there are.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.core.evaluation.interleaving import Interleaver, SavedInterleaver
from freshet.core.events import CONTROL_TYPES, BadEvent, Event, encode_event
from freshet.core.features import featurise
from freshet.core.fold_run import fold_run
from freshet.core.snapshots import TICK_MS
from freshet.core.state import APPLIED, FIRST_TOUCH, UserState, fold
from freshet.ports import Encoded, Encoder, Fetched, Message, Record
from freshet.replay.actions import Act, Action, Moment
from freshet.replay.clock import Clock, SavedClock
from freshet.replay.merge import DecodedRecord, Position
from freshet.replay.models import ReplayedModel, SavedModel, encodable
from freshet.replay.states import States
from freshet.serving.dead_letters import dead_letter
from freshet.serving.list_maker import MadeList
from freshet.settings import Settings

BATCH_ACTIONS = 1024
"""Actions handed on together where few of them are moments to encode."""


class Output(Protocol):
    """Where the effects of a replay go."""

    wants_features: bool
    wants_training_rows: bool

    def dead_letter(self, message: Message) -> None:
        """A record that is no event."""

    def features(self, moment: Moment) -> None:
        """A user's behaviour row as of a moment."""

    def training_row(self, before: UserState, event: Event) -> None:
        """What a user did, with their state before that moment."""

    def lists(self, model: ReplayedModel, made: Sequence[tuple[Moment, MadeList | None]]) -> None:
        """Published lists in order, None for an erased user."""

    async def settle(self) -> None:
        """Let go of what need not stay in memory."""


class Digest:
    """A digest of lists in any order: the sum of one hash per list, modulo 2 to the 128."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, user_id: str, ts: int, version: int, made: MadeList) -> None:
        """Take in a list: who, when, by which model and variant, which items with which rounded scores."""
        slots = [(item.item_id, item.score, item.source, item.propensity) for item in made.items]
        facts = msgspec.msgpack.encode((user_id, ts, version, made.variant, slots))
        self.value = (self.value + int.from_bytes(hashlib.blake2b(facts, digest_size=16).digest())) % (1 << 128)

    def __str__(self) -> str:
        return f"{self.value:032x}"


class _Encoding(NamedTuple):
    """The encoder's `item_index` input, and its outputs to come (None where nobody is to be encoded)."""

    history: NDArray[np.int32]
    task: asyncio.Task[Encoded] | None


class SavedReplay(msgspec.Struct, frozen=True):
    """A `Replay` in a checkpoint, all but its states; `open` has the events of open moments as JSON, by user."""

    positions: dict[int, Position]
    items: int
    forgotten: dict[str, int]
    counts: dict[str, int]
    clock: SavedClock
    open: dict[str, bytes]
    digests: dict[str, str]
    models: list[SavedModel]
    interleavers: list[SavedInterleaver]


class Replay:
    """One pass over a log.

    If `models` is empty, the replay only folds. `items` are records of the items topic. The replay applies an item's
    record when the log comes to the record's timestamp.
    """

    def __init__(
        self,
        settings: Settings,
        models: Sequence[ReplayedModel],
        encoder: Encoder,
        states: States,
        clock: Clock,
        output: Output,
        items: Sequence[Record] = (),
    ) -> None:
        self._settings = settings
        self._models = models
        self._encoder = encoder
        self._states = states
        self._clock = clock
        self._output = output
        self._judging = any(model.judges for model in models)
        self._wants_training_rows = output.wants_training_rows
        self._makes_moments = bool(models) or output.wants_features or output.wants_training_rows
        self._open: dict[str, tuple[UserState, Event]] = {}
        self._before: dict[str, UserState] = {}
        self._actions: list[Action] = []
        self._to_encode = 0
        self._under_way: tuple[list[Action], list[_Encoding]] | None = None
        self.judge_after = 0
        """Number of records before anything is judged: the burn-in."""
        self.interleavers = {
            model.name: Interleaver(models[0].name, model.name) for model in models[1:] if self._judging
        }
        self.counts: Counter[str] = Counter()
        self.digests = {model.name: Digest() for model in models}
        self._newest: dict[int, DecodedRecord] = {}
        self._resumed_at: dict[int, Position] = {}
        self.forgotten: dict[str, int] = {}
        """When users last opted out or were erased, event time in ms."""
        self._items = deque(sorted(items, key=_timestamp))
        self._items_applied = 0

    @property
    def positions(self) -> dict[int, Position]:
        """Where each partition goes on."""
        newest = {partition: Position(step.record.offset + 1, step.clock) for partition, step in self._newest.items()}
        return self._resumed_at | newest

    async def start(self) -> None:
        """Apply the catalogue as it stood before the log."""
        await self._apply_items(-1)

    async def feed(self, steps: Sequence[DecodedRecord]) -> None:
        """Take in a batch of the log. On return at most two batches of lists are under way."""
        users = Counter(step.event.user_id for step in steps if isinstance(step.event, Event))
        states = self._states.of(users)
        if self._makes_moments:
            await self._follow(steps, states)
        else:
            self._fold(steps, states, users)
        await self._states.flush()
        await self._output.settle()

    def _fold(self, steps: Sequence[DecodedRecord], states: Mapping[str, UserState], users: Mapping[str, int]) -> None:
        """Fold a batch whose states nobody looks at before its end."""
        events: list[tuple[int, Fetched, Event]] = []
        for step in steps:
            self._newest[step.partition] = step
            if isinstance(step.event, BadEvent):
                self._refuse(step, step.event)
            else:
                events.append((step.partition, step.record, step.event))
        outcomes = fold_run(states, users, events, self._settings.history)
        folded = outcomes.count(APPLIED) + outcomes.count(FIRST_TOUCH)
        self.counts += Counter(records=len(steps), folded=folded, skipped=len(events) - folded)

    async def _follow(self, steps: Sequence[DecodedRecord], states: Mapping[str, UserState]) -> None:
        """Fold a batch event by event, and make out what happens at each."""
        for step in steps:
            if self._items and step.record.timestamp >= self._items[0].timestamp:
                if isinstance(step.event, Event) and step.event.ts > self._clock.now:
                    self._close_moments()  # their lists come before the new items
                await self.drain()
                await self._apply_items(step.record.timestamp)
            self._take(step, states)
            if self._to_encode >= self._settings.encode_batch or len(self._actions) >= BATCH_ACTIONS:
                await self._turn()

    async def finish(self) -> None:
        """End the replay: every open moment gets its list, and everything is handed on."""
        self._close_moments()
        await self.drain()
        await self._output.settle()

    async def drain(self) -> None:
        """Hand on all that has been made out; open moments stay open."""
        await self._turn()
        await self._turn()

    async def _apply_items(self, timestamp: int) -> None:
        """Apply the items up to the log's time (ms), minute by minute.

        Items without a time are there from the start.
        """
        while self._items and self._items[0].timestamp <= timestamp:
            minute = self._items[0].timestamp // TICK_MS
            due: list[Record] = []
            while self._items and (at := self._items[0].timestamp) <= timestamp and at // TICK_MS == minute:
                due.append(self._items.popleft())
            self._items_applied += len(due)
            for model in self._models:
                model.side_inputs.apply_items(due)
                await model.side_inputs.settle()
                model.grown(max(0, minute * TICK_MS))

    def _refuse(self, step: DecodedRecord, bad: BadEvent) -> None:
        self.counts["dead letters"] += 1
        self._output.dead_letter(dead_letter(self._settings, step.partition, step.record, bad))

    def _take(self, step: DecodedRecord, states: Mapping[str, UserState]) -> None:
        event, counts = step.event, self.counts
        self._newest[step.partition] = step
        counts["records"] += 1
        if isinstance(event, BadEvent):
            self._refuse(step, event)
            return
        clock = self._clock
        if event.ts > clock.now:
            self._close_moments()
            clock.advance(event.ts)
        user = event.user_id
        state = states[user]
        if self._wants_training_rows and user not in self._before:
            self._before[user] = _copied(state)
        history = state.folded
        outcome = fold(state, event, step.partition, step.record.offset, self._settings.history)
        if outcome is not FIRST_TOUCH and outcome is not APPLIED:
            counts["skipped"] += 1
            return
        counts["folded"] += 1
        self._open[user] = state, event
        if outcome is FIRST_TOUCH:
            if self._judging:
                self._actions.append(self._act(event, history))
            if self._settings.behaviours.get(event.type, 0.0) > 0:
                clock.add(event.item_id or "")
        if state.consent:
            self.forgotten[user] = event.ts
        elif self._wants_training_rows and event.type not in CONTROL_TYPES:
            self._output.training_row(self._before[user], event)

    def _act(self, event: Event, history: int) -> Act:
        clock = self._clock
        boundaries, at_boundary = tuple(clock.boundaries), tuple(clock.at_boundary)
        return Act(event, clock.counts, clock.all_time, boundaries, at_boundary, history, self._is_judged())

    def _close_moments(self) -> None:
        """Give a list to each user who was touched at the event time that ends now."""
        if not self._open and not self._before:
            return
        boundaries, judged = tuple(self._clock.boundaries), self._is_judged()
        for user, (state, event) in self._open.items():
            moment = Moment(user, _copied(state), event, self._clock.counts, boundaries, judged)
            if self._output.wants_features:
                self._output.features(moment)
            if self._models:
                self._actions.append(moment)
                self._to_encode += encodable(state)
        self._open.clear()
        self._before.clear()

    def _is_judged(self) -> bool:
        return self.counts["records"] > self.judge_after

    async def _turn(self) -> None:
        """Start encoding the actions that wait, and meanwhile finish the actions before them."""
        previous, self._under_way = self._under_way, None
        if self._actions:
            actions, self._actions, self._to_encode = self._actions, [], 0
            moments = (action for action in actions if isinstance(action, Moment))
            states = [moment.state for moment in moments if encodable(moment.state)]
            self._under_way = actions, self._encode(states)
            await asyncio.sleep(0)
        if previous is not None:
            await self._hand_on(*previous)

    def _encode(self, states: Sequence[UserState]) -> list[_Encoding]:
        """An encoding per model; models of one version share theirs."""
        encodings: dict[int, _Encoding] = {}
        for live in (model.live for model in self._models):
            if live.version in encodings:
                continue
            if states:
                tensors = featurise(states, live.item_index, live.type_index, live.length)
                task = asyncio.create_task(self._encoder.encode(tensors, live.version))
                encodings[live.version] = _Encoding(tensors["item_index"], task)
            else:
                encodings[live.version] = _Encoding(np.zeros((0, live.length), np.int32), None)
        return [encodings[model.live.version] for model in self._models]

    async def _hand_on(self, actions: list[Action], encodings: list[_Encoding]) -> None:
        looked_at: list[list[list[str]]] = []
        for model, encoding in zip(self._models, encodings, strict=True):
            encoded = await encoding.task if encoding.task is not None else None
            published, seen = model.process(actions, encoding.history, encoded)
            looked_at.append(seen)
            digest = self.digests[model.name]
            for moment, made in published:
                if made is not None:
                    digest.add(moment.user_id, moment.event.ts, model.live.version, made)
            self.counts["lists"] += len(published)
            self._output.lists(model, published)
        if self.interleavers:
            acts = [action.event for action in actions if isinstance(action, Act) and action.judged]
            for interleaver, others in zip(self.interleavers.values(), looked_at[1:], strict=True):
                for event, first, other in zip(acts, looked_at[0], others, strict=True):
                    interleaver.judge(
                        event.user_id, first, other, event.item_id or "", seed=f"{event.user_id}\x1f{event.ts}"
                    )

    def saved(self) -> SavedReplay:
        """Everything but the states, after `drain`, for a checkpoint."""
        return SavedReplay(
            positions=self.positions,
            items=self._items_applied,
            forgotten=self.forgotten,
            counts=dict(self.counts),
            clock=self._clock.saved(),
            open={user: encode_event(event) for user, (_, event) in self._open.items()},
            digests={name: str(digest) for name, digest in self.digests.items()},
            models=[model.saved() for model in self._models],
            interleavers=[interleaver.saved() for interleaver in self.interleavers.values()],
        )

    async def restore(self, saved: SavedReplay) -> None:
        """Take over what `saved` gave; settings, items and models are the same."""
        while self._items_applied < saved.items:
            await self._apply_items(self._items[0].timestamp)
        self.forgotten = saved.forgotten
        self._resumed_at = saved.positions
        self.counts = Counter(saved.counts)
        self._clock.restore(saved.clock)
        states = self._states.of(saved.open)
        self._open = {user: (states[user], msgspec.json.decode(raw, type=Event)) for user, raw in saved.open.items()}
        self.digests = {name: Digest(int(value, 16)) for name, value in saved.digests.items()}
        for model, of_model in zip(self._models, saved.models, strict=True):
            model.restore(of_model)
        for interleaver, of_interleaver in zip(self.interleavers.values(), saved.interleavers, strict=True):
            interleaver.restore(of_interleaver)


def _timestamp(record: Record) -> int:
    return record.timestamp


def _copied(state: UserState) -> UserState:
    """A copy that later folds leave alone."""
    twin = copy.copy(state)
    twin.counts = dict(state.counts)
    twin.spend = dict(state.spend)
    return twin
