"""Bundles to publish: altered copies of the shipped bundle, signed by a key of the test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from freshet.bundle import signature
from freshet.bundle.bundle import LIFTS, MANIFEST, SIGNATURE, sha256
from freshet.core.rollout import MODEL

from deploy.local.parts import SHIPPED_KEYS, TRITON_MODELS

SHIPPED = TRITON_MODELS / MODEL / "1"


class Keys:
    """A folder of trusted keys: the one that ships, and one to sign with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private = folder / "test.key"
        signature.make_keys(self.private)
        for file in SHIPPED_KEYS.glob("*.pub"):
            shutil.copy(file, folder)


def altered(target: Path, files: Mapping[str, bytes], key: Path | None = None) -> Path:
    """A copy of the shipped bundle with some files replaced; with a key its manifest agrees and is signed."""
    shutil.copytree(SHIPPED, target)
    for name, content in files.items():
        (target / name).write_bytes(content)
    if key is not None:
        manifest = json.loads((target / MANIFEST).read_text())
        manifest["files"] |= {name: sha256(target / name) for name in files}
        (target / MANIFEST).write_text(json.dumps(manifest))
        sign_anyway(target, key)
    return target


def sign_anyway(folder: Path, key: Path) -> None:
    """Sign also what `sign` would refuse, as somebody with the key could."""
    private = signature._private_key(key)
    made = signature._Signature(
        signature.fingerprint(private.public_key()), private.sign((folder / MANIFEST).read_bytes())
    )
    (folder / SIGNATURE).write_bytes(msgspec.json.encode(made))


def renamed_items(target: Path, key: Path) -> Path:
    """A sound version that ranks quite other items: the shipped one with its item ids turned round."""
    ids = json.loads((SHIPPED / "item_ids.json").read_text())
    return altered(target, {"item_ids.json": json.dumps(ids[::-1]).encode()}, key)


def without_lifts(models: Path, key: Path) -> Path:
    """A model repository with the shipped version as a trainer without item lifts would have made it."""
    target = models / MODEL / "1"
    shutil.copytree(SHIPPED, target)
    (target / LIFTS).unlink()
    manifest = json.loads((target / MANIFEST).read_text())
    del manifest["files"][LIFTS]
    (target / MANIFEST).write_text(json.dumps(manifest))
    sign_anyway(target, key)
    return models


def with_nan() -> bytes:
    """The shipped encoder with the first item's vector made NaN."""
    vector = np.load(SHIPPED / "item_vectors.npy")[0].tobytes()
    return (SHIPPED / "model.onnx").read_bytes().replace(vector, np.full(64, np.nan, np.float32).tobytes())
