"""`freshet build-plan`: a plan is built from a sound network, checked, stamped, and served only by a fitting host.

No GPU: `trtexec` and `nvidia-smi` are stand-ins that keep their command lines and answer as told.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from freshet.adapters.triton_address import TritonAddress
from freshet.bundle.bundle import MANIFEST, sha256
from freshet.bundle.signature import sign_file
from freshet.cli import app
from freshet.cli.signing import local_keys
from freshet.release import publish
from freshet.release.errors import ReleaseError
from freshet.release.server import Server
from freshet.release.tensorrt import build_plan, network
from freshet.release.tensorrt.stamp import Host, Stamp, StampError, check_stamp, decode_stamp, encode_stamp
from typer.testing import CliRunner

from deploy.local.parts import TRITON_MODELS

HOST = Host("10.4.0", "560.35.03", "9.0")
STAMP = Stamp("10.4.0", "560.35.03", "9.0", "onnx", "plan", fp16=False, tolerance=1e-3, off=1e-5)
SHIPPED = TRITON_MODELS / "user_encoder" / "1"
TRTEXEC = """#!{python}
import json, pathlib, sys
import numpy as np
here = pathlib.Path(__file__).parent
with (here / "commands").open("a") as kept:
    kept.write(json.dumps(sys.argv[1:]) + "\\n")
given = dict(option[2:].partition("=")[::2] for option in sys.argv[1:])
if (here / "fails").exists():
    sys.exit(1)
if "saveEngine" in given:
    pathlib.Path(given["saveEngine"]).write_bytes(b"plan")
else:
    golden = np.load(here / "golden.npz")
    for pair in given["loadInputs"].split(","):
        name, _, file = pair.partition(":")
        assert np.array_equal(np.fromfile(file, np.int32), golden[name].ravel()), name
    off = float((here / "off").read_text())
    tensors = []
    for name in ("topk_index", "topk_score", "embedding"):
        one = golden[name] + off if name == "topk_score" else golden[name]
        if name == "topk_index" and (here / "misplaced").exists():
            one = np.roll(one, 1, axis=1)
        tensors.append(dict(name=name, dimensions="x".join(map(str, one.shape)), values=one.ravel().tolist()))
    pathlib.Path(given["exportOutput"]).write_text(json.dumps(tensors))
"""


def test_the_building_host_may_serve() -> None:
    """A plan fits the host that built it."""
    check_stamp(STAMP, HOST, "onnx", "plan")


def test_a_newer_driver_may_serve() -> None:
    """A plan fits a newer driver, with versions compared as numbers."""
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
    """Each differing fact of the stamp is refused in one line that names the fact."""
    with pytest.raises(StampError, match=why) as refused:
        check_stamp(STAMP, host, onnx, plan)
    assert "\n" not in str(refused.value)


def test_stamp_round_trip() -> None:
    """Decoding an encoded stamp gives the same stamp."""
    assert decode_stamp(encode_stamp(STAMP)) == STAMP


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tensorrt": "10"}'])
def test_a_foreign_stamp_is_refused(text: str) -> None:
    """A stamp that lacks a fact is refused."""
    with pytest.raises(StampError):
        decode_stamp(text)


SPOILT = [
    (b'"off": 0.00001', b'"off": "0.01"', "Expected `float`, got `str`"),
    (b'"off": 0.00001', b'"off": null', "Expected `float`, got `null`"),
    (b'"off": 0.00001', b'"off": 0.01', "off its golden outputs"),
    (b'"tolerance": 0.001', b'"tolerance": 1000000000.0', "more than 0.001"),
    (b'"tolerance": 0.001', b'"tolerance": "x"', "Expected `float`, got `str`"),
    (b'"tolerance": 0.001', b'"tolerance": Infinity', "malformed"),
    (b'"tolerance": 0.001', b'"tolerance": 1e999', "out of range"),
    (b'"driver": "560.35.03"', b'"driver": 550', "Expected `str`, got `int`"),
    (b'"driver": "560.35.03"', b'"driver": "\xff"', "utf-8"),
    (b'"fp16": false', b'"fp16": 0', "Expected `bool`, got `int`"),
    (b'"fp16": false', b'"fp16": false, "int8": true', "unknown field `int8`"),
]


@pytest.mark.parametrize(("sound", "spoilt", "why"), SPOILT)
def test_a_malformed_stamp_is_refused_in_one_line(
    bundle: Path, tmp_path: Path, sound: bytes, spoilt: bytes, why: str
) -> None:
    """A publication and a server's check refuse a malformed stamp in one line with the remedy."""
    stamp = encode_stamp(STAMP).encode()
    assert sound in stamp
    (bundle / "model.plan").write_bytes(b"plan")
    (bundle / "plan.json").write_bytes(stamp.replace(sound, spoilt))
    key = local_keys(tmp_path)
    sign_file(bundle / "plan.json", bundle / "plan.sig", key)
    with pytest.raises(
        ReleaseError, match=r"model\.plan cannot be served here: plan\.json .*: build it again"
    ) as refused:
        publish._verify(bundle, key.parent, bundle.parent)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
    server = Server(TritonAddress("127.0.0.1:1"))
    with pytest.raises(ReleaseError, match=r"user_encoder version 2: plan\.json .*: build it again"):
        server.try_golden(bundle, 2)
    server.close()


