"""Files that are there whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec


def aside(path: Path) -> Path:
    """The name beside `path` under which it is written first."""
    return path.with_name(path.name + ".partial")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """The name aside, to write to; behind the block it is renamed, whether `path` was there before or not."""
    partial = aside(path)
    yield partial
    partial.rename(path)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or replace it, in one step."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, in one step."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(value)) + b"\n")


class HeldError(Exception):
    """Another process holds the lock."""


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold a lock file; yields its descriptor. Raises `HeldError`.

    The lock goes when the block ends, and with the processes that have the descriptor where that was not to be.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(path) from None
        yield lock.fileno()


def sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
