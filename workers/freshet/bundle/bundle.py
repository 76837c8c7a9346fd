"""A model version on disk: a folder whose `manifest.json` is written last.

Layout, which is also a version folder of `user_encoder` in the model
repository: `model.onnx` (user encoder with the item table and top-K inside),
`item_tower.onnx`, `item_ids.json` (the vocabulary, index order),
`item_vectors.npy` (float32 `[items, dim]`, same order), `golden.npz` (inputs
and the outputs torch gave for them), `weights.safetensors` (what a later
training starts from), `manifest.json` (facts and a sha256 per file),
`manifest.sig` (who vouches for the manifest). `item_lifts.npy`, which early
versions and private ones lack, is float32 `[items + 1, 2]`: each item's value
and novelty, last those of an item without events. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshet.bundle.arrays import load_array
from freshet.core.catalogue import TEXT_FIELDS
from freshet.core.decoding import Undecodable, decode
from freshet.core.features import FIRST_ITEM
from freshet.errors import FreshetError
from freshet.files import write_json

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
ITEM_VECTORS = "item_vectors.npy"
NEEDED = ("model.onnx", "item_tower.onnx", "item_ids.json", ITEM_VECTORS, "golden.npz", WEIGHTS)
LIFTS = "item_lifts.npy"
WITHOUT_NETWORK = "-without-network"
"""What follows a refused candidate's name in the name of the version without a network beside it."""
SIGNATURE = "manifest.sig"
"""The one file that the manifest cannot list: who vouches for it (`workers/freshet/bundle/signature.py`)."""


class BundleError(FreshetError):
    """The folder is no usable bundle; the message says what is wrong."""


class Data(msgspec.Struct, frozen=True):
    """The log that a version was trained on: times in ms, a sha256 of the events, and what was left out of it.

    What happened before `trained_to` was learned. What came from then on was held back, to choose and judge by; a
    version that was fitted anew on the whole log has learned that too. Early versions do not say so (0).
    """

    source: str = ""
    digest: str = ""
    first: int = 0
    last: int = 0
    trained_to: int = 0
    events: int = 0
    users: int = 0
    cleaning: dict[str, int] = {}


class Check(msgspec.Struct, frozen=True):
    """One thing that a gate looked at; `detail` has the figures."""

    name: str
    passed: bool
    detail: str


class Decision(msgspec.Struct, frozen=True):
    """Whether a candidate may be published, and why."""

    accepted: bool
    checks: list[Check]


class Privacy(msgspec.Struct, frozen=True):
    """The differential privacy of a version's weights: (ε, δ) by `unit`, neighbouring logs differing by one of them.

    Made by `steps` that each drew a unit with `chance`, clipped its gradient to
    `clip` and added normal noise `noise` times as long.
    """

    unit: str
    epsilon: float
    delta: float
    noise: float
    clip: float
    chance: float
    steps: int


class TextEncoderFacts(msgspec.Struct, frozen=True):
    """Which text encoder gave the vectors that a version learned from: a sha256 of each of its files, and their width.

    `unknown_tokens` is the share of the texts' tokens that the text encoder's vocabulary lacks.
    """

    model: str
    tokenizer: str
    width: int
    unknown_tokens: float = 0.0

    def is_of(self, other: TextEncoderFacts) -> bool:
        """Whether both are of the same files."""
        return (self.model, self.tokenizer) == (other.model, other.tokenizer)


class Manifest(msgspec.Struct, frozen=True):
    """Facts of a bundle.

    `dim` is the width of user and item vectors, `length` how many of a user's
    recent events the encoder reads (the first versions did not say so, and read
    50). `types` are the behaviour types the encoder knows, index 1 first.
    `prior_weight` is the weight of the log popularity prior beside the
    encoder's score, fitted on the validation split. `files` maps each file to its
    sha256. `text_fields` are what items' texts were joined from, `commit` is the
    code that trained, and `parent` the version whose weights were the start.
    `scale` is the length of its user vectors, an item's having 1 (the first versions
    did not say so, and had about 12).
    `privacy` is what the weights may tell of a user, where training bounded it.
    `gate` is what the gate decided, None in what it has not judged; `ungated` is why
    a version that it refused may be published all the same, in the signer's words.
    `network` says whether the version has learned an encoder: without one popularity and the nearness of texts rank.
    `repeats` are the behaviour types after which an item may be recommended to its user again.
    `settings` are all that training was told, by `freshet_training.config.TrainingConfig`'s names (the
    first versions did not say). `text_encoder` is what read the items' texts, None in the first versions, which the
    shipped text encoder read, and in a version without texts.
    """

    name: str
    created: str
    dim: int
    types: list[str]
    prior_weight: float
    popularity_half_life_s: float
    metrics: dict[str, dict[str, float]]
    environment: dict[str, str]
    licence: str
    files: dict[str, str]
    length: int = 50
    text_fields: list[str] = msgspec.field(default_factory=lambda: list(TEXT_FIELDS))
    data: Data = Data()
    commit: str = ""
    parent: str = ""
    gate: Decision | None = None
    ungated: str = ""
    privacy: Privacy | None = None
    scale: Annotated[float, msgspec.Meta(gt=0)] = 12.0
    network: bool = True
    repeats: list[str] = []
    settings: dict[str, Any] = {}
    text_encoder: TextEncoderFacts | None = None


