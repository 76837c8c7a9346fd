"""A version that names its text encoder is served beside that text encoder alone, and is refused whole elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from freshet.adapters.triton_address import TritonAddress
from freshet.bundle.bundle import BundleError, TextEncoderFacts, load_bundle, read_manifest, sha256, write_manifest
from freshet.bundle.signature import make_keys, sign
from freshet.bundle.text_encoder import FILES, require_served, served_folder
from freshet.core.rollout import MODEL, Rollout
from freshet.release.errors import ReleaseError
from freshet.release.publish import Service, publish_bundle
from freshet.serving.live_versions import LiveVersions

from deploy.local.parts import TRITON_MODELS
from tests.memory_ports import MemoryRecords
from tests.simulation.memory_world import FakeEncoder

SHIPPED = TRITON_MODELS / MODEL / "1"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository that serves a text encoder, the second version of two."""
    for version in ("1", "2"):
        folder = tmp_path / "models" / "text_encoder" / version
        folder.mkdir(parents=True)
        for name in FILES:
            (folder / name).write_text(f"{name} of version {version}")
    return tmp_path / "models"


def named(bundle: Path, encoder: Path) -> Path:
    """A copy of the shipped bundle that names the text encoder in a folder."""
    shutil.copytree(SHIPPED, bundle)
    facts = TextEncoderFacts(*(sha256(encoder / name) for name in FILES), width=384)
    write_manifest(bundle, msgspec.structs.replace(read_manifest(bundle), text_encoder=facts))
    return bundle


def test_its_own_text_encoder_is_served(repository: Path, tmp_path: Path) -> None:
    """The highest version of the text encoder is the one that answers, and the one that is compared."""
    served = served_folder(repository)
    assert served == repository / "text_encoder" / "2"
    require_served(load_bundle(named(tmp_path / "bundle", served)), repository)


@pytest.mark.parametrize("file", FILES)
def test_another_text_encoder_is_told_apart_by_each_file(repository: Path, tmp_path: Path, file: str) -> None:
    """Another model is refused, and so is the same model with another tokenizer; the message says what to do."""
    served = repository / "text_encoder" / "2"
    bundle = load_bundle(named(tmp_path / "bundle", served))
    (served / file).write_text("another")
    with pytest.raises(BundleError, match=rf"another text encoder than .*{file}.*--text-encoder") as refused:
        require_served(bundle, repository)
    assert "\n" not in str(refused.value)


def test_a_version_of_before_is_served_as_before(repository: Path) -> None:
    """The shipped bundle names no text encoder; its manifest and its digests are those of before."""
    bundle = load_bundle(SHIPPED)
    assert bundle.manifest.text_encoder is None
    require_served(bundle, repository)


def test_a_repository_without_a_text_encoder_places_no_item(repository: Path, tmp_path: Path) -> None:
    """Where no text encoder is served, there is none to be wrong."""
    bundle = load_bundle(named(tmp_path / "bundle", repository / "text_encoder" / "1"))
    (repository / "text_encoder" / "2" / FILES[0]).unlink()
    assert served_folder(repository) is None
    require_served(bundle, repository)


async def test_a_worker_does_not_start_on_a_version_of_another_text_encoder(repository: Path) -> None:
    """No list is made with a version whose new items would be misplaced."""
    named(repository / MODEL / "1", repository / "text_encoder" / "1")
    with pytest.raises(BundleError, match="another text encoder"):
        await LiveVersions(FakeEncoder(), repository).start(1)


def test_a_version_of_another_text_encoder_is_not_published(repository: Path, tmp_path: Path) -> None:
    """The publisher refuses it before anything is copied or recorded."""
    bundle = named(tmp_path / "bundle", repository / "text_encoder" / "1")
    make_keys(tmp_path / "keys" / "ours.key")
    sign(bundle, tmp_path / "keys" / "ours.key")
    records = MemoryRecords(Rollout(MODEL, 1, "promoted", 0))
    service = Service(repository, TritonAddress("127.0.0.1:1"), tmp_path / "keys", 2)
    with pytest.raises(ReleaseError, match="another text encoder"):
        publish_bundle(bundle, service, records)
    assert not (repository / MODEL).exists()
    assert len(records.steps) == 1
