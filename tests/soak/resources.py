"""What a process tree holds: memory, handles, shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE_MIB = 4096 / 2**20
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the Python backend keeps its tensors


class Held(NamedTuple):
    """Of a server, of its stubs (each serves one version of one model), and their regions of shared memory."""

    server_mib: float
    stubs: int
    stubs_mib: float
    handles: int
    regions: int


def held(pid: int, prefix: str) -> Held:
    """What a Triton holds now."""
    stubs = list(_children(pid))
    handles = len(list((Path("/proc") / str(pid) / "fd").iterdir()))
    regions = len(list(SHARED_MEMORY.glob(f"{prefix}*")))
    return Held(_rss(pid), len(stubs), sum(map(_rss, stubs)), handles, regions)


def _children(pid: int) -> Iterator[int]:
    for task in (Path("/proc") / str(pid) / "task").iterdir():
        try:
            yield from map(int, (task / "children").read_text().split())
        except OSError:
            continue


def _rss(pid: int) -> float:
    try:
        return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * PAGE_MIB
    except OSError:
        return 0.0
