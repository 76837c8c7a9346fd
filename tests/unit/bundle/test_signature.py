"""A bundle is served only if a trusted key signed it, and if it is whole and sound in every weight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
from freshet.bundle import onnx_graph, signature
from freshet.bundle.bundle import (
    LIFTS,
    MANIFEST,
    SIGNATURE,
    WEIGHTS,
    BundleError,
    Manifest,
    load_bundle,
    sha256,
    write_manifest,
)
from freshet.bundle.onnx_graph import check_graphs
from freshet.bundle.signature import SignatureError, load_trusted, make_keys, sign
from freshet.core.rollout import MODEL
from freshet.serving.live_versions import LiveVersions

from deploy.local.parts import SHIPPED_KEYS, TRITON_MODELS
from tests.simulation.memory_world import FakeEncoder, make_bundle

SHIPPED = TRITON_MODELS / MODEL / "1"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with a key pair that is trusted there."""
    make_keys(tmp_path / "keys" / "ours.key")
    return tmp_path / "keys"


@pytest.fixture
def bundle(tmp_path: Path, keys: Path) -> Path:
    """The shipped bundle, signed anew."""
    folder = shutil.copytree(SHIPPED, tmp_path / "bundle")
    sign(folder, keys / "ours.key")
    return folder


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file, and have the manifest agree."""
    (folder / name).write_bytes(content)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    write_manifest(folder, msgspec.structs.replace(manifest, files={**manifest.files, name: sha256(folder / name)}))


def npy(array: np.ndarray) -> bytes:
    """An array as a file holds it."""
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def spoilt(content: bytes) -> bytes:
    """The file with the first trained item vector made NaN wherever it stands."""
    vector = np.load(SHIPPED / "item_vectors.npy")[0].tobytes()
    assert vector in content
    return content.replace(vector, np.full(64, np.nan, np.float32).tobytes())


def test_what_ships_is_signed(keys: Path) -> None:
    """The key beside the program trusts the shipped version, and no other key does."""
    assert load_trusted(SHIPPED, SHIPPED_KEYS).item_ids
    with pytest.raises(SignatureError, match="is signed by 367f163d2c7b0f19, no key of"):
        load_trusted(SHIPPED, keys)


def test_a_signature_counts_where_its_key_is_trusted(bundle: Path, keys: Path, tmp_path: Path) -> None:
    """A signature by any of the trusted keys counts, and the keys' folder decides which keys are trusted."""
    make_keys(tmp_path / "others" / "theirs.key")
    with pytest.raises(SignatureError):
        load_trusted(bundle, tmp_path / "others")
    shutil.copy(keys / "ours.pub", tmp_path / "others")
    assert load_trusted(bundle, tmp_path / "others").path == bundle


@pytest.mark.parametrize("name", ["model.onnx", "item_tower.onnx", "item_ids.json", "item_vectors.npy", "golden.npz"])
def test_one_flipped_bit_is_refused(bundle: Path, keys: Path, name: str) -> None:
    """A bundle with a flipped bit in the middle of any file is refused."""
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} differs from the sha256"):
        load_trusted(bundle, keys)


def test_a_manifest_changed_after_signing_is_refused(bundle: Path, keys: Path) -> None:
    """A manifest that was changed after signing is refused, even where its digests agree."""
    rewrite(bundle, "MODEL_CARD.md", b"# Excellent")
    with pytest.raises(SignatureError, match="the signature does not fit"):
        load_trusted(bundle, keys)


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "is not signed: `freshet sign"), (b"", "cannot be read"), (b'{"key":"k","signature":"AA=="}', "no key of")],
)
def test_a_missing_or_foreign_signature_is_refused(bundle: Path, keys: Path, content: bytes | None, why: str) -> None:
    """A missing, damaged or foreign signature is refused in one line with the reason."""
    (bundle / SIGNATURE).unlink()
    if content is not None:
        (bundle / SIGNATURE).write_bytes(content)
    with pytest.raises(SignatureError, match=why) as refused:
        load_trusted(bundle, keys)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["model.onnx", "item_vectors.npy", "weights.safetensors"])
def test_nan_in_any_weight_is_refused(bundle: Path, keys: Path, name: str) -> None:
    """A signed bundle with NaN in its graph, item table or training weights is refused."""
    content = (bundle / name).read_bytes()
    last = content[:-4] + np.float32(np.nan).tobytes()
    rewrite(bundle, name, last if name == "weights.safetensors" else spoilt(content))
    sign_anyway(bundle, keys)
    with pytest.raises(BundleError, match="NaN"):
        load_trusted(bundle, keys)


