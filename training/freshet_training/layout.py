"""Versions of the files that a run leaves in its work folder for the next command."""

from __future__ import annotations

from pathlib import Path

import msgspec
from freshet.core.decoding import Undecodable, decode
from freshet.errors import FreshetError


class LayoutError(FreshetError):
    """A file in the work folder has the layout of another version of Freshet. The file is left as it is."""


class _Versioned(msgspec.Struct, frozen=True):
    version: int = 0


_decoder = msgspec.json.Decoder(_Versioned)


def check_version(path: Path, header: bytes, version: int) -> None:
    """Raises `LayoutError` where the JSON `header` of the file `path` names another version than `version`.

    A header that names no version is of an older layout. A header that is no JSON passes: the file is damaged, and
    the file's reader decides what follows from that.
    """
    found = decode(_decoder, header)
    if not isinstance(found, Undecodable) and found.version != version:
        raise LayoutError(
            f"{path} is of another version of Freshet: end that run with that version, or remove the file to start anew"
        )
