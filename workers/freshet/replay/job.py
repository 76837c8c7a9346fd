"""A replay from its description to its folder: open the parts, run, and write the results."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.adapters.kafka import KafkaPublisher, create_topic, delete_topic
from freshet.adapters.onnx import OnnxEncoder
from freshet.adapters.triton import TritonEncoder
from freshet.adapters.triton_address import TritonAddress
from freshet.core.evaluation.compare import difference
from freshet.core.evaluation.prequential import Prequential
from freshet.core.evaluation.results import FreshnessPoint, Results
from freshet.core.events import Event, decode_event
from freshet.core.item_space import ItemSpace
from freshet.errors import FreshetError
from freshet.files import write_json
from freshet.logs.source import open_log
from freshet.ports import Encoder, Log, Record, Window
from freshet.replay.checkpoint import BEGUN, CHECKPOINT, Folder
from freshet.replay.clock import Clock
from freshet.replay.engine import Replay
from freshet.replay.list_topic import ListTopic
from freshet.replay.models import BASELINES, PUBLISHED, ListSchedule, ReplayedModel
from freshet.replay.output import FolderOutput
from freshet.replay.pace import BATCH_RECORDS, run
from freshet.replay.states import MemoryStates
from freshet.report.results_file import write_results
from freshet.serving.list_maker import ListMaker
from freshet.serving.live_versions import LiveVersions
from freshet.settings import Settings

SUMMARY = "replay.json"
RESULTS = "results.json"
LOOKED_AT = 5000
"""Records of a log by whose items a version is recognised as another catalogue's."""
FOREIGN = 0.1
"""A version that knows a smaller part of these items is another catalogue's."""
METRICS = ("hr", "ndcg", "mrr")
FRESHEST = ListSchedule("at every event", 0)
PERIODS = (60, 3600, 86_400)
PERIODIC = (ListSchedule("every minute", 60), ListSchedule("every hour", 3600), ListSchedule("every day", 86_400))


class OutputTaken(FreshetError):
    """The output folder or topic is in use; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class ReplayJob:
    """What to replay, with which versions, and what to write.

    If `versions` is empty, the replay only folds. `sweep` holds settings of the ranking with a value each; the lists
    of the versions are made and judged once more with each of these values. `speed` is event time per wall-clock
    time. If `topic` is given, the lists go to this topic and not to the folder. `burn_in` is the share of the records
    that is not judged. `label_delay` is the age (seconds of event time) at which the calibration learns from a label.
    """

    settings: Settings
    source: str
    folder: Path
    versions: Sequence[int]
    window: Window
    sweep: Sequence[tuple[str, float]] = ()
    items: Sequence[Record] = ()
    through_triton: bool = False
    text_encoder: Path = Path()
    states_on_disk: bool = False
    speed: float | None = None
    judged: bool = False
    freshness: bool = False
    burn_in: float = 0.0
    label_delay: float = 0.0
    features: bool = False
    training_rows: bool = False
    topic: str | None = None
    batch: int = BATCH_RECORDS


class ForeignCatalogue(FreshetError):
    """The log is of other items than a version's; the message says what to do."""


class Summary(msgspec.Struct, frozen=True):
    """What a replay did; `digests` are of all lists, by model."""

    source: str
    records: int
    counts: dict[str, int]
    digests: dict[str, str]
    seconds: float
    events_per_second: float


async def run_job(
    job: ReplayJob,
    command: str,
    *,
    resume: bool = False,
    started: Callable[[int | None], Any],
    advanced: Callable[[int], None],
) -> Summary:
    """Run a replay to its end.

    `started` is called with the number of records, `advanced` with the number of records of each batch. Raises
    `LogError`, `OutputTaken`, `CheckpointError`, `BundleError`, `Unavailable`, `DeliveryError`. If the folder holds
    no checkpoint by then, the folder is removed.
    """
    if job.topic is not None:
        refuse_live(job.settings, job.topic)
    with closing(open_log(job.source, job.settings, job.window)) as log:
        fresh = _claim(job.folder, resume=resume)
        try:
            async with (
                open_encoder(job.settings, job.text_encoder, through_triton=job.through_triton) as encoder,
                _list_topic(job, max(log.partitions) + 1, fresh=fresh) as topic,
            ):
                return await _run(job, command, log, encoder, topic, fresh=fresh, started=started, advanced=advanced)
        except BaseException:
            if fresh and not _is_begun(job.folder):
                shutil.rmtree(job.folder, ignore_errors=True)
            raise


