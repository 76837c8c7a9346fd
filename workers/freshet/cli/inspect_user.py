"""`inspect`: everything that is held of one user."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from freshet.adapters.source import changelog_topic
from freshet.cli.console import emit, moment, out, plain
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, resolve
from freshet.cli.tail import Titles, as_object, read_titles, show_list
from freshet.client.connection import NoTopicError
from freshet.client.reader import TopicReader, TopicRecord
from freshet.core.state import Consent, UserState, decode_state
from freshet.settings import Settings

SHOWN_EVENTS = 10
SHOWN_VALUES = 4


def inspect_user(
    user: Annotated[str, typer.Argument(help="User id.")],
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    lists: Annotated[int, typer.Option(min=0, help="How many of the last lists.")] = 1,
    as_json: Json = False,
) -> None:
    """Show a user's state, features and last lists."""
    settings = resolve(config, directory, kafka=kafka).settings
    key = user.encode()
    state = read_state(settings, key)
    last = read_lists(settings, key, lists)
    titles = {} if as_json else read_titles(settings)
    if state is None and not last:
        raise UserError(f"nothing is held of user {user}")
    features, fault = _features(settings, user)
    if as_json:
        emit(
            {
                "user_id": user,
                "state": _as_object(state) if state is not None else None,
                "features": features,
                "features_error": fault,
                "lists": [as_object(record) for record in last],
            }
        )
        return
    _heading("state")
    if state is None:
        out.print("  none in the changelog")
    else:
        _show_state(state, titles)
    _heading("features")
    out.print(f"  {plain(fault)}" if fault else "\n".join(_feature_lines(features)) or "  none", soft_wrap=True)
    _heading("last list" if len(last) == 1 else "last lists")
    for record in last:
        show_list(record, titles, whole=True)
    if not last:
        out.print("  none")


def read_state(settings: Settings, key: bytes) -> UserState | None:
    """The user's newest state in the changelog. Raises `UserError`."""
    topic = changelog_topic(settings.group)
    try:
        with TopicReader(settings, topic) as reader:
            found = reader.newest(key)
    except NoTopicError:
        raise UserError(f"topic {topic} does not exist: no worker of group {settings.group} has run yet") from None
    if not found or not found[0].value:
        return None
    try:
        return decode_state(found[0].value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UserError(f"{topic} offset {found[0].offset} holds no user state: {error}") from None


def read_lists(settings: Settings, key: bytes, count: int) -> list[TopicRecord]:
    """The user's newest lists, newest first."""
    with TopicReader(settings, settings.recommendations_topic) as reader:
        return reader.newest(key, count) if count else []


def _features(settings: Settings, user: str) -> tuple[dict[str, Any], str | None]:
    """What the online store holds, or why it cannot be read."""
    try:
        from freshet.adapters.feast import open_feature_store

        store = open_feature_store(settings)
        try:
            return asyncio.run(store.read(user)), None
        finally:
            store.close()
    except Exception as error:
        return {}, f"the feature store cannot be read: {error}"


def _as_object(state: UserState) -> dict[str, Any]:
    return {
        "partition": state.partition,
        "offset": state.offset,
        "consent": state.consent.name.lower(),
        "folded": state.folded,
        "last_ts": state.last_ts,
        "counts": state.counts,
        "spend": state.spend,
        "items": state.items,
        "types": state.types,
        "times": list(state.times),
        "seen": state.seen,
    }


def _show_state(state: UserState, titles: Titles) -> None:
    consent = "" if state.consent is Consent.GIVEN else f", {state.consent.name.lower().replace('_', ' ')}"
    counts = ", ".join(f"{count:,} {plain(kind)}" for kind, count in state.counts.items()) or "no events"
    out.print(f"  as of event {state.partition}@{state.offset}: {counts}{consent}", soft_wrap=True)
    if state.spend:
        spend = ", ".join(f"{plain(kind)} {amount:,.2f}" for kind, amount in state.spend.items())
        out.print(f"  spent: {spend}", soft_wrap=True)
    recent = list(zip(state.times, state.types, state.items, strict=True))[-SHOWN_EVENTS:]
    for ts, kind, item in reversed(recent):
        line = Text(f"  {moment(ts)}  ", "dim").append(f"{plain(kind):<10}", "bold")
        out.print(line.append(plain(titles.get(item, item)), ""), soft_wrap=True)
    older = len(state.items) - len(recent) + len(state.seen)
    if older:
        out.print(Text(f"  and {older:,} older items", "dim"))


def _feature_lines(features: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in sorted(features.items()):
        if value is None:
            shown = "-"
        elif isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
            parts = list(value)
            tail = ", ".join(f"{v:.3f}" if isinstance(v, float) else plain(str(v)) for v in parts[-SHOWN_VALUES:])
            shown = f"{len(parts)}: {'…, ' if len(parts) > SHOWN_VALUES else ''}{tail}"
        else:
            shown = plain(str(value))
        lines.append(f"  {name:<18} {shown}")
    return lines


def _heading(text: str) -> None:
    out.print(Text(text, "bold underline"))
