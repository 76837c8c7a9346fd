"""The words that invented items are described with."""

from __future__ import annotations

from typing import NamedTuple


class Department(NamedTuple):
    """A part of the shop: its things, and their median price."""

    name: str
    things: tuple[str, ...]
    price: float


DEPARTMENTS = (
    Department("footwear", ("boots", "sneakers", "sandals", "slippers", "loafers"), 80.0),
    Department("kitchen", ("kettle", "saucepan", "teapot", "cutting board", "coffee mill"), 35.0),
    Department("garden", ("watering can", "spade", "lantern", "planter", "hammock"), 30.0),
    Department("books", ("novel", "cookbook", "atlas", "biography", "field guide"), 18.0),
    Department("music", ("guitar", "record player", "headphones", "ukulele", "metronome"), 120.0),
    Department("cycling", ("helmet", "saddle", "pannier", "bell", "repair kit"), 45.0),
    Department("toys", ("puzzle", "kite", "building blocks", "marble run", "puppet"), 25.0),
    Department("lighting", ("desk lamp", "floor lamp", "pendant", "fairy lights", "candle holder"), 55.0),
    Department("clothing", ("jacket", "jumper", "scarf", "shirt", "raincoat"), 60.0),
    Department("furniture", ("armchair", "bookshelf", "stool", "side table", "wardrobe"), 180.0),
    Department("camping", ("tent", "sleeping bag", "stove", "backpack", "head torch"), 95.0),
    Department("stationery", ("notebook", "fountain pen", "pencil case", "calendar", "ruler"), 12.0),
)
TRAITS = (
    *("wooden", "leather", "steel", "ceramic", "woollen", "recycled", "handmade", "vintage", "minimalist", "colourful"),
    *("waterproof", "foldable", "lightweight", "sturdy", "classic", "playful", "elegant", "rustic", "compact"),
    *("organic", "striped", "floral", "matt", "soft"),
)
TRAITS_PER_ITEM = 3
