"""`freshet replay`: a log through the serving code, and live runs against it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from freshet.cli.console import command_line, emit, plain, progress, rows, say
from freshet.cli.errors import UserError
from freshet.cli.options import Config, Directory, Json, Kafka, Triton, resolve
from freshet.cli.sweep import read_tried, tell_tried
from freshet.core.decoding import Int64, Undecodable, decode
from freshet.settings import KNOBS, Settings

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from freshet.core.evaluation.results import Estimate, Verification
    from freshet.ports import Record
    from freshet.replay.job import Summary


def replay(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="`kafka`, `kafka:TOPIC`, an archive's folder, FILE.jsonl or FILE.parquet."
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for lists and results.", rich_help_panel="Output"),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option(
            metavar="TOPIC",
            help="A new topic for the lists, instead of Parquet files in --out.",
            rich_help_panel="Output",
        ),
    ] = None,
    items: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.jsonl|kafka", help="The catalogue; `kafka` reads the items topic.", rich_help_panel="Source"
        ),
    ] = None,
    model: Annotated[
        list[int] | None,
        typer.Option(
            "--model",
            metavar="VERSION",
            help="Model version, may be given several times; the live one of `kafka`, else the newest.",
        ),
    ] = None,
    encoder: Annotated[str, typer.Option(metavar="onnx|triton", help="Encode in process, or through Triton.")] = "onnx",
    state: Annotated[str, typer.Option(metavar="memory|rocksdb", help="Where the users' states are kept.")] = "memory",
    speed: Annotated[
        str | None, typer.Option(metavar="10x", help="Event time per wall-clock time; full speed where left out.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="First record time (UTC).", rich_help_panel="Source")
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--until", metavar="TIME", help="Record time to stop before (UTC).", rich_help_panel="Source"),
    ] = None,
    offsets: Annotated[
        list[str] | None,
        typer.Option(metavar="P:FIRST-LAST", help="Offsets of a partition; may be repeated.", rich_help_panel="Source"),
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Judge each list by what the user did next.", rich_help_panel="Evaluation"),
    ] = False,
    freshness: Annotated[
        bool,
        typer.Option(
            "--freshness",
            help="Also judge lists made every minute, hour and day instead.",
            rich_help_panel="Evaluation",
        ),
    ] = False,
    tried: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="KNOB=VALUE,VALUE",
            help=f"Also judge lists with another value of {', '.join(KNOBS)}; may be repeated.",
            rich_help_panel="Evaluation",
        ),
    ] = None,
    burn_in: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.99,
            metavar="SHARE",
            help="First part of the log that is not judged.",
            rich_help_panel="Evaluation",
        ),
    ] = 0.0,
    label_delay: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Time until what a user did is known to the calibration.",
            rich_help_panel="Evaluation",
        ),
    ] = 0.0,
    features: Annotated[
        bool, typer.Option("--features", help="Write every user's behaviour rows as well.", rich_help_panel="Output")
    ] = False,
    training_rows: Annotated[
        bool,
        typer.Option(
            "--training-rows", help="Write rows to train on: state before, behaviour after.", rich_help_panel="Output"
        ),
    ] = False,
    fold_only: Annotated[bool, typer.Option("--fold-only", help="Fold, and make no lists.")] = False,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Records taken at a time.")] = 2048,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare what was really published with the log, and report differences.",
            rich_help_panel="Verification",
        ),
    ] = False,
    feature_users: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="With --verify: users whose online features are compared.",
            rich_help_panel="Verification",
        ),
    ] = 1000,
    config: Config = None,
    directory: Directory = Path(".freshet"),
    kafka: Kafka = None,
    triton: Triton = None,
    json_: Json = False,
) -> None:
    """Replay a log through the serving code: lists, features, evaluation; or verify a live run."""
    settings = resolve(config, directory, kafka=kafka, triton=triton).settings
    for name, value, allowed in (("--encoder", encoder, ("onnx", "triton")), ("--state", state, ("memory", "rocksdb"))):
        if value not in allowed:
            raise UserError(f"{name} is {' or '.join(allowed)}, not {value!r}")
    window = (record_time("--from", start), record_time("--until", end), _offsets(offsets or []))
    command = command_line()
    if verify:
        _verify(settings, source, to, feature_users, command, through_triton=encoder == "triton", as_json=json_)
        return
    if to is None:
        raise UserError("--out DIR says where the lists go")
    if fold_only and (model or evaluate or freshness or tried or topic):
        raise UserError("--fold-only makes no lists: leave out --model, --evaluate, --freshness, --try and --topic")
    if topic and (tried or len(model or ()) > 1):
        raise UserError("--topic takes the lists of one --model: a user's newest list is the one that counts")
    from freshet.ports import Window
    from freshet.replay.job import Job, run_job

    job = Job(
        settings=settings,
        source=source,
        folder=to,
        versions=[] if fold_only else model or [_version(source, settings)],
        window=Window(*window),
        tried=read_tried(tried or []),
        items=_items(items, settings),
        through_triton=encoder == "triton",
        text_encoder=text_encoder_folder(settings),
        states_on_disk=state == "rocksdb",
        speed=_speed(speed),
        judged=evaluate or freshness or bool(tried),
        freshness=freshness,
        burn_in=burn_in,
        label_delay=label_delay,
        features=features,
        training_rows=training_rows,
        topic=topic,
        batch=batch,
    )
    with _bar() as bar:
        summary = asyncio.run(run_job(job, command, resume=resume, started=bar.start, advanced=bar.advance))
    if json_:
        emit(msgspec.to_builtins(summary))
    else:
        _tell(summary, to, settings if tried else None)


class _Bar:
    """How far the replay is, on a terminal."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._advance: Any = lambda _position, _count: None
        self._count = 0

    def start(self, total: int | None) -> None:
        """The number of records is known."""
        self._advance = self._stack.enter_context(progress(total, "replayed"))

    def advance(self, count: int) -> None:
        """So many records more."""
        self._count += count
        self._advance(self._count, self._count)