async def _run(
    job: ReplayJob,
    command: str,
    log: Log,
    encoder: Encoder,
    topic: ListTopic | None,
    *,
    fresh: bool,
    started: Callable[[int | None], Any],
    advanced: Callable[[int], None],
) -> Summary:
    settings = job.settings
    output = FolderOutput(
        job.folder, settings.behaviours, features=job.features, training_rows=job.training_rows, topic=topic
    )
    folder = Folder(job.folder, _identity(job), output, on_disk=job.states_on_disk)
    checkpoint = None if fresh else folder.load()
    states = folder.open_states()
    clock = Clock(settings.popularity_half_life, _periods(job), all_time=job.judged)
    models = [await _model(job, version, encoder, knob) for version in job.versions for knob in (None, *job.sweep)]
    if job.judged:
        _check_catalogue(log, settings, models)
    replay = Replay(settings, models, encoder, states, clock, output, job.items)
    replay.judge_after = int((log.total or 0) * job.burn_in)
    started(log.total)
    if checkpoint is None:
        await replay.start()
    else:
        if isinstance(states, MemoryStates):
            states.restore(checkpoint.states or {})
        await replay.restore(checkpoint.replay)
        advanced(replay.counts["records"])
    gc.freeze()  # what has been imported stays: collections need not look at it
    already, began = replay.counts["records"], time.monotonic()
    await run(
        replay,
        log,
        settings,
        batch=job.batch,
        speed=job.speed,
        advanced=advanced,
        save=lambda: folder.save(replay, states),
    )
    seconds = time.monotonic() - began
    output.cut()
    output.forget(replay.forgotten)
    if job.judged:
        write_results(job.folder / RESULTS, _results(job, command, replay, models))
    counts = dict(replay.counts)
    summary = Summary(
        job.source,
        counts["records"],
        counts,
        {name: str(digest) for name, digest in replay.digests.items()},
        round(seconds, 3),
        round((counts["records"] - already) / max(seconds, 1e-9), 1),
    )
    write_json(job.folder / SUMMARY, summary)
    folder.finish()
    return summary


def _check_catalogue(log: Log, settings: Settings, models: Sequence[ReplayedModel]) -> None:
    """See that the versions to judge know the items of the log's beginning. Raises `ForeignCatalogue`, `LogError`."""
    records = chain.from_iterable(chain.from_iterable(log.read(partition) for partition in log.partitions))
    events = (decode_event(record.value, record.key, settings.behaviours) for record in islice(records, LOOKED_AT))
    items = {event.item_id for event in events if isinstance(event, Event) and event.item_id}
    for model in models:
        live = model.side_inputs.live
        assert live is not None
        known = sum(live.space.is_trained(item) for item in items)
        if known < FOREIGN * len(items):
            raise ForeignCatalogue(
                f"{log.name}: {known:,} of its first {len(items):,} items are in the vocabulary of {model.name}, "
                f"{live.bundle.manifest.name}: name a version that was trained on such a log, with --bundle or --model"
            )


def refuse_live(settings: Settings, topic: str) -> None:
    """Raises `OutputTaken` for a topic that a live worker reads or writes."""
    live = {name: value for name, value in msgspec.to_builtins(settings).items() if name.endswith("_topic")}
    for name, value in live.items():
        if topic == value:
            raise OutputTaken(f"{topic} is the live {name.removesuffix('_topic')} topic: a replay has one of its own")
    if topic.startswith(f"{settings.group}-"):
        raise OutputTaken(f"{topic} belongs to the live group {settings.group}: a replay has a topic of its own")


@asynccontextmanager
async def _list_topic(job: ReplayJob, partitions: int, *, fresh: bool) -> AsyncIterator[ListTopic | None]:
    """The topic for the lists. If the replay ends before its first checkpoint, the topic is deleted.

    Raises `OutputTaken`, `DeliveryError`.
    """
    if job.topic is None:
        yield None
        return
    begun = job.folder / BEGUN
    if fresh and not create_topic(job.settings, job.topic, partitions) and begun.read_text() != job.topic:
        raise OutputTaken(f"topic {job.topic} exists: choose another, or delete it first")
    begun.write_text(job.topic)
    publisher = KafkaPublisher(job.settings)
    try:
        yield ListTopic(job.topic, publisher)
    except BaseException:
        if fresh and not _is_begun(job.folder):
            delete_topic(job.settings, job.topic)
        raise
    finally:
        publisher.close()


