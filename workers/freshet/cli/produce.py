"""`produce`: JSON lines into the events or items topic."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import typer

from freshet.cli.connections import open_producer, require_topics, why
from freshet.cli.console import emit, plain, progress, say
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, resolve
from freshet.core.catalogue import decode_item
from freshet.core.decoding import Undecodable
from freshet.core.events import BadEvent, decode_event
from freshet.core.lines import item_line, user_line
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
        key = _key_of_event(line)
        event = decode_event(
            line, key or b"", settings.behaviours, latest_ts=settings.latest_ts(int(time.time() * 1000))
        )
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
    return Line(_key_of_event(line), None)


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

    A bad line is reported with its number and left out; the exit status is then 1.
    """
    if raw and (items or strict):
        raise typer.BadParameter("--raw goes with neither --items nor --strict")
    settings = resolve(config, directory, kafka=kafka).settings
    topic = settings.items_topic if items else settings.events_topic
    judge = judge_nothing if raw else judge_item if items else event_judge(settings)
    began = time.monotonic()
    with _open(file) as (source, size):
        require_topics(settings, topic)
        with open_producer(settings, linger_ms=5, batch_size=131_072) as producer:
            sender = _Sender(producer, topic)
            try:
                bad = _send_lines(source, size, sender, judge, rate=rate, strict=strict)
            finally:
                sender.finish()
    seconds = time.monotonic() - began
    if as_json:
        emit({"topic": topic, "sent": sender.sent, "bad": bad, "failed": sender.failed, "seconds": round(seconds, 3)})
    else:
        extra = f", {bad:,} bad left out" if bad else ""
        say(f"{sender.sent:,} sent to {topic} in {seconds:.1f} s ({sender.sent / seconds:,.0f}/s){extra}")
    if sender.failed:
        raise UserError(f"{sender.failed:,} lines did not arrive: {sender.failure}")
    if bad:
        raise typer.Exit(1)


def _key_of_event(line: bytes) -> bytes | None:
    named = user_line(line)
    return None if isinstance(named, Undecodable) else named.user_id.encode()


class _Sender:
    """Sends lines and counts the acknowledged ones."""

    def __init__(self, producer: Any, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._outcomes: Counter[str] = Counter()
        self.failure = ""

    @property
    def sent(self) -> int:
        """Lines that the broker has acknowledged."""
        return self._outcomes["sent"]

    @property
    def failed(self) -> int:
        """Lines that it has refused, or not taken in time."""
        return self._outcomes["failed"]

    def send(self, key: bytes | None, value: bytes) -> None:
        """Queue a line."""
        future = self._producer.send(self._topic, value, key)
        future.add_callback(lambda _: self._outcomes.update(["sent"]))
        future.add_errback(self._fail)

    def finish(self) -> None:
        """Wait until every line is acknowledged or has failed."""
        self._producer.flush()

    def _fail(self, error: BaseException) -> None:
        self._outcomes["failed"] += 1
        self.failure = self.failure or why(error)


def _send_lines(
    source: BinaryIO, size: int | None, sender: _Sender, judge: Judge, *, rate: float | None, strict: bool
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
            sender.send(key, line)
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
