"""`tail`: the recommendations topic."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Annotated, Any

import msgspec
import typer
from kafka.consumer.fetcher import ConsumerRecord
from rich.text import Text

from freshet.cli.connections import open_consumer, partition_of, partitions_of, read_all
from freshet.cli.console import clock, duration, emit, moment, out, plain
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, resolve
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
    with open_consumer(settings) as consumer:
        partitions = partitions_of(consumer, settings, settings.recommendations_topic)
        if key is not None:
            partitions = [partition_of(key, partitions)]
        show: Callable[[ConsumerRecord], None]
        if raw or as_json:
            show = _show_raw if raw else show_json
        else:
            show = partial(show_list, titles=read_titles(consumer, settings), whole=user is not None)
        records = read_all(consumer, partitions) if until_end else _follow(consumer, partitions, from_beginning)
        wanted = (record for record in records if key is None or record.key == key)
        for record in islice(wanted, most):
            show(record)


def _follow(consumer: Any, partitions: list[Any], from_beginning: bool) -> Iterator[ConsumerRecord]:
    """What comes, for ever."""
    consumer.assign(partitions)
    if from_beginning:
        consumer.seek_to_beginning(*partitions)
    else:
        consumer.seek_to_end(*partitions)
    while True:
        for records in consumer.poll(timeout_ms=200).values():
            yield from records


def read_titles(consumer: Any, settings: Settings) -> dict[str, str]:
    """The catalogue's titles, as far as the items topic has any."""
    if not consumer.partitions_for_topic(settings.items_topic):
        return {}
    titles = {}
    for record in read_all(consumer, partitions_of(consumer, settings, settings.items_topic)):
        item = decode_item(record.value, record.key) if record.value else None
        if item is not None and not isinstance(item, str) and item.title:
            titles[item.item_id] = item.title
    return titles


def as_object(record: ConsumerRecord) -> dict[str, Any]:
    """A record of the recommendations topic as a JSON object; `list` is null for an erased user."""
    value = decode(_json, record.value) if record.value else None
    if isinstance(value, Undecodable):
        value = record.value.decode(errors="backslashreplace")
    return {
        "user_id": (record.key or b"").decode(errors="backslashreplace"),
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "list": value,
    }


def show_json(record: ConsumerRecord) -> None:
    """Write a record as one JSON line."""
    emit(as_object(record))
    sys.stdout.flush()


def _show_raw(record: ConsumerRecord) -> None:
    sys.stdout.buffer.write((record.value or b"") + b"\n")
    sys.stdout.flush()


def show_list(record: ConsumerRecord, titles: Titles, *, whole: bool) -> None:
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