def _claim(folder: Path, *, resume: bool) -> bool:
    """Make the folder; returns whether the replay begins anew."""
    if (folder / SUMMARY).exists():
        raise OutputTaken(f"{folder} holds a complete replay: choose another --out")
    if _is_begun(folder):
        if not resume:
            raise OutputTaken(f"{folder} holds a replay that was cut off: --resume goes on, or choose another --out")
        return False
    if (folder / BEGUN).exists():
        if not resume:
            raise OutputTaken(
                f"{folder} holds a replay that was cut off before its first checkpoint: "
                "--resume begins it anew, or choose another --out"
            )
        _clear(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise OutputTaken(f"{folder} is not empty: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BEGUN).touch()
    return True


def _clear(folder: Path) -> None:
    """Remove what a replay has written that was cut off before its first checkpoint."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != BEGUN:
            path.unlink()


def _is_begun(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return (folder / CHECKPOINT).exists()


def _identity(job: ReplayJob) -> dict[str, Any]:
    """What must be the same for a replay to go on."""
    return {
        "source": job.source,
        "window": [job.window.start_ms, job.window.end_ms, sorted(job.window.offsets.items())],
        "versions": list(job.versions),
        "sweep": list(job.sweep),
        "judged": [job.judged, job.freshness, job.burn_in, job.label_delay],
        "written": [job.features, job.training_rows, job.states_on_disk, job.topic],
        "items": len(job.items),
        "settings": msgspec.to_builtins(job.settings),
    }


@asynccontextmanager
async def open_encoder(settings: Settings, text_encoder: Path, *, through_triton: bool) -> AsyncIterator[Encoder]:
    """The encoder in process, or Triton's; `text_encoder` is the folder of the one in process."""
    if through_triton:
        served = TritonEncoder(TritonAddress.of(settings), settings.triton_deadline)
        try:
            yield served
        finally:
            await served.close()
    else:
        with closing(OnnxEncoder(Path(settings.model_repository), text_encoder)) as encoder:
            yield encoder


async def _model(job: ReplayJob, version: int, encoder: Encoder, knob: tuple[str, float] | None) -> ReplayedModel:
    side_inputs = LiveVersions(encoder, Path(job.settings.model_repository), text_fields=job.settings.text_fields)
    live = await side_inputs.start(version)
    space = live.space
    schedules = (*((FRESHEST, *PERIODIC) if job.freshness else ()), PUBLISHED, *BASELINES)
    settings, name = job.settings, f"version {version}"
    if knob is not None:
        knobs = dict([knob])
        live.bundle.require_lifts(knobs.get("value_weight"), knobs.get("novelty_weight"))
        settings = msgspec.structs.replace(settings, variants={}, **knobs)
        name += f", {knob[0].replace('_', ' ')} {knob[1]:g}"
    catalogue = max(1, len({*space.index, *((record.key or b"").decode() for record in job.items)}))
    judges = {
        schedule: Prequential(
            schedule.name if schedule in BASELINES else name if schedule is PUBLISHED else f"{name}, {schedule.name}",
            cutoff=job.settings.list_size,
            catalogue=catalogue,
            vectors=_vectors(space),
            label_delay_ms=round(job.label_delay * 1000),
        )
        for schedule in schedules
        if job.judged
    }
    maker = ListMaker(settings, reasons=job.topic is not None)  # Parquet files have no column for them
    return ReplayedModel(name, side_inputs, maker, judges, _periods(job))


def _periods(job: ReplayJob) -> tuple[int, ...]:
    return PERIODS if job.freshness else ()


def _vectors(space: ItemSpace) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    return lambda items: space.vectors[[space.index.get(item, 0) for item in items]]


def _results(job: ReplayJob, command: str, replay: Replay, models: Sequence[ReplayedModel]) -> Results:
    first, *others = models
    ours = [first.judges[PUBLISHED], *([first.judges[FRESHEST]] if job.freshness else [])]
    pairs = [(first.judges[PUBLISHED], other.judges[PUBLISHED]) for other in others]
    pairs += [(first.judges[baseline], judge_of_ours) for judge_of_ours in ours for baseline in BASELINES]
    judges = [*(model.judges[PUBLISHED] for model in models), *(first.judges[baseline] for baseline in BASELINES)]
    return Results(
        source=job.source,
        command=command,
        evaluations=[judge.evaluation() for judge in judges],
        comparisons=[difference(*pair, metric) for pair in pairs for metric in METRICS],
        interleavings=[judge_of_ours.result() for judge_of_ours in replay.interleavers.values()],
        freshness=_curve(first) if job.freshness else [],
    )


def _curve(model: ReplayedModel) -> list[FreshnessPoint]:
    """The worth of lists by how often they are made. Each point is paired with the freshest point."""
    freshest = model.judges[FRESHEST]
    points = []
    for schedule in (FRESHEST, *PERIODIC, PUBLISHED):
        judge = model.judges[schedule]
        everything = judge.evaluation().slices["all"]["all"].metrics
        points.append(
            FreshnessPoint(
                label=schedule.name if schedule is not PUBLISHED else "as published (at the user's own events)",
                seconds=float(schedule.period or 0),
                metrics={name: everything[name] for name in METRICS},
                against_freshest={}
                if schedule is FRESHEST
                else {name: difference(freshest, judge, name).estimate for name in METRICS},
            )
        )
    return points
