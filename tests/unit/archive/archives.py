"""Small archives and their records."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.dataset
from freshet.archive.appender import Appender
from freshet.archive.chain import Chain
from freshet.archive.feature_history import FOLDER
from freshet.archive.rows import event_rows
from freshet.core.events import Event, encode_event
from freshet.logs.source import open_log
from freshet.ports import WHOLE, Record, Window
from freshet.settings import Settings

START = 890_000_000_000
FILE_SIZE = 1 << 20


def record(offset: int, user: str = "ada", ts: int | None = None, kind: str = "view") -> Record:
    """A record of the events topic."""
    moment = START + offset * 1000 if ts is None else ts
    event = Event(f"e{offset}-{user}", user, kind, moment, None if kind.startswith("user.") else str(offset % 300))
    return Record(offset, moment, user.encode(), encode_event(event))


def appender(chain: Chain, file_size: int = FILE_SIZE, start: int | None = None) -> Appender[Record]:
    """What an archiver appends with."""
    encode = partial(event_rows, chain.partition, settings=Settings())
    return Appender(chain, encode, file_size, lambda _: None, start)


def write(folder: Path, records: Sequence[Record], *, partition: int = 0, per_file: int = 10) -> Chain:
    """Archive records, so many a file, after those that are there."""
    chain = Chain(folder / "events", partition)
    for start in range(0, len(records), per_file):
        file_records = records[start : start + per_file]
        file_appender = appender(chain, start=file_records[0].offset)
        for each in file_records:
            file_appender.take(each.offset, each.timestamp, 100, each)
        file_appender.cut()
    return chain


def read(folder: Path, window: Window = WHOLE, start: int = 0) -> dict[int, list[Record]]:
    """Every record of an archive that is in the window, by partition."""
    log = open_log(str(folder), Settings(), window)
    return {number: [record for run in log.read(number, start) for record in run] for number in log.partitions}


def stream(seed: int, count: int, users: int = 6) -> list[Event]:
    """Events of two partitions' users: some late, some twice, some at the same time, some users leave and come back."""
    rng = random.Random(seed)
    events: list[Event] = []
    ts = START
    for number in range(count):
        ts += rng.choice((0, 0, 900, 60_000, 3_600_000))
        user = f"user-{rng.randrange(users)}"
        if rng.random() < 0.02:
            events.append(Event(f"c{number}", user, rng.choice(("user.opt_out", "user.opt_in", "user.erase")), ts))
            continue
        kind = rng.choice(("view", "click", "purchase"))
        late = ts - rng.choice((0, 0, 0, 5_000_000))
        amount = round(rng.uniform(1, 9), 2) if kind == "purchase" else None
        events.append(Event(f"e{number}", user, kind, late, str(rng.randrange(30)), amount))
        if rng.random() < 0.05:
            events.append(events[-1])
    return events


def write_stream(folder: Path, events: list[Event], offsets: list[int]) -> None:
    """Archive events by user in two partitions, with some poison between; `offsets` holds the next of each partition.

    The records arrive when the last of the events has happened.
    """
    arrival = max(event.ts for event in events)
    for partition in (0, 1):
        records = []
        for event in events:
            if int(event.user_id[-1]) % 2 == partition:
                for value in (encode_event(event), *([b"{"] if offsets[partition] % 20 == 19 else [])):
                    records.append(Record(offsets[partition], arrival, event.user_id.encode(), value))
                    offsets[partition] += 1
        write(folder, records, partition=partition, per_file=50)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Every row of an archive's history, by offset."""
    table = pyarrow.dataset.dataset(folder / FOLDER).to_table()
    return table.sort_by([("partition", "ascending"), ("offset", "ascending")]).to_pylist()
