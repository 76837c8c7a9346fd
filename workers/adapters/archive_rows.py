"""Rows of an archive: a record as it was, and beside it what was decoded of it.

The raw columns are the log: they give every record back, poison included.
The decoded ones are for whoever analyses; they are null where the record is
no event, and `bad_reason` then says why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from workers.core.catalogue import CatalogueItem, decode_item
from workers.core.events import BadEvent, Event, decode_event
from workers.ports import Fetched, Record

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
_RECORD = ["offset", "timestamp", "key", "value", "headers"]


def event_rows(partition: int, records: Sequence[Fetched], behaviours: Collection[str]) -> pa.Table:
    """Records of the events topic as rows of `EVENTS`."""
    decoded = [decode_event(one.value, one.key, behaviours, one.headers) for one in records]
    events = [one if isinstance(one, Event) else None for one in decoded]
    columns = [
        [event and event.event_id for event in events],
        [event and event.user_id for event in events],
        [event and event.type for event in events],
        [event and event.ts for event in events],
        [event and event.item_id for event in events],
        [event and event.amount for event in events],
        [event and event.session_id for event in events],
        [event and _json(event.context) for event in events],
        [one.reason.value if isinstance(one, BadEvent) else None for one in decoded],
    ]
    return _table(partition, records, columns, EVENTS)


def item_rows(partition: int, records: Sequence[Fetched]) -> pa.Table:
    """Records of the items topic as rows of `ITEMS`; a tombstone has its raw columns alone."""
    decoded = [decode_item(one.value, one.key) if one.value else "" for one in records]
    items = [one if isinstance(one, CatalogueItem) else None for one in decoded]
    columns = [
        [item and item.item_id for item in items],
        [item and item.title for item in items],
        [item and item.description for item in items],
        [item and item.category for item in items],
        [item and item.price for item in items],
        [item and item.available for item in items],
    ]
    return _table(partition, records, columns, ITEMS)


def read_records(file: pq.ParquetFile, rows: int, row_groups: Sequence[int]) -> Iterator[list[Record]]:
    """The records of some row groups, at most `rows` at a time. Raises `OSError`, `pyarrow.ArrowException`."""
    for batch in file.iter_batches(rows, row_groups=row_groups, columns=_RECORD):
        offsets, times, keys, values = (batch.column(name) for name in _RECORD[:4])
        headers = batch.column("headers")
        pairs = [tuple(one) for one in headers.to_pylist()] if len(headers.items) else [()] * len(batch)
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


def _table(partition: int, records: Sequence[Fetched], decoded: list[Any], schema: pa.Schema) -> pa.Table:
    columns: list[Any] = [
        [partition] * len(records),
        [one.offset for one in records],
        [one.timestamp for one in records],
        [one.key for one in records],
        [one.value for one in records],
        [one.headers for one in records],
        *decoded,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=marked(schema, partition))


def marked(schema: pa.Schema, partition: int) -> pa.Schema:
    """The schema of a partition's files, which say of themselves what they are."""
    return schema.with_metadata({SCHEMA_KEY: SCHEMA_VERSION, PARTITION_KEY: str(partition)})


def _json(context: dict[str, object] | None) -> str | None:
    return None if context is None else msgspec.json.encode(context).decode()
