"""Catalogue items."""

import pytest
from freshet.core.catalogue import CatalogueItem, decode_item, encode_item


def test_items_survive_the_codec() -> None:
    """Decoding an encoded item under its own key gives the same item."""
    item = CatalogueItem("é1", "Amélie", "a film", "comedy", 4.5, available=False)
    assert decode_item(encode_item(item), "é1".encode()) == item


def test_the_text_is_what_there_is_of_it() -> None:
    """The text joins title, category and description and leaves empty fields out."""
    assert CatalogueItem("i", "Heat", "a heist", "thriller").text() == "Heat. thriller. a heist"
    assert CatalogueItem("i", "Heat", "a heist", "thriller").text(["description", "title"]) == "a heist. Heat"
    assert CatalogueItem("i", "Heat").text() == "Heat"
    assert CatalogueItem("i").text() == ""


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b"", b"i"),
        (b"junk", b"i"),
        (b"{}", b"i"),
        (b'{"item_id":""}', b""),
        (b'{"item_id":"i","price":-1}', b"i"),
        (b'{"item_id":"i","available":"no"}', b"i"),
        (b'{"item_id":"i"}', b"j"),
        (b'{"item_id":"i"}', None),
    ],
)
def test_bad_items_are_a_sentence(value: bytes, key: bytes | None) -> None:
    """Decoding a bad item returns the reason and raises nothing."""
    assert isinstance(decode_item(value, key), str)


def test_unknown_fields_are_dropped() -> None:
    """Decoding drops fields that an item does not have."""
    assert decode_item(b'{"item_id":"i","colour":"red"}', b"i") == CatalogueItem("i")
