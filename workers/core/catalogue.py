"""Catalogue items: upserts of the items topic, and the text an item is placed by."""

from __future__ import annotations

from typing import Annotated

import msgspec

from workers.core.events import Id


class CatalogueItem(msgspec.Struct, frozen=True, gc=False):
    """One record of the items topic, keyed by item id; unknown fields are dropped."""

    item_id: Id
    title: str = ""
    description: str = ""
    category: str = ""
    price: Annotated[float, msgspec.Meta(ge=0)] | None = None
    available: bool = True

    @property
    def text(self) -> str:
        """What the text encoder reads."""
        return ". ".join(part for part in (self.title, self.category, self.description) if part)


_decoder = msgspec.json.Decoder(CatalogueItem)
_encoder = msgspec.json.Encoder()


def decode_item(value: bytes, key: bytes | None) -> CatalogueItem | str:
    """Decode an upsert, or say in a sentence why it is none."""
    try:
        item = _decoder.decode(value)
    except msgspec.DecodeError as error:
        return f"not a catalogue item: {error}"
    if key != item.item_id.encode():
        return "the record's key is not its item_id"
    return item


def encode_item(item: CatalogueItem) -> bytes:
    """The JSON bytes of an upsert."""
    return _encoder.encode(item)
