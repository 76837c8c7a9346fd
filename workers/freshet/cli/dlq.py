"""`dlq`: the dead letters, shown and sent again."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import typer
from kafka.consumer.fetcher import ConsumerRecord
from rich.text import Text

from freshet.cli.connections import open_consumer, open_producer, partitions_of, read_all, require_topics, why
from freshet.cli.console import emit, moment, out, plain, progress, say
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, resolve
from freshet.core.events import DEAD_LETTER_HEADERS, BadReason, DeadLetterHeaders
from freshet.settings import Settings

REPLAYED_FROM = "replayed_from"
"""Header of a replayed record: topic, partition and offset of its dead letter."""
PREVIEW = 100
ALWAYS = tuple(field.name for field in msgspec.structs.fields(DeadLetterHeaders) if field.required)
"""Headers that every dead letter has."""

app = typer.Typer(help="Dead letters: bad input with its reason.", no_args_is_help=True)

Reason = Annotated[str | None, typer.Option(help="Only those with this reason.")]


class DeadLetter(msgspec.Struct, frozen=True):
    """One record of the dead-letter topic."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    reason: str
    detail: str
    origin_topic: str
    origin_partition: str
    origin_offset: str
    sha256: str
    truncated: bool = False
    """Whether key, value or headers are cut, so that the record cannot be sent again."""
    own_headers: tuple[tuple[str, bytes | None], ...] = ()
    """The headers that the record had to begin with."""

    @property
    def origin(self) -> str:
        """Where the record was first read."""
        return f"{self.origin_topic} {self.origin_partition}@{self.origin_offset}"

    def as_object(self) -> dict[str, Any]:
        """As a JSON object; the exact bytes are in base64, a readable form stands beside them."""
        fields = msgspec.structs.asdict(self)
        for name in ("key", "value"):
            raw = fields[name]
            fields[name] = None if raw is None else raw.decode(errors="backslashreplace")
            fields[f"{name}_base64"] = None if raw is None else base64.b64encode(raw).decode()
        fields["own_headers"] = {name: (raw or b"").decode(errors="backslashreplace") for name, raw in self.own_headers}
        return fields


@app.command("list")
def list_letters(
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    reason: Reason = None,
    most: Annotated[int, typer.Option("--max", min=1, help="Show at most so many, the newest.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the dead letters, newest first."""
    settings = resolve(config, directory, kafka=kafka).settings
    letters = sorted(_read(settings, reason), key=lambda letter: letter.timestamp, reverse=True)
    if as_json:
        for letter in letters[:most]:
            emit(letter.as_object())
        return
    if not letters:
        out.print(f"no dead letters in {settings.dlq_topic}" + (f" with reason {reason}" if reason else ""))
        return
    for letter in letters[:most]:
        line = Text(f"{moment(letter.timestamp)}  ", "dim").append(plain(letter.reason), "bold red")
        line.append(f"  {plain(letter.origin)}  key {_preview(letter.key, PREVIEW)}", "")
        out.print(line, soft_wrap=True)
        out.print(f"    {plain(letter.detail)}", soft_wrap=True)
        out.print(Text(f"    {_preview(letter.value, PREVIEW)}", "dim"), soft_wrap=True)
    counts = Counter(letter.reason for letter in letters)
    total = ", ".join(f"{count:,} {plain(name)}" for name, count in counts.most_common())
    out.print(f"{len(letters):,} in all: {total}", soft_wrap=True)


@app.command()
def replay(
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    reason: Reason = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent.")] = False,
    as_json: Json = False,
) -> None:
    """Send dead letters back to the events topic they came from, byte for byte, each distinct record once.

    A letter that names another origin is left out: whoever may write dead letters may not write models so.
    Records that are still bad come back as new dead letters. A record that was folded meanwhile is skipped by
    its event id: repeating a replay does no harm.
    """
    settings = resolve(config, directory, kafka=kafka).settings
    found = list(_read(settings, reason))
    own = [letter for letter in found if letter.origin_topic == settings.events_topic]
    letters = [letter for letter in own if not letter.truncated]
    distinct = {(letter.origin_topic, letter.key, letter.value): letter for letter in reversed(letters)}
    sent: Counter[str] = Counter()
    if not dry_run and distinct:
        sent = _send(settings, list(reversed(distinct.values())))
    else:
        sent.update(letter.reason for letter in distinct.values())
    total = sum(sent.values())
    repeats = len(letters) - len(distinct)
    foreign, cut = len(found) - len(own), len(own) - len(letters)
    if as_json:
        left_out = {"repeats_left_out": repeats, "truncated_left_out": cut, "foreign_left_out": foreign}
        emit({"replayed": total, **left_out, "reasons": dict(sent), "dry_run": dry_run})
        return
    verb = "would be sent again" if dry_run else "sent again"
    reasons = ", ".join(f"{count:,} {plain(name)}" for name, count in sent.most_common())
    say(
        f"{total:,} {verb}"
        + (f": {reasons}" if reasons else "")
        + (f"; {repeats:,} repeats left out" if repeats else "")
    )
    if foreign:
        say(f"{foreign:,} name another origin than {settings.events_topic} and are left out")
    if cut:
        say(
            f"{cut:,} cannot be sent again, for they do not hold the whole record: "
            "`freshet dlq list` says where the record stands"
        )


def _read(settings: Settings, reason: str | None) -> Iterator[DeadLetter]:
    with open_consumer(settings) as consumer:
        for record in read_all(consumer, partitions_of(consumer, settings, settings.dlq_topic)):
            letter = _letter(record)
            if reason is None or letter.reason == reason:
                yield letter


def _letter(record: ConsumerRecord) -> DeadLetter:
    headers = {name: (raw or b"").decode(errors="backslashreplace") for name, raw in record.headers}
    own = tuple((name, raw) for name, raw in record.headers if name not in {*DEAD_LETTER_HEADERS, REPLAYED_FROM})
    return DeadLetter(
        record.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        **{name: headers.get(name, "?") for name in ALWAYS},
        truncated=headers.get("reason") == BadReason.UNREADABLE or "truncated" in headers,
        own_headers=own,
    )


def _send(settings: Settings, letters: list[DeadLetter]) -> Counter[str]:
    """Send each letter to its origin, and wait for all letters. Raises `UserError` if a letter does not arrive."""
    sent: Counter[str] = Counter()
    failures: list[BaseException] = []
    require_topics(settings, *{letter.origin_topic for letter in letters})
    with open_producer(settings, linger_ms=5) as producer, progress(len(letters), "sent") as advance:
        for number, letter in enumerate(letters, 1):
            mark = f"{settings.dlq_topic}/{letter.partition}/{letter.offset}".encode()
            future = producer.send(
                letter.origin_topic, letter.value, letter.key, [*letter.own_headers, (REPLAYED_FROM, mark)]
            )
            future.add_callback(lambda _, reason: sent.update([reason]), reason=letter.reason)
            future.add_errback(failures.append)
            advance(number, number)
        producer.flush()
    if failures:
        raise UserError(f"{len(failures):,} of {len(letters):,} did not arrive: {why(failures[0])}")
    return sent


def _preview(raw: bytes | None, width: int) -> str:
    if raw is None:
        return "-"
    text = plain(raw[: 2 * width].decode(errors="backslashreplace"))
    return text if len(text) <= width else text[: width - 1] + "…"