class Bundle(msgspec.Struct, frozen=True):
    """A verified bundle in memory; `item_vectors` is float32 `[len(item_ids), dim]`.

    `item_lifts` is float32 `[len(item_ids) + 1, 2]` where the version has them.
    """

    path: Path
    manifest: Manifest
    item_ids: list[str]
    item_vectors: NDArray[np.float32]
    item_lifts: NDArray[np.float32] | None = None

    @property
    def item_index(self) -> dict[str, int]:
        """Item id to the encoder's item index."""
        return {item: row + FIRST_ITEM for row, item in enumerate(self.item_ids)}

    @property
    def type_index(self) -> dict[str, int]:
        """Behaviour type to the encoder's type index."""
        return {kind: row + 1 for row, kind in enumerate(self.manifest.types)}

    def require_lifts(self, value_weight: float | None, novelty_weight: float | None) -> None:
        """See that the version knows what is to be weighed. Raises `BundleError`."""
        if self.item_lifts is None and (value_weight or novelty_weight):
            raise BundleError(
                f"version {self.path.name} does not know its items' value and novelty: train one that does, "
                "or leave value_weight and novelty_weight at 0"
            )

    def check_gate(self) -> None:
        """See that the gate did not refuse the version, or that its signer said why not to mind.

        Raises `BundleError`.
        """
        gate = self.manifest.gate
        if gate is None or gate.accepted or self.manifest.ungated:
            return
        failed = ", ".join(check.name for check in gate.checks if not check.passed)
        remedy = f"train another, or `freshet sign {self.path} --ungated REASON`"
        raise BundleError(f"{self.path}: the gate refused it ({failed}): {remedy}")


_manifest = msgspec.json.Decoder(Manifest)
_item_ids = msgspec.json.Decoder(list[str])


def version_numbers(model: Path) -> list[int]:
    """The versions that have a folder in a model's folder, in order; none where there is no such folder."""
    return sorted(int(folder.name) for folder in model.glob("*/") if folder.name.isdigit())


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_bundle(path: Path) -> Bundle:
    """Read and verify the bundle at `path`.

    Raises `BundleError` for a missing manifest or file, a digest that differs,
    an item that is there twice, wrong shapes, or non-finite item vectors. Who signed
    it is not asked: whoever serves it calls `freshet.bundle.signature.load_trusted`.
    """
    manifest = _verified_manifest(path)
    item_ids = decode(_item_ids, (path / "item_ids.json").read_bytes())
    if isinstance(item_ids, Undecodable):
        raise BundleError(f"{path}: its items cannot be read: {item_ids.why}")
    vectors = read_table(path / ITEM_VECTORS)
    lifts = read_table(path / LIFTS) if LIFTS in manifest.files else None
    if len(set(item_ids)) < len(item_ids):
        twice, _ = Counter(item_ids).most_common(1)[0]
        raise BundleError(f"{path}: item_ids.json names {twice!r} twice: export it again with each item once")
    _check_table(path, "item vectors", vectors, (len(item_ids), manifest.dim))
    if lifts is not None:
        _check_table(path, "item lifts", lifts, (len(item_ids) + 1, 2))
    return Bundle(path, manifest, item_ids, vectors, lifts)


def read_table(path: Path) -> NDArray[Any]:
    """A table of the bundle, its shape unseen. Raises `BundleError`."""
    table = load_array(path)
    if isinstance(table, Undecodable):
        raise BundleError(f"{path} cannot be read: {table.why}")
    return table


def _check_table(path: Path, table_name: str, table: NDArray[np.float32], shape: tuple[int, int]) -> None:
    if table.shape != shape or table.dtype != np.float32:
        raise BundleError(f"{path}: {table_name} are {table.dtype} {table.shape}, not float32 {shape}")
    if not np.isfinite(table).all():
        raise BundleError(f"{path}: {table_name} hold NaN or infinity")


def read_manifest(path: Path) -> Manifest:
    """What the bundle at `path` says of itself; nothing of it is verified. Raises `BundleError`."""
    try:
        manifest = decode(_manifest, (path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path} has no {MANIFEST}: it is no complete bundle") from None
    if isinstance(manifest, Undecodable):
        raise BundleError(
            f"{path / MANIFEST} cannot be read: {manifest.why}: train the version again with this Freshet"
        )
    return manifest


def _verified_manifest(path: Path) -> Manifest:
    """The manifest of a bundle whose every file is there and has its digest. Raises `BundleError`."""
    manifest = read_manifest(path)
    for name, digest in manifest.files.items():
        file = path / name
        if name != file.name or name == ".." or file.is_symlink():
            raise BundleError(f"{path}: the manifest lists {name!r}, which is no plain file of the bundle's folder")
        if not file.is_file():
            raise BundleError(f"{path} lacks {name}, which its manifest lists")
        if sha256(file) != digest:
            raise BundleError(f"{file} differs from the sha256 in its manifest")
    for needed in NEEDED:
        if needed not in manifest.files:
            raise BundleError(f"{path}: the manifest does not list {needed}: train or export it again")
    return manifest


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest, last of all: its existence means that the bundle is complete."""
    write_json(path / MANIFEST, manifest)