def stored_as(weights: bytes, name: str, dtype: str, shape: list[int], values: bytes) -> bytes:
    """A safetensors file with one tensor replaced."""
    start = 8 + int.from_bytes(weights[:8], "little")
    header, end = json.loads(weights[8:start]), len(weights) - start
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(values)]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + weights[start:] + values


def _without(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
        files = {other: digest for other, digest in manifest.files.items() if other != name}
        write_manifest(folder, msgspec.structs.replace(manifest, files=files))

    return spoil


def _weight(name: str, dtype: str, shape: list[int], values: bytes) -> Callable[[Path], None]:
    return lambda folder: rewrite(
        folder, WEIGHTS, stored_as((folder / WEIGHTS).read_bytes(), name, dtype, shape, values)
    )


def _item_twice(folder: Path) -> None:
    ids = json.loads((folder / "item_ids.json").read_bytes())
    rewrite(folder, "item_ids.json", json.dumps([*ids[:-1], ids[0]]).encode())


def _golden(**tensors: np.ndarray) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with np.load(folder / "golden.npz") as stored:
            np.savez(folder / "golden.npz", **{**dict(stored), **tensors})
        rewrite(folder, "golden.npz", (folder / "golden.npz").read_bytes())

    return spoil


NOISE = np.random.default_rng(0).standard_normal((1616, 64)).astype(np.float32)
ONES = np.ones(64 * 1616, np.float32)
INFINITY = np.full(64, np.inf, np.float32).tobytes()
HALF_NAN = np.array([0x3F80] * 63 + [0x7FC0], "<u2").tobytes()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_without(WEIGHTS), "the manifest does not list weights.safetensors: train or export it again"),
        (_weight("residual.weight", "F32", [64, 1616], ONES.tobytes()), "residual.weight is 64 × 1616, not 1616 × 64"),
        (_weight("blocks.0.feed_in.weight", "F32", [64, 128], ONES[:8192].tobytes()), "is 64 × 128, not feed"),
        (_weight("input_norm.bias", "F32", [64], INFINITY), "weight input_norm.bias holds NaN or infinity"),
        (_weight("input_norm.bias", "BF16", [64], HALF_NAN), "weight input_norm.bias holds NaN or infinity"),
        (_weight("input_norm.bias", "F8_E5M2", [64], bytes(64)), "weight input_norm.bias is F8_E5M2"),
        (_weight("input_norm.bias", "F32", [64], ONES[:3].tobytes()), "cannot be read as safetensors"),
        (_item_twice, "names '255' twice: export it again with each item once"),
        (
            lambda folder: rewrite(folder, "item_vectors.npy", npy(NOISE)),
            "golden.npz does not fit the version, export it",
        ),
        (_golden(topk_index=np.zeros((64, 100), np.int32)), "golden.npz does not fit .* not in the item table"),
        (_golden(topk_score=np.zeros((64, 3), np.float32)), r"topk_score is float32 \(64, 3\), not FP32 \(64, 100\)"),
        (lambda folder: rewrite(folder, "golden.npz", b"none"), "golden.npz cannot be read"),
    ],
)
def test_parts_that_are_not_of_one_version_are_refused(
    bundle: Path, keys: Path, spoil: Callable[[Path], None], why: str
) -> None:
    """Signing and serving both refuse a bundle whose parts belong to different versions."""
    spoil(bundle)
    with pytest.raises(BundleError, match=why):
        sign(bundle, keys / "ours.key")
    sign_anyway(bundle, keys)
    with pytest.raises(BundleError, match=why) as refused:
        load_trusted(bundle, keys)
    assert "\n" not in str(refused.value)


def test_halves_of_a_graph_are_read() -> None:
    """The check reads 16-bit floats, which ONNX keeps as integers, and finds a NaN among them."""
    bf16 = bytes([0x10, 16, 0x42, 1]) + b"w" + bytes([0x2A, 5, 0x80, 0x7F, 0xC0, 0xFF, 0x01])
    [(name, values)] = onnx_graph._values(memoryview(bf16))
    assert name == "w"
    assert np.isnan(values).tolist() == [False, True]


