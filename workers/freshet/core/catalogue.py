"""Catalogue items: upserts of the items topic, and the text an item is placed by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

from freshet.core.decoding import Undecodable, decode
from freshet.core.events import Id

TextField = Literal["title", "category", "description"]
TEXT_FIELDS: tuple[TextField, ...] = ("title", "category", "description")
"""Fields of an item that its text is joined from, in order, unless the settings say otherwise."""


MAX_TEXT = 4096
"""Characters of a text that are sent to the text encoder, which reads 128 tokens: a token is a word or at most 18
characters of one, so that 128 of them and the spaces between them take 2,432. What a text says behind that was never
read, unless more than a thousand characters before it are spaces or words of a hundred letters."""


class CatalogueItem(msgspec.Struct, frozen=True, gc=False):
    """An item of the catalogue: a record of the items topic, keyed by item id. A record without value withdraws it.

    A newer record replaces an older one whole. Unknown fields are dropped.

    Attributes:
        item_id: The item; the record's key in UTF-8.
        title: Its name.
        description: Its text.
        category: Its kind, in words.
        price: What it costs, in the shop's own currency.
        available: Whether lists may hold it.
    """

    item_id: Id
    title: str = ""
    description: str = ""
    category: str = ""
    price: Annotated[float, msgspec.Meta(ge=0)] | None = None
    available: bool = True

    def text(self, fields: Sequence[str] = TEXT_FIELDS) -> str:
        """What the text encoder reads: these of its fields that hold something, up to `MAX_TEXT` characters."""
        return ". ".join(part for field in fields if (part := getattr(self, field)))[:MAX_TEXT]


class Text(NamedTuple):
    """What an item is placed by, and the offset of the record that said so."""

    offset: int
    item_id: str
    text: str


class Catalogue:
    """The fold of the items topic.

    `texts` stand in the order in which items first had a text: a newer text
    keeps the item's place. `text_fields` are what texts are joined from.
    """

    def __init__(self, text_fields: Sequence[str] = TEXT_FIELDS) -> None:
        self._text_fields = text_fields
        self.items: dict[str, CatalogueItem] = {}
        self.texts: dict[str, Text] = {}

    def apply(self, value: bytes | None, key: bytes | None, offset: int) -> CatalogueItem | str:
        """Fold one record and return the item, or say in a sentence what is wrong with it.

        A tombstone makes its item unavailable.
        """
        if value is None:
            item: CatalogueItem | str = CatalogueItem((key or b"?").decode(errors="replace"), available=False)
        else:
            item = decode_item(value, key)
        if isinstance(item, str):
            return item
        self.items[item.item_id] = item
        known = self.texts.get(item.item_id)
        text = self.text(item)
        if text and (known is None or known.text != text):
            self.texts[item.item_id] = Text(offset, item.item_id, text)
        return item

    def text(self, item: CatalogueItem) -> str:
        """What an item is placed by."""
        return item.text(self._text_fields)


_decoder = msgspec.json.Decoder(CatalogueItem)
_encoder = msgspec.json.Encoder()


def decode_item(value: bytes, key: bytes | None) -> CatalogueItem | str:
    """Decode an upsert, or say in a sentence why it is none."""
    item = decode(_decoder, value)
    if isinstance(item, Undecodable):
        return f"not a catalogue item: {item.why}"
    if key != item.item_id.encode():
        return "the record's key is not its item_id"
    return item


def encode_item(item: CatalogueItem) -> bytes:
    """The JSON bytes of an upsert."""
    return _encoder.encode(item)
