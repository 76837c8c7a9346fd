"""Compare policies by what users did with their lists: off-policy, and by the variants of an experiment."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from freshet.adapters.onnx import OnnxEncoder
from freshet.bundle.bundle import load_bundle
from freshet.core.evaluation.joining import Joiner
from freshet.core.evaluation.off_policy import LoggedLists, Slots
from freshet.core.evaluation.readout import Readout
from freshet.core.recommendation import Recommendation, decode_recommendation
from freshet.core.rollout import MODEL
from freshet.logs.source import events, open_log, read_beside, read_topic
from freshet.ports import Encoder, Log, LogError
from freshet.replay.models import encodable
from freshet.replay.rebuild import FoldedLog, PublishedList, Rebuilder, SideInputTopics
from freshet.serving.list_maker import MadeList
from freshet.settings import KNOBS, Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run on record: its events at `source`, its lists at `lists` (`kafka`, or a file of lists).

    If `source` is an archive's folder with side inputs, the side inputs of the lists are read from there. Otherwise
    they are read from the broker. An act counts for a list if it comes within `window_ms` after the event that the
    list is as of.
    """

    settings: Settings
    source: str
    lists: str
    window_ms: int


@dataclass(frozen=True)
class Target:
    """A policy to judge, which does not explore.

    A field that is None stays as it was when each list was made.
    """

    version: int | None = None
    diversity: float | None = None
    prior_weight: float | None = None
    value_weight: float | None = None
    novelty_weight: float | None = None

    @property
    def name(self) -> str:
        """What makes it another policy."""
        parts = dataclasses.asdict(self).items()
        return ", ".join(f"{part.replace('_', ' ')} {value}" for part, value in parts if value is not None) or (
            "no exploration"
        )

    def settings(self, live: Settings, variant: str) -> Settings:
        """The settings that make its lists for a user who had a variant."""
        own = {knob: value for knob in KNOBS if (value := getattr(self, knob, None)) is not None}
        return msgspec.structs.replace(live.of_variant(variant), variants={}, exploration=0.0, **own)


@dataclass(frozen=True)
class Counterfactual:
    """Lists that were shown, beside the target's lists.

    `counts` says why lists were left out, and how acts were joined.
    """

    slots: Slots
    counts: dict[str, int]


async def off_policy(record: RecordedRun, target: Target, kind: str, text_encoder: Path) -> Counterfactual:
    """Make every recorded list again as the target policy would have made it.

    `kind` is the behaviour type that is rewarded. Raises `LogError`, `BundleError`, `Unavailable`.
    """
    settings = record.settings
    log = open_log(record.source, settings)
    try:
        joiner, newest = _joined(record, log, (kind,))
        folded = FoldedLog(log, settings, joiner.lists.values())
    finally:
        log.close()
    topics = SideInputTopics(
        list(read_beside(record.source, settings, settings.items_topic)),
        list(read_beside(record.source, settings, settings.popularity_topic)),
    )
    counts: Counter[str] = Counter()
    judged = [
        published for published in folded.recorded if _is_judged(published, topics, newest - record.window_ms, counts)
    ]
    if not judged:
        raise LogError(f"no list can be judged: {_told(counts)}")
    if not any(item.propensity < 1 for published in judged for item in published.list.items):
        raise LogError(
            "every list was made without exploration, so they say nothing of another policy: set `exploration`"
        )
    encoder = OnnxEncoder(Path(settings.model_repository), text_encoder)
    gathering = LoggedLists(max(len(published.list.items) for published in judged))
    try:
        async for published, made in rebuilt(judged, target, settings, encoder, topics):
            items = published.list.items
            gathering.add(
                published.list.user_id,
                [item.item_id for item in items],
                [item.propensity for item in items],
                joiner.rewards(published.list, kind),
                [item.item_id for item in made.items],
            )
    finally:
        encoder.close()
    counts["judged"] = len(judged)
    return Counterfactual(gathering.slots(), dict(counts + joiner.counts))


async def rebuilt(
    recorded: Sequence[PublishedList], target: Target, settings: Settings, encoder: Encoder, topics: SideInputTopics
) -> AsyncIterator[tuple[PublishedList, MadeList]]:
    """Recorded lists with the target's lists of the same moments. Raises `BundleError`, `Unavailable`."""
    groups: dict[tuple[int, str], list[PublishedList]] = {}
    for published in recorded:
        version = published.list.model_version if target.version is None else target.version
        groups.setdefault((version, published.list.variant), []).append(published)
    repository = Path(settings.model_repository)
    for (version, variant), group in sorted(groups.items()):
        if target.value_weight or target.novelty_weight:
            load_bundle(repository / MODEL / str(version)).require_lifts(target.value_weight, target.novelty_weight)
        rebuilder = Rebuilder(target.settings(settings, variant), version, encoder, repository, topics)
        async for pair in rebuilder.make(group):
            yield pair


async def readout(record: RecordedRun, kinds: Sequence[str]) -> tuple[Readout, dict[str, int]]:
    """What users did with the lists of each variant, and how acts were joined. Raises `LogError`."""
    log = await asyncio.to_thread(open_log, record.source, record.settings)
    try:
        joiner, newest = _joined(record, log, kinds)
    finally:
        log.close()
    found = Readout(kinds)
    counts = Counter(joiner.counts)
    for made in joiner.lists.values():
        if made.as_of.ts > newest - record.window_ms:
            counts["too young"] += 1
            continue
        counts["judged"] += 1
        found.add(made.user_id, made.variant, [sum(joiner.rewards(made, kind)) for kind in kinds])
    return found, dict(counts)


def _joined(record: RecordedRun, log: Log, kinds: Collection[str]) -> tuple[Joiner, int]:
    """The lists with the acts of the log, and the log's newest event time."""
    joiner, newest = Joiner(read_lists(record), record.window_ms), 0
    if not joiner.lists:
        raise LogError(f"there are no lists at {record.lists}")
    for _, _, event in events(log, record.settings):
        newest = max(newest, event.ts)
        joiner.add(event, kinds)
    return joiner, newest


def read_lists(record: RecordedRun) -> Iterator[Recommendation]:
    """Yield published lists, from the topic or from a file with one list a line. Raises `LogError`."""
    if record.lists == "kafka":
        for published in read_topic(record.settings, record.settings.recommendations_topic):
            made = None if published.value is None else decode_recommendation(published.value)
            if isinstance(made, str):
                log.warning("record left out", extra={"offset": published.offset, "why": made})
            elif made is not None:
                yield made
        return
    try:
        lines = Path(record.lists).read_bytes().splitlines()
    except OSError as error:
        raise LogError(f"{record.lists}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            made = decode_recommendation(line)
            if isinstance(made, str):
                raise LogError(f"{record.lists}:{number}: not a list as `freshet tail --raw` writes it: {made}")
            yield made


def _is_judged(published: PublishedList, topics: SideInputTopics, until: int, counts: Counter[str]) -> bool:
    """Say whether a list can be made again and its window is over. If not, the reason is counted."""
    if published.list.as_of.ts > until:
        counts["too young"] += 1
    elif published.list.degraded:
        counts["degraded"] += 1
    elif not published.list.personalised:
        counts["not personal"] += 1
    elif published.state is None or not encodable(published.state):
        counts["event not in the log"] += 1
    elif not topics.has(published.list.side_inputs):
        counts["side inputs gone"] += 1
    else:
        return True
    return False


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in counts.items())
