"""`freshet popularity repair`: the counts of the popularity topic, made again from the events."""

from __future__ import annotations

from collections import Counter

import typer

from freshet.cli.connections import open_producer, require_topics
from freshet.cli.console import emit, say
from freshet.cli.errors import UserError
from freshet.cli.models_topic import members
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, resolve

app = typer.Typer(no_args_is_help=True, help="The popularity counts that workers share.")


@app.callback()
def popularity() -> None:
    """A group of verbs."""


@app.command()
def repair(
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    as_json: Json = False,
) -> None:
    """Count the events topic anew and publish each partition's counts; stop the workers first.

    Users are counted as far back as the events topic goes.
    """
    from freshet.core.popularity import encode_partial
    from freshet.logs.source import open_log
    from freshet.replay.recount import recounted

    settings = resolve(config, directory, kafka=kafka).settings
    require_topics(settings, settings.popularity_topic)
    if running := members(settings):
        raise UserError(f"{len(running)} workers run, whose own counts would replace these: stop them first")
    partials = recounted(open_log("kafka", settings), settings)
    with open_producer(settings) as producer:
        for partial in partials:
            producer.send(settings.popularity_topic, encode_partial(partial), partial.key).get(timeout=30)
    counted: Counter[int] = Counter()
    for partial in partials:
        counted[partial.partition] += len(partial.counts)
    if as_json:
        emit({"partitions": counted})
    else:
        say(f"{len(counted)} partitions counted anew, {counted.total():,} counts")
