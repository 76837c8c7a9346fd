"""Rollout records: which version of the model lists are to be made with."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

MODEL = "user_encoder"
"""The model whose version names a bundle; its item tower shares the number."""


class Rollout(msgspec.Struct, frozen=True):
    """One record of the models topic, keyed by model name; `ts` is ms since the epoch."""

    model: str
    version: Annotated[int, msgspec.Meta(ge=1)]
    stage: Literal["promoted"]
    ts: int


_decoder = msgspec.json.Decoder(Rollout)


def decode_rollout(value: bytes) -> Rollout | str:
    """Decode a rollout record, or say in a sentence why it is none."""
    try:
        return _decoder.decode(value)
    except msgspec.DecodeError as error:
        return f"not a rollout record: {error}"


def encode_rollout(rollout: Rollout) -> bytes:
    """The JSON bytes of a rollout record."""
    return msgspec.json.encode(rollout)
