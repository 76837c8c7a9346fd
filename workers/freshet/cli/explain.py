"""`explain`: which of a user's own events raised an item, by leaving each of them out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.text import Text

from freshet.cli.console import emit, moment, out, plain
from freshet.cli.errors import UserError
from freshet.cli.inspect_user import read_lists, read_state
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, resolve
from freshet.cli.tail import Titles, read_titles
from freshet.cli.versions import live_version, text_encoder_folder
from freshet.core.recommendation import decode_recommendation
from freshet.core.state import Consent, UserState
from freshet.settings import Settings

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from freshet.serving.explanation import ExplainedItem


def explain(
    user: Annotated[str, typer.Argument(help="User id.")],
    item: Annotated[
        str | None, typer.Argument(help="Item id; the items of the user's last list where left out.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many events of each item.")] = 3,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    as_json: Json = False,
) -> None:
    """Say which of a user's own events raised an item: its score with all of them, and without each."""
    settings = resolve(config, directory, kafka=kafka).settings
    state = read_state(settings, user.encode())
    last = read_lists(settings, user.encode(), 1)
    titles = read_titles(settings)
    if state is None or state.consent is not Consent.GIVEN or not state.length:
        raise UserError(f"no events are held of user {user}: their lists are the popular items, nothing of theirs")
    made = decode_recommendation(last[0].value) if last and last[0].value else None
    if isinstance(made, str):
        raise UserError(f"the last record of user {user} in {settings.recommendations_topic} is {made}")
    version = made.model_version if made is not None else live_version(settings)
    wanted = [item] if item is not None else [slot.item_id for slot in made.items] if made is not None else []
    if not wanted:
        raise UserError(f"user {user} has no list: name an item")
    found = asyncio.run(_explained(settings, version, state, wanted, top))
    if as_json:
        emit({"user_id": user, "model_version": version, "items": msgspec.to_builtins(found)})
    else:
        if item is None and made is not None and made.degraded:
            out.print(Text("made while the encoder was away; this is what the encoder says of it now", "yellow"))
        _tell(found, state, titles)


async def _explained(
    settings: Settings, version: int, state: UserState, wanted: list[str], top: int
) -> list[ExplainedItem]:
    from freshet.logs.source import read_topic
    from freshet.replay.job import open_encoder
    from freshet.serving.explanation import explain as explain_items
    from freshet.serving.live_versions import LiveVersions

    async with open_encoder(settings, text_encoder_folder(settings), through_triton=False) as encoder:
        model = LiveVersions(
            encoder, Path(settings.model_repository), Path(settings.trusted_keys), settings.text_fields
        )
        live = await model.start(version)
        model.apply_items(list(read_topic(settings, settings.items_topic)))
        await model.settle()
        for item_id in wanted:
            if item_id not in live.space.index:
                raise UserError(
                    f"version {version} has no place for item {item_id}: it is not in the catalogue with a text"
                )
        return await explain_items(encoder, live, state, wanted, top)


def _tell(found: list[ExplainedItem], state: UserState, titles: Titles) -> None:
    for explained in found:
        out.print(
            Text(plain(titles.get(explained.item_id, explained.item_id)), "bold"),
            Text(f" {explained.encoder_score:.3f}", "dim"),
        )
        for event in explained.raised_by:
            line = Text(f"  +{event.loss:.3f}  ", "green").append(f"{plain(event.type):<10}", "")
            line.append(plain(titles.get(event.item_id, event.item_id)), "").append(f"  {moment(event.ts)}", "dim")
            out.print(line, soft_wrap=True)
        if not explained.raised_by:
            alone = "there is but one event, and none can be left out" if state.length == 1 else "no event raised it"
            out.print(Text(f"  {alone}: popularity, or the model by itself", "dim"), soft_wrap=True)
