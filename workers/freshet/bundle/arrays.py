"""Numpy's files, from outside: an array, or the reason why there is none. Never an exception."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from freshet.core.decoding import Undecodable

MAX_ARRAYS_BYTES = 1 << 28
"""Size of an unpacked `.npz` file: a few kilobytes of zeros on disk can be any size in memory."""


def load_array(path: Path) -> NDArray[Any] | Undecodable:
    """The array of a `.npy` file."""
    try:
        # the file is mapped, so that a header cannot ask for more memory than the file is long
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # a hostile header raises a dozen types, tokenize.TokenError among them
        return Undecodable(_said(error))


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | Undecodable:
    """The arrays of a `.npz` file by name."""
    try:
        with ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_ARRAYS_BYTES:
            return Undecodable(f"it unpacks to {size:,} bytes, at most {MAX_ARRAYS_BYTES:,} are read")
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # as above, and what zipfile, zlib and bz2 raise
        return Undecodable(_said(error))


def _said(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
