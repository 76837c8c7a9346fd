"""A TensorRT plan is served only where it was built for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.tensorrt import build_plan
from deploy.tensorrt.stamp import Host, Stamp, StampError, check_stamp, decode_stamp, encode_stamp

HOST = Host("10.4.0", "560.35.03", "9.0")
STAMP = Stamp("10.4.0", "560.35.03", "9.0", "onnx", "plan", fp16=False)
MODEL = Path(__file__).parents[2] / "triton_models" / "user_encoder"


def test_the_building_host_may_serve() -> None:
    """The plan fits where it was made."""
    check_stamp(STAMP, HOST, "onnx", "plan")


def test_a_newer_driver_may_serve() -> None:
    """Drivers are compatible forwards, compared as numbers and not as text."""
    check_stamp(STAMP, replace(HOST, driver="1000.1"), "onnx", "plan")


@pytest.mark.parametrize(
    ("host", "onnx", "plan", "why"),
    [
        (replace(HOST, tensorrt="10.5.0"), "onnx", "plan", "TensorRT 10.4.0, this host has 10.5.0"),
        (replace(HOST, compute_capability="8.0"), "onnx", "plan", "compute capability 9.0, this GPU is 8.0"),
        (replace(HOST, driver="550.9"), "onnx", "plan", "driver 560.35.03, this host's 550.9 is older"),
        (HOST, "other", "plan", "another model.onnx"),
        (HOST, "onnx", "other", "not the file that was stamped"),
    ],
)
def test_a_mismatch_is_refused_in_one_line(host: Host, onnx: str, plan: str, why: str) -> None:
    """Each fact of the stamp is compared, and the message says which one differs."""
    with pytest.raises(StampError, match=why) as refused:
        check_stamp(STAMP, host, onnx, plan)
    assert "\n" not in str(refused.value)


def test_stamp_round_trip() -> None:
    """`plan.json` is read as it was written."""
    assert decode_stamp(encode_stamp(STAMP)) == STAMP


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tensorrt": "10"}'])
def test_a_foreign_stamp_is_refused(text: str) -> None:
    """A stamp that lacks a fact proves nothing."""
    with pytest.raises(StampError):
        decode_stamp(text)


def test_check_without_a_plan_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The operator's script sees a non-zero exit and one line, and serves the ONNX file instead."""
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    assert build_plan.main([str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_check_on_the_building_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command compares the real files' digests: a changed ONNX file is refused."""
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "model.plan").write_bytes(b"plan")
    monkeypatch.setattr(build_plan, "host", lambda: HOST)
    digests = {
        "onnx_sha256": build_plan._sha256(tmp_path / "model.onnx"),
        "plan_sha256": build_plan._sha256(tmp_path / "model.plan"),
    }
    (tmp_path / "plan.json").write_text(encode_stamp(replace(STAMP, **digests)))
    assert build_plan.main([str(tmp_path), "--check"]) == 0
    (tmp_path / "model.onnx").write_bytes(b"another")
    assert build_plan.main([str(tmp_path), "--check"]) == 1


def test_a_host_without_a_gpu_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Building where no GPU is says so and writes nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    assert build_plan.main([str(tmp_path)]) == 1
    assert "nvidia-smi" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_packed_versions() -> None:
    """TensorRT packs its version one way before 10 and another from 10 on."""
    assert build_plan._dotted(100400) == "10.4.0"
    assert build_plan._dotted(101302) == "10.13.2"
    assert build_plan._dotted(8601) == "8.6.1"


def test_profile_shapes_are_the_version_s(tmp_path: Path) -> None:
    """The builder is told the inputs that Triton is told, at the version's own length."""
    (tmp_path / "configs").symlink_to(MODEL / "configs")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "manifest.json").write_text('{"length": 200}')
    assert build_plan._inputs(tmp_path / "2") == {"item_index": "200", "event_type": "200", "time_gap": "200"}
    with pytest.raises(build_plan.BuildError, match="it says the version's length"):
        build_plan._inputs(tmp_path / "3")
    assert build_plan._inputs(MODEL / "1")["item_index"] == "50"
