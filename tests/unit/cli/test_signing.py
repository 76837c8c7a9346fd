"""`freshet keys` and `freshet sign`: from a new pair to a bundle that those who trust it will serve."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from freshet.bundle.bundle import MANIFEST, SIGNATURE, Check, Decision, load_bundle, write_manifest
from freshet.bundle.signature import SignatureError, load_trusted
from freshet.cli import app
from freshet.release import publish
from freshet.release.errors import ReleaseError
from typer.testing import CliRunner

from deploy.local.parts import SHIPPED_KEYS, TRITON_MODELS
from tests.altered_bundles import sign_anyway

SHIPPED = TRITON_MODELS / "user_encoder" / "1"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The shipped bundle, nobody's yet."""
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
    (folder / SIGNATURE).unlink()
    return folder


def test_a_new_pair_signs_and_verifies(bundle: Path, tmp_path: Path) -> None:
    """A bundle signed with a new pair is served where its public key is trusted and nowhere else."""
    key = tmp_path / "mine" / "team.key"
    assert run("keys", key).exit_code == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    signed = run("sign", bundle, "--key", key)
    assert signed.exit_code == 0
    assert "is signed by" in signed.stdout + signed.stderr
    assert load_trusted(bundle, key.parent).item_ids
    with pytest.raises(SignatureError, match="no key of"):
        load_trusted(bundle, SHIPPED_KEYS)


def test_what_the_gate_refused_is_signed_for_a_reason_alone(bundle: Path, tmp_path: Path) -> None:
    """A bundle that the gate refused is signed and published only with a reason, which the record keeps."""
    key = tmp_path / "team.key"
    run("keys", key)
    manifest = load_bundle(bundle).manifest
    accepted, refused = (Decision(passed, [Check("quality", passed, "")]) for passed in (True, False))
    write_manifest(bundle, msgspec.structs.replace(manifest, gate=refused))
    before = (bundle / MANIFEST).read_bytes()
    result = run("sign", bundle, "--key", key)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"the gate refused it (quality): train another, or `freshet sign {bundle} --ungated REASON`" in result.stderr
    assert not (bundle / SIGNATURE).exists()
    assert (bundle / MANIFEST).read_bytes() == before
    sign_anyway(bundle, key)
    with pytest.raises(ReleaseError, match=r"the gate refused it \(quality\)"):
        publish._verify(bundle, tmp_path, tmp_path)
    assert run("sign", bundle, "--key", key, "--ungated", "the log has a gap").exit_code == 0
    kept = publish._verify(bundle, tmp_path, tmp_path).manifest
    assert kept.gate == refused
    assert publish._unjudged(kept) == "the gate refused it: the log has a gap"
    assert publish._unjudged(msgspec.structs.replace(kept, gate=accepted, ungated="")) == ""
    assert publish._unjudged(msgspec.structs.replace(kept, gate=None)) == "no gate has judged it"


def test_without_a_key_the_local_stack_s_own_signs(bundle: Path, tmp_path: Path) -> None:
    """Without a key the local stack's own key signs, is made once and trusts the shipped version."""
    for _ in range(2):
        assert run("sign", bundle, "--dir", tmp_path / "stack").exit_code == 0
        assert load_trusted(bundle, tmp_path / "stack" / "keys").item_ids
    assert load_trusted(SHIPPED, tmp_path / "stack" / "keys").item_ids


def test_a_pair_is_never_overwritten(tmp_path: Path) -> None:
    """A second `keys` command is refused in one line, and the first pair stays."""
    key = tmp_path / "team.key"
    run("keys", key)
    before = key.read_bytes()
    again = run("keys", key)
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
    assert "exists" in again.stderr
    assert key.read_bytes() == before


def test_what_cannot_be_signed_is_one_line(bundle: Path, tmp_path: Path) -> None:
    """A wrong file, key, folder or bundle is refused in one line."""
    key = tmp_path / "team.key"
    run("keys", key)
    manifest = (bundle / MANIFEST).read_bytes()
    weights = bytearray((bundle / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    wrong = {
        ("keys", tmp_path / "team.pem"): "does not end in .key",
        ("sign", bundle, "--key", tmp_path / "none.key"): "does not exist",
        ("sign", tmp_path, "--key", key): "no complete bundle",
    }
    for arguments, why in wrong.items():
        result = run(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert why in result.stderr
    (bundle / "weights.safetensors").write_bytes(weights)
    result = run("sign", bundle, "--key", key)
    assert result.exit_code == 1
    assert "weights.safetensors" in result.stderr
    assert not (bundle / SIGNATURE).exists()
    assert (bundle / MANIFEST).read_bytes() == manifest
