"""Version folders in Triton's model repository: moved in and out whole, by one publisher at a time.

Triton reads a model's folders when it is told to load it, and when it starts; it then serves the two
highest numbers. Whatever happens, the live version must be one of these two. Everything is
prepared in a folder beside the repository, on the same file system, and renamed in; the lock is a
file there, so publishers on several machines exclude each other where they share that file system
and its locks (NFS does).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from freshet.bundle.bundle import version_numbers
from freshet.core.rollout import MODEL
from freshet.files import HeldError, held, sync
from freshet.release.errors import ReleaseError

TOWER = "item_tower"
MODELS = (TOWER, MODEL)
"""In the order of loading: a worker that sees a version of the user encoder finds its item tower ready."""
PLACING = "placing.json"


def require(repository: Path) -> None:
    """See that the folder is a model repository. Raises `ReleaseError`."""
    for model in MODELS:
        if not (repository / model / "config.pbtxt").is_file():
            raise ReleaseError(f"{repository} is no model repository: it lacks {model}/config.pbtxt")


@contextmanager
def only_publisher(repository: Path) -> Iterator[Path]:
    """A scratch folder beside the repository, while nobody else publishes into it.

    What a killed publisher left behind is removed first. Raises `ReleaseError`.
    """
    with ExitStack() as stack:
        try:
            beside = _beside(repository)
            stack.enter_context(held(beside / "lock"))
        except OSError as error:
            raise ReleaseError(f"{error.filename}: {error.strerror}") from None
        except HeldError:
            raise ReleaseError(f"somebody else is publishing into {repository}") from None
        _clear(repository, beside)
        yield Path(stack.enter_context(tempfile.TemporaryDirectory(dir=beside)))


def sweep(repository: Path) -> None:
    """Remove what a killed publisher left behind, unless somebody is publishing now.

    Before a server starts on the repository: a version that was never tried may keep it from starting.
    """
    with suppress(ReleaseError), only_publisher(repository):
        pass


def versions(repository: Path) -> set[int]:
    """The versions that have a folder in either model."""
    return {number for model in MODELS for number in version_numbers(repository / model)}


def place(prepared: Path, repository: Path, number: int) -> None:
    """Rename a prepared version, one folder a model, in; until `settle` it is noted as not tried."""
    note = _beside(repository) / PLACING
    note.write_text(json.dumps({"version": number}))
    sync(note)
    sync(note.parent)
    for model in MODELS:
        _sync_all(prepared / model)
        target = repository / model / str(number)
        (prepared / model).rename(target)
        sync(target.parent)


def settle(repository: Path) -> None:
    """The placed version works: it stays."""
    (_beside(repository) / PLACING).unlink(missing_ok=True)


def remove(repository: Path, numbers: Collection[int]) -> None:
    """Take versions out; a folder is gone at once or there whole."""
    with tempfile.TemporaryDirectory(dir=_beside(repository)) as bin_:
        for number in numbers:
            for model in reversed(MODELS):
                folder = repository / model / str(number)
                if folder.is_dir():
                    folder.rename(Path(bin_) / f"{model}-{number}")


def _beside(repository: Path) -> Path:
    real = repository.resolve()
    beside = real.parent / f".{real.name}-publish"
    beside.mkdir(exist_ok=True)
    if beside.stat().st_dev != repository.stat().st_dev:
        beside = repository / ".publish"
        beside.mkdir(exist_ok=True)
    return beside


def _clear(repository: Path, beside: Path) -> None:
    note = beside / PLACING
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        remove(repository, [int(json.loads(note.read_text())["version"])])
    note.unlink(missing_ok=True)
    for left in beside.iterdir():
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


def _sync_all(folder: Path) -> None:
    """Make a folder and all its files durable."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
