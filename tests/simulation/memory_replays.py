"""A small log in memory, and replays of it with the shipped model in process."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freshet.adapters.onnx import OnnxEncoder
from freshet.core.catalogue import CatalogueItem, encode_item
from freshet.core.evaluation.prequential import Prequential
from freshet.core.events import Event, encode_event
from freshet.core.state import UserState
from freshet.ports import Message, Record
from freshet.replay.actions import Moment
from freshet.replay.clock import Clock
from freshet.replay.engine import Replay
from freshet.replay.models import BASELINES, PUBLISHED, ListSchedule, ReplayedModel
from freshet.replay.pace import run
from freshet.replay.states import MemoryStates
from freshet.serving.list_maker import ListMaker, MadeList
from freshet.serving.live_versions import LiveVersions
from freshet.settings import Settings

from deploy.local.parts import ROOT, TEXT_ENCODER

START = 890_000_000_000
NEW_ITEM = CatalogueItem("new-film", title="Star Trek: First Contact", category="Action Adventure Sci-Fi")
SETTINGS = Settings(exploration=0.3)


@dataclass
class ListLog:
    """A log of lists of records, one per partition."""

    records: dict[int, list[Record]]

    @property
    def partitions(self) -> list[int]:
        """The partitions."""
        return sorted(self.records)

    def read(self, partition: int, start: int = 0) -> Iterator[Sequence[Record]]:
        """Runs of five."""
        records = [record for record in self.records[partition] if record.offset >= start]
        for offset in range(0, len(records), 5):
            yield records[offset : offset + 5]


@dataclass
class Kept:
    """An `Output` that keeps everything."""

    wants_features: bool = False
    wants_training_rows: bool = False
    letters: list[Message] = field(default_factory=list)
    rows: list[tuple[list[str], list[int], Event]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    made: list[tuple[str, int, list[str]]] = field(default_factory=list)

    def dead_letter(self, message: Message) -> None:
        """Keep it."""
        self.letters.append(message)

    def features(self, moment: Moment) -> None:
        """Keep it."""
        self.moments.append(moment)

    def training_row(self, before: UserState, event: Event) -> None:
        """Keep what the row says."""
        self.rows.append((before.items, before.times, event))

    def lists(self, _model: ReplayedModel, made: Sequence[tuple[Moment, MadeList | None]]) -> None:
        """Keep user, time and items."""
        self.made += [
            (m.user_id, m.event.ts, [item.item_id for item in made_list.items]) for m, made_list in made if made_list
        ]

    async def settle(self) -> None:
        """Nothing is let go."""


def stream(seed: int = 1, count: int = 400, users: int = 12) -> list[Event]:
    """Events in time order, several at one time, with duplicates and users who leave."""
    rng = random.Random(seed)
    events: list[Event] = []
    ts = START
    for number in range(count):
        ts += rng.choice((0, 0, 7_000, 90_000))
        user = f"user-{rng.randrange(users)}"
        if number % 97 == 96:
            events.append(Event(f"e{number}", user, rng.choice(("user.opt_out", "user.opt_in", "user.erase")), ts))
            continue
        kind = rng.choices(("view", "click", "purchase"), (6, 3, 1))[0]
        events.append(Event(f"e{number}", user, kind, ts, str(rng.randrange(1, 300))))
        if rng.random() < 0.03:
            events.append(events[-1])
    return events


def records(events: Sequence[Event], partitions: int = 1, bad: Sequence[bytes] = ()) -> ListLog:
    """The events by partition, users kept together; `bad` values come last in partition 0."""
    log: dict[int, list[Record]] = {partition: [] for partition in range(partitions)}
    for event in events:
        partition_number = int(event.user_id.rpartition("-")[2]) % partitions
        log[partition_number].append(
            Record(len(log[partition_number]), event.ts, event.user_id.encode(), encode_event(event))
        )
    for value in bad:
        log[0].append(Record(len(log[0]), START, b"user-0", value))
    return ListLog(log)


def catalogue(ts: int = -1) -> list[Record]:
    """One new item, described at a time."""
    return [Record(0, ts, NEW_ITEM.item_id.encode(), encode_item(NEW_ITEM))]


async def open_replay(output: Kept, *, judged: bool = False, items: Sequence[Record] = (), **options: Any) -> Replay:
    """A replay with the shipped model, nothing fed yet."""
    encoder = options.get("encoder") or OnnxEncoder(ROOT / "triton_models", TEXT_ENCODER)
    side_inputs = LiveVersions(encoder, Path(ROOT / "triton_models"))
    space = (await side_inputs.start(1)).space
    judges = {
        view: Prequential(
            view.name,
            cutoff=10,
            catalogue=1600,
            vectors=lambda ids: space.vectors[[space.index[item_id] for item_id in ids]],
        )
        for view in (PUBLISHED, ListSchedule("at every event", 0), ListSchedule("every hour", 3600), *BASELINES)
        if judged
    }
    model = ReplayedModel("version 1", side_inputs, ListMaker(SETTINGS), judges, (3600,))
    replay = Replay(
        SETTINGS, [model], encoder, MemoryStates(), Clock(86_400.0, (3600,), all_time=judged), output, items
    )
    await replay.start()
    return replay


async def replayed(log: ListLog, output: Kept | None = None, batch: int = 64, **options: Any) -> Replay:
    """A replay of the whole log."""
    replay = await open_replay(output or Kept(), **options)
    await run(replay, log, SETTINGS, batch=batch)
    return replay
