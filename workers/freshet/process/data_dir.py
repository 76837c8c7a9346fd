"""The folder of a worker's own files: one process at a time, and a name in its consumer group that no other has."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from freshet.errors import FreshetError
from freshet.files import HeldError, held, write_whole


class DataDirError(FreshetError):
    """The folder is another process's; or cannot be made; the message says what to do."""


@contextmanager
def held_data_dir(data_dir: str) -> Iterator[None]:
    """Hold a folder for this process, and make it where it is not there. Raises `DataDirError`."""
    folder = Path(data_dir)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(folder / "process.lock"))
        except HeldError:
            raise DataDirError(f"another process runs on {folder}: give this one its own with --state-dir") from None
        except OSError as error:
            raise DataDirError(f"data_dir {folder}: {error.strerror}") from None
        yield


def instance_id(group: str, data_dir: str) -> str:
    """Static membership: a restarted process takes its partitions back without a session timeout.

    The name is drawn once for each folder and kept in it: two processes of one name would evict each other for ever.
    A copy of the folder on another host has another name.
    """
    file = Path(data_dir) / "instance.id"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, uuid.uuid4().hex.encode())
    return f"{group}-{socket.gethostname()}-{file.read_text()}"
