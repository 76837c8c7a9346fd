"""The stamp beside a TensorRT plan: what it was built from and for, and whether that still holds.

A plan runs on the TensorRT version and GPU architecture that it was built with.
Everything here is a comparison of values; `build_plan.py` finds the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from freshet.bundle import golden
from freshet.core.decoding import Undecodable, decode
from freshet.errors import FreshetError

TOLERANCE = {False: golden.TOLERANCE, True: 0.05}
"""Largest difference from the golden outputs that a plan may have, by whether half precision is allowed.

Scores are cosines times a scale of some 10 to 20, and half precision keeps three digits."""


class StampError(FreshetError):
    """A plan cannot be built here, or must not be served here; the message is one line that says why."""


@dataclass(frozen=True)
class Host:
    """What a plan depends on."""

    tensorrt: str
    driver: str
    compute_capability: str


class Stamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`plan.json`: the host that built the plan, the digest of the ONNX file and of the plan, and the precision.

    `off` is how far the plan's outputs were off the golden ones at most. `tolerance` is how far they may be,
    which is never more than `TOLERANCE`.
    """

    tensorrt: str
    driver: str
    compute_capability: str
    onnx_sha256: str
    plan_sha256: str
    fp16: bool
    tolerance: float
    off: float


def encode_stamp(stamp: Stamp) -> str:
    """The text of `plan.json`."""
    return msgspec.json.format(msgspec.json.encode(stamp), indent=2).decode() + "\n"


_decoder = msgspec.json.Decoder(Stamp)


def decode_stamp(text: bytes | str) -> Stamp:
    """Inverse of `encode_stamp`; its numbers are finite, as all of JSON's. Raises `StampError`."""
    stamp = decode(_decoder, text.encode() if isinstance(text, str) else text)
    if isinstance(stamp, Undecodable):
        raise StampError(f"plan.json is no stamp of a plan ({stamp.why}): build it again")
    if stamp.tolerance > TOLERANCE[stamp.fp16]:
        raise StampError(f"plan.json allows {stamp.tolerance:g}, more than {TOLERANCE[stamp.fp16]:g}: build it again")
    if not 0 <= stamp.off <= stamp.tolerance:
        raise StampError("plan.json says that the plan is off its golden outputs: build it again")
    return stamp


def check_stamp(stamp: Stamp, host: Host, onnx_sha256: str, plan_sha256: str) -> None:
    """Raise `StampError` unless the plan is this ONNX file's and was built on such a host.

    A driver may be newer than the one that built the plan, never older.
    """
    if stamp.onnx_sha256 != onnx_sha256:
        raise StampError("the plan was built from another model.onnx: build it again")
    if stamp.plan_sha256 != plan_sha256:
        raise StampError("model.plan is not the file that was stamped: build it again")
    if stamp.tensorrt != host.tensorrt:
        raise StampError(f"the plan was built with TensorRT {stamp.tensorrt}, this host has {host.tensorrt}")
    if stamp.compute_capability != host.compute_capability:
        raise StampError(
            f"the plan is for compute capability {stamp.compute_capability}, this GPU is {host.compute_capability}"
        )
    if _numbers(host.driver) < _numbers(stamp.driver):
        raise StampError(f"the plan was built with driver {stamp.driver}, this host's {host.driver} is older")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))
