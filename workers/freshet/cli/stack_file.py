"""How the verbs find a local stack: by the file `stack.json` in its folder, which `freshet up` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from freshet import resources
from freshet.core.decoding import Undecodable, decode
from freshet.errors import FreshetError

STACK_FILE = "stack.json"
TRITON_KEY_FILE = "triton.key"
"""Beside it: the secret that the stack's Triton asks for where models are loaded."""


class StackFileError(FreshetError):
    """The file cannot be read; the message names it."""


class _Stack(msgspec.Struct, frozen=True):
    """The addresses `host:port` of a stack's parts, and its model repository."""

    addresses: dict[str, str]
    models: str


_decoder = msgspec.json.Decoder(_Stack)


def stack_settings(directory: Path) -> dict[str, Any]:
    """Settings that reach the local stack of a folder, running or not; none where it has none.

    Raises `StackFileError`.
    """
    folder = directory.resolve()
    file = folder / STACK_FILE
    try:
        stack = decode(_decoder, file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise StackFileError(f"{file}: {error.strerror}") from None
    if isinstance(stack, Undecodable):
        raise StackFileError(f"{file} cannot be read: {stack.why}: remove it, and run `freshet up`")
    found: dict[str, Any] = {
        "feature_repo": str(resources.FEATURE_REPO),
        "data_dir": str(folder / "worker"),
        "feast_dir": str(folder / "feast"),
        "trusted_keys": str(keys if (keys := folder / "keys").is_dir() else resources.KEYS),
        "archive_dir": str(folder / "archive"),
    }
    if "kafka" in stack.addresses:
        found["kafka"] = stack.addresses["kafka"]
    if "triton_grpc" in stack.addresses:
        found |= {"triton": stack.addresses["triton_grpc"], "model_repository": stack.models}
        if (key := folder / TRITON_KEY_FILE).is_file():
            found["triton_control_key"] = key.read_text()
    if "redis" in stack.addresses:
        found["online_store"] = f"redis://{stack.addresses['redis']}"
    return found