@contextmanager
def _bar() -> Iterator[_Bar]:
    with ExitStack() as stack:
        yield _Bar(stack)


def _version(source: str, settings: Settings) -> int:
    """What is replayed with where no `--model` is named."""
    return live_version(settings) if source == "kafka" else newest_version(settings)


def live_version(settings: Settings) -> int:
    """The promoted version, or the newest there is where none was promoted yet. Raises `UserError`."""
    return promoted_version(settings) or newest_version(settings)


def promoted_version(settings: Settings) -> int | None:
    """The version that the models topic says is live; None where it says nothing, or is not there.

    Raises `UserError`.
    """
    from freshet.cli.connections import NoTopicError
    from freshet.cli.models_topic import ModelsTopic

    try:
        return ModelsTopic(settings).read().live
    except NoTopicError:
        return None


def newest_version(settings: Settings) -> int:
    """The highest version in the model repository. Raises `UserError` where there is none."""
    from freshet.bundle.bundle import version_numbers
    from freshet.core.rollout import MODEL

    folder = Path(settings.model_repository) / MODEL
    versions = version_numbers(folder)
    if not versions:
        raise UserError(f"{folder} holds no version: train one, or name the repository with FRESHET_MODEL_REPOSITORY")
    return versions[-1]


def text_encoder_folder(settings: Settings) -> Path:
    """The text encoder's folder: the served one, or the one that set-up fetched."""
    from freshet import resources

    return resources.text_encoder_folder(Path(settings.model_repository))


def _items(source: str | None, settings: Settings) -> list[Record]:
    """The catalogue's records; a line of a file may have a `ts`, before which the item is not there."""
    from freshet.logs.source import read_topic
    from freshet.ports import Record

    if source is None:
        return []
    if source == "kafka":
        return list(read_topic(settings, settings.items_topic))
    try:
        lines = Path(source).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines):
        head = decode(_head, line)
        if isinstance(head, Undecodable):
            raise UserError(f"{source}:{number + 1}: not a catalogue item: {head.why}")
        records.append(Record(number, head.ts, head.item_id.encode(), line))
    return records


