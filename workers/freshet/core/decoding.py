"""Bytes from outside: a decoder's value, or the reason why there is none. Never an exception.

msgspec raises `UnicodeDecodeError` for a string that is not UTF-8 and `RecursionError` for deep nesting, beside its
own `DecodeError`. How deep `RecursionError` lets a value be depends on the caller's stack, so the same record could
be an event in the worker and none in a replay. Nesting is therefore bounded here, well below that.
"""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple, TypeVar

import msgspec

MAX_NESTING = 100
"""Arrays and objects within one another."""

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer that every format in use here can hold: JSON's are of any size."""

T = TypeVar("T")


class Undecodable(NamedTuple):
    """Why bytes are not what they should be, in a sentence; `well_formed` where they are JSON of another shape."""

    why: str
    well_formed: bool = False


def decode(decoder: msgspec.json.Decoder[T] | msgspec.msgpack.Decoder[T], raw: bytes) -> T | Undecodable:
    """What the decoder makes of the bytes."""
    # a value that deep has a bracket more at either end; what is shorter is not looked at
    if len(raw) > 2 * MAX_NESTING and isinstance(decoder, msgspec.json.Decoder) and _is_deep(raw):
        return Undecodable(f"nested more than {MAX_NESTING} deep")
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        return Undecodable(str(error), well_formed=True)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Undecodable(str(error))


_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def _is_deep(raw: bytes) -> bool:
    """Whether JSON is nested too deep; most texts have too few brackets for that and are not looked at closely."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_NESTING:
        return False
    depth = 0
    for token in _TOKENS.finditer(raw):
        bracket = token[0]
        if bracket in b"[{":
            depth += 1
            if depth > MAX_NESTING:
                return True
        elif bracket in b"]}":
            depth -= 1
    return False
