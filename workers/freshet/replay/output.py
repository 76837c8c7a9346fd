"""The folder of a replay: lists, dead letters, features and training rows as Parquet parts.

A part is cut when it is full, and at each checkpoint. A checkpoint therefore says which parts count. A replay that
goes on removes the parts after its checkpoint and writes them again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from freshet.core.events import Event
from freshet.core.features import behaviour_features, behaviour_row
from freshet.core.recommendation import Item
from freshet.core.state import Consent, UserState
from freshet.files import written_whole
from freshet.ports import Message
from freshet.replay.actions import Moment
from freshet.replay.list_topic import ListTopic
from freshet.replay.models import ReplayedModel, encodable
from freshet.serving.list_maker import MadeList

PART_ROWS = 20_000
"""Rows gathered in memory for a part (about 2 KB each)."""
_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "list[string]": pa.list_(pa.string()),
    "list[int64]": pa.list_(pa.int64()),
}
_LISTS = pa.schema(
    [
        ("user_id", pa.string()),
        ("ts", pa.int64()),
        ("event_id", pa.string()),
        ("model_version", pa.int64()),
        ("variant", pa.string()),
        ("personalised", pa.bool_()),
        ("items", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("sources", pa.list_(pa.string())),
        ("propensities", pa.list_(pa.float64())),
    ]
)
_DEAD_LETTERS = pa.schema(
    [("key", pa.binary()), ("value", pa.binary()), ("headers", pa.map_(pa.string(), pa.binary()))]
)
_TRAINING_ROWS = pa.schema(
    [
        ("user_id", pa.string()),
        ("recent_items", pa.list_(pa.string())),
        ("recent_types", pa.list_(pa.string())),
        ("recent_times", pa.list_(pa.int64())),
        ("next_item", pa.string()),
        ("next_type", pa.string()),
        ("next_ts", pa.int64()),
    ]
)


class Parts:
    """Rows of one kind, gathered and written as numbered parts of a folder."""

    def __init__(self, folder: Path, schema: pa.Schema, number: int = 0) -> None:
        self.folder = folder
        self.number = number
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """One row, in the order of the schema."""
        self._rows.append(row)
        if len(self._rows) >= PART_ROWS:
            self.cut()

    def cut(self) -> None:
        """Write what was gathered as the next part, whole or not at all."""
        if not self._rows:
            return
        columns = [
            pa.array(list(column), field.type)
            for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{self.number:06d}.parquet"
        write_table(pa.Table.from_arrays(columns, schema=self._schema), path)
        self.number += 1
        self._rows = []

    def discard_behind(self, number: int) -> None:
        """Remove the parts from `number` on: they are behind the checkpoint."""
        for path in sorted(self.folder.glob("part-*.parquet*")):
            if int(path.name[5:11]) >= number:
                path.unlink()
        self.number = number

    def keep(self, condition: Callable[[pa.Table], Any]) -> None:
        """Keep the rows of all parts for which the condition holds."""
        for path in sorted(self.folder.glob("part-*.parquet")):
            table = pq.read_table(path)
            kept = table.filter(condition(table))
            if len(kept) < len(table):
                write_table(kept, path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, whole or not at all."""
    with written_whole(path) as partial:
        pq.write_table(table, partial, compression="zstd")


class FolderOutput:
    """An `Output` of Parquet parts. Features and training rows are written only if they are asked for.

    If there is a `topic`, the lists go to the topic.
    """

    def __init__(
        self,
        folder: Path,
        behaviours: Collection[str],
        *,
        features: bool = False,
        training_rows: bool = False,
        topic: ListTopic | None = None,
    ) -> None:
        self.wants_features = features
        self.wants_training_rows = training_rows
        self._behaviours = behaviours
        self._topic = topic
        fields = [(feature.name, _TYPES[feature.kind]) for feature in behaviour_features(behaviours)]
        stamp = ("event_timestamp", pa.timestamp("us", tz="UTC"))
        self._parts = {
            "lists": Parts(folder / "lists", _LISTS),
            "dead_letters": Parts(folder / "dead_letters", _DEAD_LETTERS),
            "features": Parts(folder / "features", pa.schema([("user_id", pa.string()), stamp, *fields])),
            "training_rows": Parts(folder / "training_rows", _TRAINING_ROWS),
        }

    def dead_letter(self, message: Message) -> None:
        """A record that is no event, with the headers it would have on the dead-letter topic."""
        self._parts["dead_letters"].add((message.key, message.value, list(message.headers)))

    def features(self, moment: Moment) -> None:
        """The user's behaviour row as of the moment; users without consent have none."""
        state = moment.state
        if state.consent is Consent.GIVEN:
            row = behaviour_row(state, self._behaviours)
            self._parts["features"].add((moment.user_id, state.feature_ts, *row))

    def training_row(self, before: UserState, event: Event) -> None:
        """What the user did next, with the state before that moment."""
        self._parts["training_rows"].add(
            (event.user_id, before.items, before.types, before.times, event.item_id, event.type, event.ts)
        )

    def lists(self, model: ReplayedModel, made: Sequence[tuple[Moment, MadeList | None]]) -> None:
        """Published lists; an erased user has none."""
        if self._topic is not None:
            self._topic.add(model.live.version, made)
            return
        for moment, made_list in made:
            if made_list is not None:
                items: list[Item] = made_list.items
                self._parts["lists"].add(
                    (
                        moment.user_id,
                        moment.event.ts,
                        moment.event.event_id,
                        model.live.version,
                        made_list.variant,
                        encodable(moment.state),
                        [item.item_id for item in items],
                        [item.score for item in items],
                        [item.source for item in items],
                        [item.propensity for item in items],
                    )
                )

    async def settle(self) -> None:
        """Publish what waits for the topic; parts are cut when they are full."""
        if self._topic is not None:
            await self._topic.publish()

    def cut(self) -> dict[str, int]:
        """Write all that was gathered; returns how many parts of each kind there are."""
        for parts in self._parts.values():
            parts.cut()
        return {name: parts.number for name, parts in self._parts.items()}

    def restore(self, numbers: dict[str, int]) -> None:
        """Remove the parts that came after those counted in `numbers`."""
        for name, parts in self._parts.items():
            parts.discard_behind(numbers.get(name, 0))

    def forget(self, forgotten: Mapping[str, int]) -> None:
        """Take out the features and training rows of users up to when they last opted out or were erased (ms)."""
        if forgotten:
            self._parts["features"].keep(lambda table: _is_later(table["user_id"], table["event_timestamp"], forgotten))
            self._parts["training_rows"].keep(lambda table: _is_later(table["user_id"], table["next_ts"], forgotten))


def _is_later(users: Any, times: Any, forgotten: Mapping[str, int]) -> Any:
    """Where a row is of another user, or later than the user's time in `forgotten` (ms)."""
    limits = pa.array(forgotten.values(), pa.int64())
    row = pc.index_in(users, value_set=pa.array(forgotten.keys(), pa.string()))
    limit = pc.take(limits, row)
    if pa.types.is_timestamp(times.type):
        times = pc.divide(pc.cast(times, pa.int64()), 1000)
    return pc.or_(pc.is_null(row), pc.fill_null(pc.greater(times, limit), fill_value=True))