class _Head(msgspec.Struct):
    item_id: str
    ts: Int64 = -1


_head = msgspec.json.Decoder(_Head)


def _tell(summary: Summary, folder: Path, tried: Settings | None) -> None:
    lines = [(name, f"{count:,}") for name, count in summary.counts.items()]
    lines += [(f"digest of {name}", digest) for name, digest in summary.digests.items()]
    lines.append(("events/s", f"{summary.events_per_second:,.0f}"))
    rows(lines, ("", "bold"))
    results = folder / "results.json"
    if not results.exists():
        return
    from freshet.core.evaluation.results import read_results

    found = read_results(results)
    if tried is not None:
        tell_tried(found, tried.behaviours)
        say(f"results in {results}: `freshet report {results} --out report.html` draws them")
        return
    table: list[tuple[str, ...]] = [("", "HR", "NDCG", "MRR", "judged")]
    for one in found.evaluations:
        whole = one.slices["all"]["all"]
        table.append((one.name, *(_shown(whole.metrics[name]) for name in ("hr", "ndcg", "mrr")), f"{whole.events:,}"))
    table += [
        (point.label, *(_shown(point.metrics[name]) for name in ("hr", "ndcg", "mrr")), "") for point in found.freshness
    ]
    rows(table, ("", "bold", "bold", "", ""))
    for difference in found.comparisons:
        typer.echo(
            f"{difference.candidate} against {difference.baseline}, {difference.metric}: "
            f"{_shown(difference.estimate)}: {difference.verdict}"
        )
    say(f"results in {results}: `freshet report {results} --out report.html` draws them")


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _verify(
    settings: Settings,
    source: str,
    to: Path | None,
    feature_users: int,
    command: str,
    *,
    through_triton: bool,
    as_json: bool,
) -> None:
    from freshet.core.evaluation.results import Results, write_results

    if to is not None and to.exists():
        raise UserError(f"{to} exists: choose another --out")
    found = asyncio.run(_verified(settings, source, feature_users, through_triton=through_triton))
    if to is not None:
        write_results(to, Results(source=source, command=command, verification=found))
    if as_json:
        emit(msgspec.to_builtins(found))
    else:
        rows(
            [("", "compared", "differ")]
            + [(kind, f"{count:,}", f"{found.mismatches[kind]:,}") for kind, count in found.compared.items()],
            ("", "", "bold"),
        )
        if found.unverifiable:
            typer.echo(
                f"{found.unverifiable:,} lists were not verified: compaction has taken their side inputs, "
                "or an erasure their events"
            )
        for one in found.examples:
            typer.echo(f"{one.kind}: user {plain(one.user_id)} at {one.partition}:{one.offset}: {plain(one.detail)}")
    if any(found.mismatches.values()):
        raise typer.Exit(1)


async def _verified(settings: Settings, source: str, feature_users: int, *, through_triton: bool) -> Verification:
    from freshet.replay.job import open_encoder
    from freshet.replay.verify import verify

    async with open_encoder(settings, text_encoder_folder(settings), through_triton=through_triton) as encoder:
        return await verify(settings, source, encoder, feature_users)


def _speed(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        speed = float(value.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if speed <= 0:
        raise UserError(f"--speed is a number of times such as 10x, not {value!r}")
    return speed


def record_time(option: str, value: str | None) -> int | None:
    """A moment in ms, UTC where no zone is given. Raises `UserError`."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise UserError(f"{option} is a time such as 2026-11-25T04:00, not {value!r}") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _offsets(values: Sequence[str]) -> dict[int, tuple[int, int | None]]:
    ranges: dict[int, tuple[int, int | None]] = {}
    for value in values:
        match = re.fullmatch(r"(\d+):(\d+)-(\d*)", value)
        if match is None:
            raise UserError(f"--offsets is PARTITION:FIRST-LAST such as 0:100-199, not {value!r}")
        partition, first, last = match.groups()
        ranges[int(partition)] = int(first), int(last) if last else None
    return ranges
