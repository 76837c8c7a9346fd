"""A file of JSON lines as a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from freshet.core.decoding import Undecodable
from freshet.core.lines import event_line
from freshet.ports import RUN_RECORDS, WHOLE, EmptyLog, LogError, Record, Window


class JsonLinesLog:
    """A file with one event a line, as a log of one partition.

    The partition is 0. An offset counts lines from 0. The record time is the event's own time, and never later than
    now. If the user id of a line cannot be read, the record has no key and becomes a dead letter, as it would on the
    stream.
    """

    def __init__(self, path: Path, window: Window = WHOLE) -> None:
        self.name = str(path)
        self.partitions = [0]
        self._window = window
        try:
            with path.open("rb") as file:
                lines = sum(1 for line in file if line.strip())
        except OSError as error:
            raise LogError(f"{path}: {error.strerror}") from None
        if not lines:
            raise EmptyLog(f"{path} holds no events")
        self.total = lines if window.is_whole else None
        self._path = path
        self.starts = None
        self._now_ms = int(time.time() * 1000)

    def read(self, partition: int, start: int = 0) -> Iterator[list[Record]]:
        """Runs of lines from a line number on."""
        window = None if self._window.is_whole else self._window
        with self._path.open("rb") as file:
            lines = islice(enumerate(line for raw in file if (line := raw.strip())), start, None)
            while numbered := list(islice(lines, RUN_RECORDS)):
                run = [_record(offset, line, self._now_ms) for offset, line in numbered]
                if window is not None:
                    run = [record for record in run if window.holds(partition, record)]
                if run:
                    yield run

    def close(self) -> None:
        """Files are open only while they are read."""


def _record(offset: int, line: bytes, now_ms: int) -> Record:
    event = event_line(line)
    if isinstance(event, Undecodable):
        return Record(offset, 0, None, line)
    return Record(offset, min(event.ts, now_ms), event.user_id.encode(), line)
