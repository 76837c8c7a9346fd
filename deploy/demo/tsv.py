"""What the converters of raw data sets share: files of tab-separated columns, and a command line of two folders."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from freshet.errors import FreshetError


class RawDataError(FreshetError):
    """The raw files are missing or are not what they should be; the message says which line."""

    remedy: ClassVar[str] = ""
    """What to do where a file is missing, behind a colon."""


def read_rows(file: Path, header: list[str], error: type[RawDataError]) -> Iterator[tuple[str, list[str]]]:
    """Each line's place and columns; the first line must be the header, and `.gz` is unpacked. Raises `error`."""
    try:
        raw = file.read_bytes()
        lines = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode().splitlines()
    except FileNotFoundError:
        raise error(f"{file} is missing{error.remedy}") from None
    except (OSError, EOFError, UnicodeDecodeError) as cause:
        raise error(f"{file}: {cause}") from None
    if not lines or lines[0].split("\t") != header:
        raise error(f"{file}: the first line is not {' '.join(header)}")
    for number, line in enumerate(lines[1:], 2):
        row = line.split("\t")
        if len(row) != len(header):
            raise error(f"{file}:{number}: {len(row)} columns, not {len(header)}")
        yield f"{file}:{number}", row


def run(convert: Callable[[Path, Path], None], usage: str) -> int:
    """Convert the folder that the command line names first into the one that it names second; the exit status."""
    try:
        source, target = map(Path, sys.argv[1:])
    except ValueError:
        sys.stderr.write(f"usage: {usage}\n")
        return 2
    try:
        convert(source, target)
    except RawDataError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0
