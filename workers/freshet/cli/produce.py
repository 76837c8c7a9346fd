"""`produce`: JSON lines into the events or items topic."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import typer

from freshet.cli.console import emit, plain, progress, say
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, resolve
from freshet.client.events import Outbox, as_workers_see, event_key
from freshet.core.catalogue import decode_item
from freshet.core.decoding import Undecodable
from freshet.core.events import BadEvent
from freshet.core.lines import item_line
from freshet.settings import Settings

SHOWN_BAD_LINES = 20
"""Bad lines reported one by one; the rest are counted."""


class Line(NamedTuple):
    """A line ready to send, or what is wrong with it."""

    key: bytes | None
    fault: str | None


Judge = Callable[[bytes], Line]


def event_judge(settings: Settings) -> Judge:
    """Judges a line as the worker will."""

    def judge(line: bytes) -> Line:
        key, event = as_workers_see(settings, line)
        return Line(key, f"{event.reason}: {event.detail}" if isinstance(event, BadEvent) else None)

    return judge


def judge_item(line: bytes) -> Line:
    """Judge a catalogue line."""
    named = item_line(line)
    key = b"" if isinstance(named, Undecodable) else named.item_id.encode()
    item = decode_item(line, key)
    return Line(key, item if isinstance(item, str) else None)


def judge_nothing(line: bytes) -> Line:
    """Take a line as it is, keyed by its user where it names one."""
    return Line(event_key(line), None)


def produce(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="JSON lines; `-` reads standard input.")],
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    items: Annotated[bool, typer.Option("--items", help="Catalogue items, into the items topic.")] = False,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Lines a second; as fast as it goes without.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad line.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send events unchecked: the worker dead-letters the bad ones.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send JSON lines to the events topic, keyed by user.

    A bad line is reported with its number and left out. If any line is bad, the exit status is 1.
    """
    if raw and (items or strict):
        raise typer.BadParameter("--raw goes with neither --items nor --strict")
    settings = resolve(config, directory, kafka=kafka).settings
    topic = settings.items_topic if items else settings.events_topic
    judge = judge_nothing if raw else judge_item if items else event_judge(settings)
    began = time.monotonic()
    with _open(file) as (source, size):
        outbox = Outbox(settings, topic)
        try:
            bad = _send_lines(source, size, outbox, judge, rate=rate, strict=strict)
        finally:
            outbox.flush()
    seconds = time.monotonic() - began
    if as_json:
        emit({"topic": topic, "sent": outbox.sent, "bad": bad, "failed": outbox.failed, "seconds": round(seconds, 3)})
    else:
        extra = f", {bad:,} bad left out" if bad else ""
        say(f"{outbox.sent:,} sent to {topic} in {seconds:.1f} s ({outbox.sent / seconds:,.0f}/s){extra}")
    if outbox.failed:
        raise UserError(f"{outbox.failed:,} lines did not arrive: {outbox.failure}")
    if bad:
        raise typer.Exit(1)


def _send_lines(
    source: BinaryIO, size: int | None, outbox: Outbox, judge: Judge, *, rate: float | None, strict: bool
) -> int:
    """Send the good lines; returns the number of bad ones. Raises `UserError` at the first one where `strict`."""
    bad = queued = position = 0
    began = time.monotonic()
    with progress(size, "sent") as advance:
        for number, text in enumerate(source, 1):
            position += len(text)
            line = text.strip()
            if not line:
                continue
            key, fault = judge(line)
            if fault is not None:
                if strict:
                    raise UserError(f"line {number}: {fault}")
                bad += 1
                if bad <= SHOWN_BAD_LINES:
                    say(f"line {number}: {plain(fault)}")
                continue
            if rate is not None and (wait := began + queued / rate - time.monotonic()) > 0:
                time.sleep(wait)
            outbox.send(key, line)
            queued += 1
            if queued % 100 == 0 or rate is not None:
                advance(position, queued)
    if bad > SHOWN_BAD_LINES:
        say(f"… and {bad - SHOWN_BAD_LINES:,} more bad lines")
    return bad


@contextmanager
def _open(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    if file == "-":
        yield sys.stdin.buffer, None
        return
    path = Path(file)
    try:
        with path.open("rb") as source:
            yield source, path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{file}: {error.strerror}") from None