def test_a_driver_that_is_no_number_is_older_than_any() -> None:
    """A driver version that is no number is older than any."""
    with pytest.raises(StampError, match="is older"):
        check_stamp(STAMP, replace(HOST, driver="56²"), "onnx", "plan")


@pytest.mark.parametrize("tolerance", ["inf", "0.1"])
def test_a_tolerance_beyond_the_version_s_is_refused(gpu: Path, bundle: Path, tolerance: str) -> None:
    """A tolerance beyond the version's is refused before anything is built."""
    result = run(bundle, "--tolerance", tolerance)
    assert result.exit_code == 1
    assert f"a tolerance of {tolerance} is more than 0.05" in result.stderr
    assert not (gpu / "commands").exists()


def test_a_plan_counts_where_the_host_that_built_it_is_trusted(gpu: Path, bundle: Path, tmp_path: Path) -> None:
    """A plan beside a signed bundle counts only with a stamp that a trusted host signed."""
    assert run(bundle).exit_code == 0
    local = tmp_path / "stack" / "keys"
    publish._verify(bundle, local, bundle.parent)
    signature = (bundle / "plan.sig").read_bytes()
    (bundle / "plan.sig").unlink()
    with pytest.raises(ReleaseError, match=r"plan\.json is not signed"):
        publish._verify(bundle, local, bundle.parent)
    (bundle / "plan.sig").write_bytes(signature)
    (bundle / "model.plan").write_bytes(b"other bytes")
    with pytest.raises(ReleaseError, match="not the file that was stamped"):
        publish._verify(bundle, local, bundle.parent)
    stamp = decode_stamp((bundle / "plan.json").read_text())
    forged = msgspec.structs.replace(stamp, plan_sha256=sha256(bundle / "model.plan"))
    (bundle / "plan.json").write_text(encode_stamp(forged))
    with pytest.raises(ReleaseError, match=r"the signature does not fit plan\.json"):
        publish._verify(bundle, local, bundle.parent)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-ins, alone on the PATH: a host with TensorRT 10.4 and an H100."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in {
        "trtexec": TRTEXEC.format(python=sys.executable),
        "nvidia-smi": f"#!{sys.executable}\nprint('560.35.03, 9.0')\n",
    }.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    shutil.copy(SHIPPED / "golden.npz", tools)
    (tools / "off").write_text("0.01")
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr(build_plan, "_tensorrt_version", lambda: "10.4.0")
    return tools


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The shipped bundle in a folder of its own."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))


def run(bundle: Path, *arguments: object) -> Any:
    """`build-plan` with the keys of a local stack's folder beside the bundle."""
    command = ["build-plan", bundle, "--dir", bundle.parent / "stack", *arguments]
    trusted = {"FRESHET_TRUSTED_KEYS": str(bundle.parent / "stack" / "keys")}
    return CliRunner().invoke(app, [*map(str, command)], env=trusted)


def commands(tools: Path) -> list[list[str]]:
    """What `trtexec` was told."""
    return [json.loads(line) for line in (tools / "commands").read_text().splitlines()]


def test_a_plan_is_built_checked_and_stamped(gpu: Path, bundle: Path) -> None:
    """The plan has a profile over the batch at the version's length, and a stamp with host, digests and error."""
    result = run(bundle, "--timing-cache", "/var/cache/freshet.timing", "--json")
    assert result.exit_code == 0
    stamp = decode_stamp((bundle / "plan.json").read_text())
    assert json.loads(result.stdout) == json.loads((bundle / "plan.json").read_text())
    assert (stamp.tensorrt, stamp.driver, stamp.compute_capability, stamp.fp16) == ("10.4.0", "560.35.03", "9.0", True)
    assert (stamp.onnx_sha256, stamp.plan_sha256) == (sha256(bundle / "model.onnx"), sha256(bundle / "model.plan"))
    assert stamp.off == pytest.approx(0.01, abs=1e-6)
    built, tried = commands(gpu)
    assert f"--onnx={bundle / 'model.onnx'}" in built
    for bound, batch in (("min", 1), ("opt", 64), ("max", 256)):
        shapes = ",".join(f"{name}:{batch}x50" for name in ("item_index", "event_type", "time_gap"))
        assert f"--{bound}Shapes={shapes}" in built
    assert {"--fp16", "--skipInference", "--timingCacheFile=/var/cache/freshet.timing"} <= set(built)
    assert "--shapes=item_index:64x50,event_type:64x50,time_gap:64x50" in tried
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "stack", "tools"]
    assert run(bundle, "--check").exit_code == 0