def test_wrong_tensors_are_refused(bundle: Path, keys: Path) -> None:
    """A graph with other inputs or outputs is refused with the name of the tensor and the expected one."""
    rewrite(bundle, "model.onnx", (bundle / "item_tower.onnx").read_bytes())
    sign_anyway(bundle, keys)
    with pytest.raises(BundleError, match=r"takes text_embedding FP32 \[384\], not item_index INT32 \[50\]"):
        load_trusted(bundle, keys)


@pytest.mark.parametrize(
    ("lifts", "why"),
    [
        (np.zeros((7, 2), np.float32), r"item lifts are float32 \(7, 2\)"),
        (np.full((1617, 2), np.nan, np.float32), "item lifts hold NaN"),
    ],
)
def test_odd_item_lifts_are_refused(bundle: Path, lifts: np.ndarray, why: str) -> None:
    """Item lifts are refused unless they are numbers, in a row for each item and a last row for new items."""
    assert load_bundle(bundle).item_lifts is not None
    rewrite(bundle, LIFTS, npy(lifts))
    with pytest.raises(BundleError, match=why):
        load_bundle(bundle)
    rewrite(bundle, LIFTS, npy(np.ones((1617, 2), np.float32)))
    loaded = load_bundle(bundle).item_lifts
    assert loaded is not None
    assert loaded.all()


@pytest.mark.parametrize("content", [b"", b"onnx", b"\x3a\xff\xff\xff\xff\x0f", bytes(100)])
def test_what_is_no_onnx_is_refused(bundle: Path, content: bytes) -> None:
    """A graph file that is empty, text, cut short or zeros is refused in one line."""
    loaded = load_bundle(bundle)
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as ONNX"):
        check_graphs(loaded)


def test_a_graph_is_of_the_sizes_that_the_manifest_names(bundle: Path) -> None:
    """A graph that reads 50 events is refused where the manifest says 30."""
    loaded = load_bundle(bundle)
    other = msgspec.structs.replace(loaded, manifest=msgspec.structs.replace(loaded.manifest, length=30))
    with pytest.raises(BundleError, match=r"takes .*item_index INT32 \[50\].* not .*item_index INT32 \[30\]"):
        check_graphs(other)


def test_keys_are_made_once_and_kept_from_others(keys: Path) -> None:
    """Only the owner can read the private key, and an existing key is never overwritten."""
    key = keys / "ours.key"
    assert key.stat().st_mode & 0o077 == 0
    with pytest.raises(SignatureError, match="exists"):
        make_keys(key)


@pytest.mark.parametrize("spoil", [lambda f: f.write_bytes(b"junk"), lambda f: f.unlink()], ids=["junk", "none"])
def test_a_folder_without_a_usable_key_trusts_nobody(bundle: Path, keys: Path, spoil: Callable[[Path], None]) -> None:
    """A folder of trusted keys without a usable key is an error, and no bundle is trusted."""
    spoil(keys / "ours.pub")
    with pytest.raises(SignatureError, match=r"cannot be read|holds no public key"):
        load_trusted(bundle, keys)


async def test_a_worker_serves_no_stranger_s_version(bundle: Path, keys: Path, tmp_path: Path) -> None:
    """A worker with trusted keys loads a version with a trusted signature and refuses it without."""
    repository = tmp_path / "repository"
    shutil.copytree(bundle, repository / MODEL / "1")
    model = LiveVersions(FakeEncoder(make_bundle()), repository, keys)
    assert (await model.start(1)).version == 1
    (repository / MODEL / "1" / SIGNATURE).unlink()
    with pytest.raises(SignatureError):
        await LiveVersions(FakeEncoder(make_bundle()), repository, keys).start(1)


def test_nothing_in_a_bundle_is_pickled() -> None:
    """No file of the shipped bundle is a pickle or holds one."""
    for file in SHIPPED.iterdir():
        assert file.suffix in {".onnx", ".npy", ".npz", ".json", ".safetensors", ".md", ".sig"}, file
    with np.load(SHIPPED / "golden.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)
    assert np.load(SHIPPED / "item_vectors.npy", allow_pickle=False).dtype == np.float32


def sign_anyway(folder: Path, keys: Path) -> None:
    """Sign what `sign` itself would refuse, as somebody with the key could."""
    key = signature._private_key(keys / "ours.key")
    made = signature._Signature(signature.fingerprint(key.public_key()), key.sign((folder / MANIFEST).read_bytes()))
    (folder / SIGNATURE).write_bytes(msgspec.json.encode(made))
