"""Rows of an archive: each record as it was, and beside it the decoded fields.

The raw columns are the log. They give every record back, poison included. The decoded columns are for analysis. If
the record is no event, the decoded columns are null and `bad_reason` says why. If `bad_reason` is `erased`, the row
only holds the offset of a record that was taken out with its user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from freshet.core.catalogue import CatalogueItem, decode_item
from freshet.core.events import ERASE, BadEvent, Event, decode_event
from freshet.ports import Fetched, Record
from freshet.settings import Settings

SCHEMA_VERSION = "1"
SCHEMA_KEY = b"freshet.schema"
PARTITION_KEY = b"freshet.partition"

_TIME = pa.timestamp("ms", tz="UTC")
_RAW = [
    pa.field("partition", pa.int32(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("timestamp", _TIME, nullable=False),
    pa.field("key", pa.binary()),
    pa.field("value", pa.binary()),
    pa.field("headers", pa.map_(pa.string(), pa.binary()), nullable=False),
]
EVENTS = pa.schema(
    [
        *_RAW,
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("type", pa.string()),
        ("event_time", _TIME),
        ("item_id", pa.string()),
        ("amount", pa.float64()),
        ("session_id", pa.string()),
        ("context", pa.string()),
        ("bad_reason", pa.string()),
    ]
)
ITEMS = pa.schema(
    [
        *_RAW,
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("category", pa.string()),
        ("price", pa.float64()),
        ("available", pa.bool_()),
    ]
)
RECORDS = pa.schema(_RAW)
_RECORD = ["offset", "timestamp", "key", "value", "headers"]
_REASON = "bad_reason"
ERASED = "erased"


def event_rows(partition: int, records: Sequence[Fetched], settings: Settings) -> pa.Table:
    """Records of the events topic as rows of `EVENTS`."""
    decoded = [
        decode_event(
            record.value, record.key, settings.behaviours, record.headers, settings.latest_ts(record.timestamp)
        )
        for record in records
    ]
    events = [record if isinstance(record, Event) else None for record in decoded]
    columns = [
        [event and event.event_id for event in events],
        [event and event.user_id for event in events],
        [event and event.type for event in events],
        [event and event.ts for event in events],
        [event and event.item_id for event in events],
        [event and event.amount for event in events],
        [event and event.session_id for event in events],
        [event and _json(event.context) for event in events],
        [record.reason.value if isinstance(record, BadEvent) else None for record in decoded],
    ]
    return _table(partition, records, columns, EVENTS)


def item_rows(partition: int, records: Sequence[Fetched]) -> pa.Table:
    """Records of the items topic as rows of `ITEMS`. A tombstone has only its raw columns."""
    decoded = [decode_item(record.value, record.key) if record.value else "" for record in records]
    items = [record if isinstance(record, CatalogueItem) else None for record in decoded]
    columns = [
        [item and item.item_id for item in items],
        [item and item.title for item in items],
        [item and item.description for item in items],
        [item and item.category for item in items],
        [item and item.price for item in items],
        [item and item.available for item in items],
    ]
    return _table(partition, records, columns, ITEMS)


def record_rows(partition: int, records: Sequence[Fetched]) -> pa.Table:
    """Records of any topic as rows of `RECORDS`."""
    return _table(partition, records, [], RECORDS)


def read_records(file: pq.ParquetFile, rows: int, row_groups: Sequence[int]) -> Iterator[list[Record]]:
    """The records of some row groups, at most `rows` at a time. Raises `OSError`, `pyarrow.ArrowException`."""
    reason = [_REASON] if _REASON in file.schema_arrow.names else []
    for rows_read in file.iter_batches(rows, row_groups=row_groups, columns=_RECORD + reason):
        batch = rows_read
        if reason and batch.column(_REASON).null_count < len(batch):
            batch = batch.filter(pc.fill_null(pc.not_equal(batch.column(_REASON), ERASED), fill_value=True))
        offsets, times, keys, values = (batch.column(name) for name in _RECORD[:4])
        headers = batch.column("headers")
        pairs = [tuple(pair) for pair in headers.to_pylist()] if len(headers.items) else [()] * len(batch)
        if len(batch):
            yield [
                Record(*row)
                for row in zip(
                    offsets.to_pylist(),
                    times.cast(pa.int64()).to_pylist(),
                    keys.to_pylist(),
                    values.to_pylist(),
                    pairs,
                    strict=True,
                )
            ]


def erasures(table: pa.Table) -> dict[bytes, int]:
    """The users, by key, who ask in these rows to be erased, and the offset of each one's last such event."""
    asked = table.filter(pc.equal(table["type"], ERASE))
    return dict(zip(asked["key"].to_pylist(), asked["offset"].to_pylist(), strict=True))


def holds(table: pa.Table, users: Mapping[bytes, int]) -> bool:
    """Whether a table with `key` and `offset` has rows of users up to an offset of each."""
    return bool(pc.any(_earlier(table, users)).as_py())


def without(table: pa.Table, users: Mapping[bytes, int]) -> pa.Table:
    """The rows of the events topic with users taken out, up to the offset at which each user was erased.

    The offset and the time of each row stay. The event that asked for the erasure stays, too. This event keeps what
    the user does later out of every fold.
    """
    gone = pc.and_(_earlier(table, users), pc.invert(_asked(table, users)))
    left = table.filter(gone)
    empty = {name: pa.nulls(len(left), table.schema.field(name).type) for name in table.schema.names[6:]}
    columns = {
        **{name: left[name] for name in ("partition", "offset", "timestamp")},
        "key": pa.nulls(len(left), pa.binary()),
        "value": pa.nulls(len(left), pa.binary()),
        "headers": pa.array([[]] * len(left), table.schema.field("headers").type),
        **empty,
        _REASON: pa.array([ERASED] * len(left), pa.string()),
    }
    held = pa.Table.from_arrays([columns[name] for name in table.schema.names], schema=table.schema)
    return pa.concat_tables([table.filter(pc.invert(gone)), held]).sort_by("offset")


def _earlier(table: pa.Table, users: Mapping[bytes, int]) -> Any:
    """Where a row is of one of the users, and not later than their offset."""
    limit = _limit(table, users)
    return pc.fill_null(pc.less_equal(table["offset"], limit), fill_value=False)


def _asked(table: pa.Table, users: Mapping[bytes, int]) -> Any:
    """Where a row is what asked for a user's erasure."""
    return pc.fill_null(pc.equal(table["offset"], _limit(table, users)), fill_value=False)


def _limit(table: pa.Table, users: Mapping[bytes, int]) -> Any:
    keys, offsets = pa.array(users.keys(), pa.binary()), pa.array(users.values(), pa.int64())
    return pc.take(offsets, pc.index_in(table["key"], keys))


def _table(partition: int, records: Sequence[Fetched], decoded: list[Any], schema: pa.Schema) -> pa.Table:
    columns: list[Any] = [
        [partition] * len(records),
        [record.offset for record in records],
        [record.timestamp for record in records],
        [record.key for record in records],
        [record.value for record in records],
        [record.headers for record in records],
        *decoded,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=marked(schema, partition))


def marked(schema: pa.Schema, partition: int) -> pa.Schema:
    """The schema of a partition's files, which say of themselves what they are."""
    return schema.with_metadata({SCHEMA_KEY: SCHEMA_VERSION, PARTITION_KEY: str(partition)})


def _json(context: dict[str, object] | None) -> str | None:
    return None if context is None else msgspec.json.encode(context).decode()