def test_single_precision_where_told(gpu: Path, bundle: Path) -> None:
    """`--no-fp16` builds in single precision and holds the plan to the tolerance of single precision."""
    (gpu / "off").write_text("0.0005")
    assert run(bundle, "--no-fp16").exit_code == 0
    assert "--fp16" not in commands(gpu)[0]
    assert decode_stamp((bundle / "plan.json").read_text()).tolerance == 1e-3


def test_a_plan_that_answers_otherwise_is_not_kept(gpu: Path, bundle: Path) -> None:
    """A plan beyond the tolerance, or with NaN, is one line, and the former plan stays."""
    assert run(bundle).exit_code == 0
    before = (bundle / "plan.json").read_bytes()
    for off in ("0.06", "nan"):
        (gpu / "off").write_text(off)
        result = run(bundle)
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert (bundle / "plan.json").read_bytes() == before
    (gpu / "off").write_text("0.01")
    assert run(bundle, "--tolerance", "0.005").exit_code == 1
    assert run(bundle, "--check").exit_code == 0


def test_a_plan_that_ranks_other_items_is_not_kept(gpu: Path, bundle: Path) -> None:
    """A plan that ranks other items is not kept, even with right scores."""
    (gpu / "misplaced").touch()
    result = run(bundle)
    assert result.exit_code == 1
    assert "the plan answers otherwise: topk_index is off its golden values" in result.stderr
    assert not (bundle / "model.plan").exists()


def test_a_build_that_fails_leaves_nothing(gpu: Path, bundle: Path) -> None:
    """A failed build leaves the bundle unchanged, served by ONNX Runtime."""
    (gpu / "fails").touch()
    files = sorted(path.name for path in bundle.iterdir())
    result = run(bundle)
    assert result.exit_code == 1
    assert "trtexec built no plan" in result.stderr
    assert "without a plan ONNX Runtime serves it" in result.stderr
    assert sorted(path.name for path in bundle.iterdir()) == files
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "stack", "tools"]


def test_a_host_without_a_gpu_is_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Building on a host without a GPU is one line and writes nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run(bundle)
    assert result.exit_code == 1
    assert "nvidia-smi finds no GPU" in result.stderr
    assert not (bundle / "model.plan").exists()


def test_a_plan_of_another_network_is_refused(gpu: Path, bundle: Path) -> None:
    """`--check` refuses a plan that is missing or belongs to another `model.onnx`."""
    assert "model.plan does not exist" in run(bundle, "--check").stderr
    assert run(bundle).exit_code == 0
    (bundle / "model.onnx").write_bytes(b"another")
    result = run(bundle, "--check")
    assert result.exit_code == 1
    assert "another model.onnx" in result.stderr


def test_a_folder_that_is_no_bundle_is_refused(gpu: Path, bundle: Path) -> None:
    """A network is built only from a whole bundle with the worker's inputs."""
    (bundle / "model.onnx").write_bytes(b"onnx")
    assert "model.onnx" in run(bundle).stderr
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"]["model.onnx"] = sha256(bundle / "model.onnx")
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    assert "cannot be read as ONNX" in run(bundle).stderr
    assert not (gpu / "commands").exists()


def test_an_operator_that_tensorrt_may_lack_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unsupported operator is refused by name before a build, and the shipped network has none."""
    assert network.read_network(bundle, fp16=True) == {"item_index": (50,), "event_type": (50,), "time_gap": (50,)}
    monkeypatch.setattr(network, "OPERATORS", network.OPERATORS - {"TopK", "Softmax"})
    with pytest.raises(StampError, match="uses Softmax, TopK"):
        network.read_network(bundle, fp16=True)


def test_a_constant_beyond_half_precision_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant beyond half precision is refused for half precision and allowed for single precision."""
    monkeypatch.setattr(network, "HALF_MAX", 100.0)
    with pytest.raises(StampError, match="beyond half precision"):
        network.read_network(bundle, fp16=True)
    network.read_network(bundle, fp16=False)


def test_packed_versions() -> None:
    """TensorRT's packed version is read in the form before 10 and in the form from 10 on."""
    assert build_plan._dotted(100400) == "10.4.0"
    assert build_plan._dotted(101302) == "10.13.2"
    assert build_plan._dotted(8601) == "8.6.1"
