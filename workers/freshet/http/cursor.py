"""The place between two pages of a list: the version, and which items were shown.

The next page is the list without what was shown, so it repeats nothing however the world has moved meanwhile. Items
are named by the CRC-32 of their ids: an item is left out wrongly once in some ten million times.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Collection, Iterable

from freshet.http.problems import ProblemError

MAX_SHOWN = 400
"""A list ends there: beyond it the encoder's candidates are used up."""
_HEAD = struct.Struct("<q")


def fingerprint(item_id: str) -> int:
    """What a cursor names an item by."""
    return zlib.crc32(item_id.encode(errors="surrogatepass"))


def encode_cursor(version: int, shown: Iterable[int]) -> str:
    """The cursor of a version behind these items."""
    body = b"".join(number.to_bytes(4, "little") for number in sorted(shown))
    return base64.urlsafe_b64encode(_HEAD.pack(version) + body).decode().rstrip("=")


def decode_cursor(text: str | None, version: int) -> Collection[int]:
    """The items that were shown. Raises `ProblemError` for a cursor that is none, or of another version."""
    if text is None:
        return frozenset()
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True)
    except ValueError:
        raw = b""
    if len(raw) < _HEAD.size or len(raw) % 4 or len(raw) > _HEAD.size + 4 * MAX_SHOWN:
        raise ProblemError(400, "cursor: this is no cursor of a list: take `next` of the page before, as it is")
    [of_version] = _HEAD.unpack_from(raw)
    if of_version != version:
        raise ProblemError(
            410, f"the cursor is of version {of_version}, and version {version} makes the lists now: begin anew"
        )
    return frozenset(number for [number] in struct.iter_unpack("<I", raw[_HEAD.size :]))
