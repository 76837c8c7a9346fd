"""`tail`: the recommendations topic."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from freshet.cli.console import clock, duration, emit, moment, out, plain
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, resolve
from freshet.client.connection import NoTopicError
from freshet.client.reader import TopicReader, TopicRecord
from freshet.core.catalogue import decode_item
from freshet.core.decoding import Undecodable, decode
from freshet.core.recommendation import Item, decode_recommendation
from freshet.settings import Settings

SHORT_ITEMS = 3
SOURCE_STYLES = {"model": "green", "cold": "cyan", "popular": "yellow", "explore": "magenta"}

Titles = Mapping[str, str]
_json = msgspec.json.Decoder()


def tail(
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    user: Annotated[str | None, typer.Option(help="Only this user, in full.")] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Start with what is there.")] = False,
    most: Annotated[int | None, typer.Option("--max", min=1, help="Stop after so many lists.")] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop after what is there now; with --from-beginning.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="The bytes as they are, one list a line.")] = False,
    as_json: Json = False,
) -> None:
    """Follow the recommendation lists until Ctrl-C."""
    if raw and as_json:
        raise typer.BadParameter("choose one of --raw and --json")
    if until_end and not from_beginning:
        raise typer.BadParameter("--until-end is for what is there: add --from-beginning")
    settings = resolve(config, directory, kafka=kafka).settings
    key = user.encode() if user is not None else None
    show: Callable[[TopicRecord], None]
    if raw or as_json:
        show = _show_raw if raw else show_json
    else:
        show = partial(show_list, titles=read_titles(settings), whole=user is not None)
    with TopicReader(settings, settings.recommendations_topic) as reader:
        for record in islice(_records(reader, key, from_beginning=from_beginning, until_end=until_end), most):
            show(record)


def _records(reader: TopicReader, key: bytes | None, *, from_beginning: bool, until_end: bool) -> Iterator[TopicRecord]:
    """What is there, or what comes, for ever."""
    if until_end:
        yield from reader.stored(key)
        return
    reader.follow(key, from_beginning=from_beginning)
    while (record := reader.next_record()) is not None:
        yield record


def read_titles(settings: Settings) -> dict[str, str]:
    """The catalogue's titles, as far as the items topic has any."""
    titles = {}
    with suppress(NoTopicError), TopicReader(settings, settings.items_topic) as reader:
        for record in reader.stored():
            item = decode_item(record.value, record.key) if record.value else None
            if item is not None and not isinstance(item, str) and item.title:
                titles[item.item_id] = item.title
    return titles


def as_object(record: TopicRecord) -> dict[str, Any]:
    """A record of the recommendations topic as a JSON object; `list` is null for an erased user."""
    raw = record.value or b"null"
    value = decode(_json, raw)
    if isinstance(value, Undecodable):
        value = raw.decode(errors="backslashreplace")
    return {
        "user_id": (record.key or b"").decode(errors="backslashreplace"),
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "list": value,
    }


def show_json(record: TopicRecord) -> None:
    """Write a record as one JSON line."""
    emit(as_object(record))
    sys.stdout.flush()


def _show_raw(record: TopicRecord) -> None:
    sys.stdout.buffer.write((record.value or b"") + b"\n")
    sys.stdout.flush()


def show_list(record: TopicRecord, titles: Titles, *, whole: bool) -> None:
    """Write a list for people: in one line, or whole with its reasons."""
    who = plain((record.key or b"?").decode(errors="replace"))
    line = Text(clock(record.timestamp), "dim").append(f"  user {who}", "bold")
    if not record.value:
        out.print(line.append("  erased", "red"), soft_wrap=True)
        return
    made = decode_recommendation(record.value)
    if isinstance(made, str):
        out.print(line.append(f"  unreadable: {plain(made)}", "red"), soft_wrap=True)
        return
    line.append(f"  v{made.model_version}")
    line.append(f"  {duration(max(0, made.timings.publish - made.timings.broker)):>6}", "cyan")
    if made.degraded:
        line.append("  degraded", "red")
    elif not made.personalised:
        line.append("  not personalised", "yellow")
    if not whole:
        names = " · ".join(_title(item.item_id, titles) for item in made.items[:SHORT_ITEMS])
        out.print(line.append(f"  {names}"), soft_wrap=True)
        return
    as_of = made.as_of
    line.append(f"  as of event {as_of.partition}@{as_of.offset} of {moment(as_of.ts)}", "dim")
    out.print(line, soft_wrap=True)
    for rank, item in enumerate(made.items, 1):
        out.print(_item_line(rank, item, titles), soft_wrap=True)


def _item_line(rank: int, item: Item, titles: Titles) -> Text:
    title = _title(item.item_id, titles)
    line = Text(f"  {rank:>2}  {title:<36.36} {item.score:>8.3f}  ")
    line.append(f"{item.source:<8}", SOURCE_STYLES.get(item.source, ""))
    if item.reasons:
        reasons = ", ".join(f"{_title(r.item_id, titles)} ({r.type} {r.weight:.0%})" for r in item.reasons)
        line.append(reasons, "dim")
    return line


def _title(item_id: str, titles: Titles) -> str:
    return plain(titles.get(item_id, item_id))
