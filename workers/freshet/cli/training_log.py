"""The log and the catalogue of a training run, as files of JSON lines.

What has to be exported for it, from a topic, an archive or a window, is kept until its run is over: a run that was
stopped goes on with what it has read.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec

from freshet.cli.console import moment, progress, say
from freshet.core.catalogue import Catalogue, encode_item
from freshet.core.decoding import Undecodable, decode
from freshet.core.events import CONTROL_TYPES, ERASE, OPT_OUT, VISIT, BadEvent, Event, encode_event
from freshet.files import write_json, write_whole, written_whole
from freshet.logs.source import decoded, open_log, read_topic
from freshet.ports import Window
from freshet.settings import Settings

CHECKPOINTS = "*.safetensors"
"""What training leaves in the work folder of a run that is not over, its teachers' among them."""
_KEPT = "exported.json"
_EVENTS = "events.jsonl"
_ITEMS = "items.jsonl"
SHOWN_EVERY = 2048


@dataclass(frozen=True)
class TrainingLog:
    """Where a run's events and items come from.

    `window` is of record times in ms, the end left out; `newest` is the length in seconds of one that ends now.
    """

    settings: Settings
    events: str
    items: str | None
    window: tuple[int | None, int | None] = (None, None)
    newest: float | None = None

    @property
    def is_file(self) -> bool:
        """Whether the log can be read as it is."""
        plain = Path(self.events).suffix in {".jsonl", ".ndjson", ".json"}
        return plain and self.window == (None, None) and self.newest is None


class Files(NamedTuple):
    """A run's log and catalogue; `left_out` counts the records by reason that are in no file, being no events."""

    events: Path
    items: Path | None
    left_out: dict[str, int]


class _Kept(msgspec.Struct, frozen=True):
    """An export: a digest of all that was asked, when (ms), each partition's end, and what was left out by reason."""

    asked: str
    at: int
    ends: dict[int, int]
    left_out: dict[str, int]


def as_files(source: TrainingLog, work: Path, run: str) -> Files:
    """The log and the catalogue as files, in `work` where they are exported; `run` is all else that decides the run.

    What was exported for the same run is taken again where there is a checkpoint of it, unless somebody has opted out
    or was erased since. Raises `LogError`, `UserError`.
    """
    asked = hashlib.sha256(msgspec.json.encode([source, run])).hexdigest()
    if source.is_file:
        over(source, work)
        return Files(Path(source.events), catalogue_file(source, work), {})
    kept = _stopped(work, asked)
    if kept is not None and not _has_left(source, kept):
        say(
            f"going on with what was exported at {moment(kept.at)} UTC for the run that was stopped; "
            f"remove {work / _KEPT} to export anew"
        )
        items = work / _ITEMS if source.items == "kafka" else catalogue_file(source, work)
        return Files(work / _EVENTS, items, kept.left_out)
    over(source, work)
    at = int(time.time() * 1000)
    items = catalogue_file(source, work)
    ends, left_out = _export(source, work / _EVENTS, at)
    write_json(work / _KEPT, _Kept(asked, at, ends, left_out))
    return Files(work / _EVENTS, items, left_out)


def over(source: TrainingLog, work: Path) -> None:
    """The run is over: nothing of what was exported is kept, for its users may ask to be erased."""
    own = {Path(given).resolve() for given in (source.events, source.items) if given}
    for name in (_KEPT, _EVENTS, _ITEMS):
        if (work / name).resolve() not in own:
            (work / name).unlink(missing_ok=True)


def _stopped(work: Path, asked: str) -> _Kept | None:
    """What was exported for a run of the same words that has got as far as a checkpoint."""
    try:
        kept = decode(_decoder, (work / _KEPT).read_bytes())
        exported = (work / _KEPT).stat().st_mtime_ns
        if all(checkpoint.stat().st_mtime_ns < exported for checkpoint in work.glob(CHECKPOINTS)):
            return None
    except OSError:
        return None
    return None if isinstance(kept, Undecodable) or kept.asked != asked else kept


_decoder = msgspec.json.Decoder(_Kept)


def _has_left(source: TrainingLog, kept: _Kept) -> bool:
    """Whether somebody's events in what was exported must not be learned from any more."""
    log = open_log(source.events, source.settings)
    left = (OPT_OUT, ERASE)
    return any(
        isinstance(event, Event) and event.type in left
        for partition in log.partitions
        for run in decoded(log, partition, source.settings, kept.ends.get(partition, 0))
        for _, event in run
    )


def _export(source: TrainingLog, path: Path, now_ms: int) -> tuple[dict[int, int], dict[str, int]]:
    """Write the window's events but for visits, and all that users asked: an erasure before the window holds inside it.

    Returns each partition's end, and how many records are no events, by reason.
    """
    start, end = source.window
    window = Window(start if source.newest is None else now_ms - int(source.newest * 1000), end, {})
    log = open_log(source.events, source.settings)
    bad: Counter[str] = Counter()
    example: dict[str, str] = {}
    ends: dict[int, int] = {}
    kept = read = 0
    with written_whole(path) as partial, partial.open("wb") as file, progress(None, "events") as advance:
        for partition in log.partitions:
            for record, event in chain.from_iterable(decoded(log, partition, source.settings)):
                read += 1
                ends[partition] = record.offset + 1
                if isinstance(event, BadEvent):
                    if not window.holds(partition, record):
                        continue
                    reason = event.reason.words
                    bad[reason] += 1
                    example.setdefault(reason, event.detail)
                elif event.type != VISIT and (event.type in CONTROL_TYPES or window.holds(partition, record)):
                    file.write(encode_event(event) + b"\n")
                    kept += 1
                if read % SHOWN_EVERY == 0:
                    advance(read, read)
    for reason, count in sorted(bad.items()):
        say(f"left out of {source.events}: {count:,} dead letters, {reason}, such as: {example[reason]}")
    say(f"{kept:,} of {read:,} records of {source.events} are in the window")
    return ends, dict(bad)


def catalogue_file(source: TrainingLog, work: Path) -> Path | None:
    """The catalogue as a file, in `work` where it is read from Kafka. Raises `LogError`, `UserError`."""
    if source.items != "kafka":
        return Path(source.items) if source.items is not None else None
    catalogue, bad = Catalogue(), 0
    for record in read_topic(source.settings, source.settings.items_topic):
        bad += isinstance(catalogue.apply(record.value, record.key, record.offset), str)
    if bad:
        say(f"left out of {source.settings.items_topic}: {bad:,} records that are no items")
    write_whole(work / _ITEMS, b"".join(encode_item(item) + b"\n" for item in catalogue.items.values()))
    return work / _ITEMS
