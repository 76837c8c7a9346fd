"""A bundle from a stranger: no file outside its folder is opened, and every part is checked."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
from freshet.bundle.bundle import ITEM_VECTORS, MANIFEST, BundleError, Manifest, load_bundle, sha256, write_manifest
from freshet.bundle.golden import GOLDEN
from freshet.bundle.verify import load_sound
from freshet.core.rollout import MODEL
from numpy.lib import format as npy

from deploy.local.parts import TRITON_MODELS

SHIPPED = TRITON_MODELS / MODEL / "1"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the shipped bundle."""
    return shutil.copytree(SHIPPED, tmp_path / "bundle")


def listed(folder: Path, name: str, file: Path) -> None:
    """Have the manifest list a file under a name, with the digest that the file has."""
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    write_manifest(folder, msgspec.structs.replace(manifest, files={**manifest.files, name: sha256(file)}))


def field(number: int, content: bytes) -> bytes:
    """A protocol buffer's field that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A protocol buffer's number."""
    coded = b""
    while value > 0x7F:
        coded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return coded + bytes([value])


def nested(depth: int) -> bytes:
    """A graph that holds a graph in a node's attribute, and so on."""
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))
    return graph


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "sub/inside.txt", ".."])
def test_a_manifest_names_files_of_its_own_folder_alone(bundle: Path, tmp_path: Path, name: str) -> None:
    """A manifest that names a path is refused before the file behind the path is opened."""
    (tmp_path / "outside.txt").write_text("outside")
    (bundle / "sub").mkdir()
    (bundle / "sub" / "inside.txt").write_text("inside")
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    write_manifest(bundle, msgspec.structs.replace(manifest, files={**manifest.files, name: "0" * 64}))
    with pytest.raises(BundleError, match="which is no plain file of the bundle's folder"):
        load_bundle(bundle)


def test_a_link_out_of_the_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    """A link out of the bundle's folder is refused, even where the target has the digest."""
    shutil.move(bundle / "model.onnx", tmp_path / "model.onnx")
    (bundle / "model.onnx").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="no plain file"):
        load_bundle(bundle)


EXTERNAL = field(8, b"w") + field(13, field(1, b"location") + field(2, b"/etc/passwd"))
HOSTILE = {
    "a second graph that a parser merges": (field(7, field(5, EXTERNAL)), "field 7 stands more than once"),
    "functions": (field(25, field(1, b"f")), "it holds functions"),
    "training graphs": (field(20, field(1, b"")), "it holds training graphs"),
}


@pytest.mark.parametrize(("part", "why"), HOSTILE.values(), ids=HOSTILE)
def test_what_onnx_runtime_would_merge_in_is_refused(bundle: Path, part: bytes, why: str) -> None:
    """A graph with bytes appended to its file is refused, because ONNX Runtime would merge them in."""
    file = bundle / "model.onnx"
    file.write_bytes(file.read_bytes() + part)
    listed(bundle, file.name, file)
    with pytest.raises(BundleError, match=why):
        load_sound(bundle)


def within_graph(folder: Path, part: bytes) -> None:
    """Append a part to the graph itself, its length corrected."""
    file = folder / "model.onnx"
    content = file.read_bytes()
    at, parts = 0, []
    while at < len(content):
        start, key = at, content[at]
        at += 1
        if key & 7 == 0:
            while content[at] & 0x80:
                at += 1
            at += 1
            parts.append(content[start:at])
            continue
        size = shift = 0
        while True:
            size |= (content[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if not content[at - 1] & 0x80:
                break
        body = content[at : at + size]
        at += size
        parts.append(field(7, body + part) if key >> 3 == 7 else content[start:at])
    file.write_bytes(b"".join(parts))
    listed(folder, file.name, file)


IN_GRAPH = {
    "external data without a location": (field(5, EXTERNAL), "w lies in a file of its own"),
    "a location behind a first part": (field(5, varint(14 << 3) + b"\x01" + field(8, b"w")), "w lies in a file"),
    "a sparse initialiser": (field(15, b""), "sparse tensors"),
    "a sparse attribute": (field(1, field(5, field(22, b""))), "sparse tensors"),
    "an attribute's tensor in parts": (field(1, field(5, field(5, b"") * 2)), "field 5 stands more than once"),
    "graphs without end": (nested(2000), "more than 8 deep"),
    "a number without end": (field(5, b"\x08" + b"\x80" * 40 + b"\x01"), "takes more than 10 bytes"),
}


@pytest.mark.parametrize(("part", "why"), IN_GRAPH.values(), ids=IN_GRAPH)
def test_constants_that_are_not_read_are_refused(bundle: Path, part: bytes, why: str) -> None:
    """A graph is refused where ONNX Runtime would take a constant that the check does not read."""
    within_graph(bundle, b"")
    assert load_sound(bundle).item_ids  # the rewriting itself changes nothing
    within_graph(bundle, part)
    with pytest.raises(BundleError, match=why):
        load_sound(bundle)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of an array that is not there."""
    stream = BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    """An `.npz` file of some members."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def bomb() -> bytes:
    """A small file that unpacks to four hundred megabytes."""
    stream = BytesIO()
    np.save(stream, np.zeros(100_000_000, np.float32))
    return zipped({"item_index": stream.getvalue()})


SIZES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "25 TB of vectors": (ITEM_VECTORS, lambda: npy_header((10**11, 64)), "cannot be read"),
    "an unknown format": (ITEM_VECTORS, lambda: b"\x93NUMPY\x09\x00" + bytes(100), "cannot be read"),
    "a golden bomb": (GOLDEN, bomb, "unpacks to"),
    "25 TB of golden tensors": (
        GOLDEN,
        lambda: zipped({"item_index": npy_header((10**11, 64))}),
        "golden.npz cannot be read",
    ),
    "item ids nested without end": ("item_ids.json", lambda: b"[" * 100_000, "its items cannot be read"),
    "item ids that are no text": ("item_ids.json", lambda: b'["\xe9"]', "its items cannot be read"),
}


@pytest.mark.parametrize(("name", "content", "why"), SIZES.values(), ids=SIZES)
def test_sizes_are_checked_before_memory_is_asked_for(
    bundle: Path, name: str, content: Callable[[], bytes], why: str
) -> None:
    """A size beyond the bound is refused in one line before any memory is allocated."""
    (bundle / name).write_bytes(content())
    listed(bundle, name, bundle / name)
    with pytest.raises(BundleError, match=why) as refused:
        load_sound(bundle)
    assert "\n" not in str(refused.value)
