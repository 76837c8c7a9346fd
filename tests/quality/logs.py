"""The data sets of the quality harness, each as sequences of item rows, and the events of the two that have times.

They are read where they lie and never copied: research licences forbid passing
them on. MovieLens-100K is the one that `make setup` fetches.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from freshet.core.catalogue import CatalogueItem

MIN_EVENTS = 3
"""Leave-one-out takes a test and a validation item from every user and needs one more to start from."""


RATING_TYPES = {1: "view", 2: "view", 3: "click", 4: "purchase", 5: "purchase"}
"""What a rating stands for, as in the demo's stream."""


class DataError(Exception):
    """A data set is not where it should be; the message says what to do."""


@dataclass(frozen=True)
class Sequences:
    """Users' items in order, as rows of `texts`, oldest first."""

    users: list[list[int]]
    texts: list[str]


@dataclass(frozen=True)
class Stream:
    """Events in time order, as parallel columns; `times` in ms."""

    users: list[int]
    items: list[int]
    types: list[str]
    times: list[int]
    texts: list[str]


def beauty(data: Path) -> Sequences:
    """Amazon Beauty, purchases in order, the split of S3Rec (CIKM 2020)."""
    users = _purchases(data / "beauty" / "Beauty.txt")
    return Sequences(users, _titles(data / "beauty" / "items.tsv", users, column=2))


def sports(data: Path) -> Sequences:
    """Amazon Sports and Outdoors, as `beauty`; its texts are key words of title and description."""
    users = _purchases(data / "sports" / "Sports.txt")
    return Sequences(users, _titles(data / "sports" / "items.tsv", users, column=1))


def movielens_1m(data: Path) -> tuple[Sequences, list[tuple[list[int], int]]]:
    """MovieLens-1M in gSASRec's split: training sequences, and (history, next item) of its 512 validation users.

    A validation user's history is its training sequence and one item more.
    """
    folder = data / "ml1m"
    train = [_rows(line) for line in _text(folder / "train" / "input.txt").splitlines()]
    inputs = [_rows(line) for line in _text(folder / "val" / "input.txt").splitlines()]
    targets = [int(line) - 1 for line in _text(folder / "val" / "output.txt").split()]
    texts = _titles(folder / "items.tsv", train, column=1)
    return Sequences(train, texts), list(zip(inputs, targets, strict=True))


def movielens_100k(folder: Path) -> tuple[Sequences, Stream]:
    """MovieLens-100K as a stream, and each user's items in order, out of the raw files that `make setup` fetches.

    Ratings of one moment stay in the file's order, as in the published splits. Ordered by item
    number instead, as the demo's stream is, a user's last film would be the most obscure of its
    sitting: EASE falls from HR@10 .14 to .09.
    """
    ratings = _ratings(folder)
    films = _cells(folder / "ml-100k.item")
    row = {film[0]: number for number, film in enumerate(films)}
    user: dict[str, int] = {}
    stream = Stream(
        [user.setdefault(rating[0], len(user)) for rating in ratings],
        [row[rating[1]] for rating in ratings],
        [RATING_TYPES[int(float(rating[2]))] for rating in ratings],
        [int(float(rating[3])) * 1000 for rating in ratings],
        [CatalogueItem(film[0], film[1], category=film[3], description=film[2]).text() for film in films],
    )
    return sequences(stream), stream


def movielens_people(folder: Path) -> dict[str, list[str]]:
    """What MovieLens-100K knows of its users, one label each, numbered as in its stream."""
    cells = {row[0]: row for row in _cells(folder / "ml-100k.user")}
    people = [cells[user] for user in dict.fromkeys(rating[0] for rating in _ratings(folder))]
    return {
        "gender": [row[2] for row in people],
        "decade of age": [str(int(float(row[1])) // 10) for row in people],
        "occupation": [row[3] for row in people],
    }


def deskdrop(data: Path) -> Stream:
    """CI&T Deskdrop: five behaviour types with real times, in the order of time."""
    titles = dict(
        line.split("\t", 1) for line in _text(data / "deskdrop" / "items.tsv").splitlines()[1:] if "\t" in line
    )
    file = data / "deskdrop" / "events.tsv.gz"
    if not file.is_file():
        raise DataError(f"{file} does not exist: name the folder of the data sets with --data")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        next(lines)
        rows = [line.rstrip("\n").split("\t") for line in lines]
    rows.sort(key=lambda row: int(row[3]))
    user: dict[str, int] = {}
    item: dict[str, int] = {}
    return Stream(
        [user.setdefault(row[0], len(user)) for row in rows],
        [item.setdefault(row[1], len(item)) for row in rows],
        [row[2] for row in rows],
        [int(row[3]) * 1000 for row in rows],
        [titles.get(name, "") for name in item],
    )


def sequences(stream: Stream) -> Sequences:
    """Each user's items in order, an item at its first touch alone; users of fewer than `MIN_EVENTS` left out."""
    users: dict[int, dict[int, None]] = {}
    for user, item in zip(stream.users, stream.items, strict=True):
        users.setdefault(user, {})[item] = None
    return Sequences([list(items) for items in users.values() if len(items) >= MIN_EVENTS], stream.texts)


def _purchases(file: Path) -> list[list[int]]:
    """Each line's items behind its user."""
    return [[int(item) - 1 for item in line.split()[1:]] for line in _text(file).splitlines()]


def _ratings(folder: Path) -> list[list[str]]:
    return sorted(_cells(folder / "ml-100k.inter"), key=lambda row: float(row[3]))


def _cells(file: Path) -> list[list[str]]:
    """The rows of a table with a header, split at tabs."""
    return [line.split("\t") for line in _text(file).splitlines()[1:]]


def _rows(line: str) -> list[int]:
    return [int(item) - 1 for item in line.split()]


def _titles(file: Path, users: Sequence[Sequence[int]], column: int) -> list[str]:
    """Texts by row; an item without a line has an empty one."""
    texts = [""] * (1 + max(max(items) for items in users if items))
    for line in _text(file).splitlines()[1:]:
        cells = line.split("\t")
        number = int(cells[0]) - 1
        texts += [""] * (number + 1 - len(texts))
        texts[number] = cells[column]
    return texts


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{file} does not exist: name the folder of the data sets with --data") from None
