"""A TensorRT plan beside a version's `model.onnx`, built and tried on the host that serves it.

In order: the network is checked, the plan built with one optimisation profile,
run on the bundle's golden inputs and compared with their golden outputs (which
ONNX Runtime gives too: no bundle is written otherwise), and only then put in
its place with a stamp of what it was built from and for. Whatever fails leaves
the version as it was, served by ONNX Runtime.

Not run on a GPU so far. Command lines, network checks, parity and refusals are
tested with a stand-in for `trtexec`; it is written for TensorRT 10 (Triton
2.51, container 24.10).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from freshet.bundle.bundle import ITEM_VECTORS, read_table
from freshet.bundle.golden import GoldenError, check_answers, read_golden
from freshet.bundle.signature import SignatureError, sign_file, verify_file
from freshet.core.features import USER_ENCODER_INPUTS, USER_ENCODER_OUTPUTS
from freshet.release.tensorrt import trtexec
from freshet.release.tensorrt.network import read_network
from freshet.release.tensorrt.stamp import TOLERANCE, Host, Stamp, StampError, check_stamp, decode_stamp, encode_stamp

PLAN, STAMP, STAMP_SIGNATURE = "model.plan", "plan.json", "plan.sig"
PACKED_10 = 100_000
"""TensorRT 10.0.0 as its library packs it; older ones are packed by thousands."""


@dataclass(frozen=True)
class PlanOptions:
    """How to build, and the private key that signs the stamp."""

    key: Path
    fp16: bool = True
    tolerance: float | None = None
    timing_cache: Path | None = None


def build(folder: Path, options: PlanOptions) -> Stamp:
    """Build, try and stamp the plan of the version at `folder`. Raises `StampError`, `SignatureError`, `OSError`."""
    tolerance = TOLERANCE[options.fp16] if options.tolerance is None else options.tolerance
    if not tolerance <= TOLERANCE[options.fp16]:
        raise StampError(f"a tolerance of {tolerance:g} is more than {TOLERANCE[options.fp16]:g}: give a smaller one")
    inputs = read_network(folder, fp16=options.fp16)
    facts, program = host(), trtexec.find()
    onnx, plan, stamp = folder / "model.onnx", folder / PLAN, folder / STAMP
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.plan-", dir=folder.parent) as beside:
        made = Path(beside) / PLAN
        command = trtexec.build_command(
            program, onnx, made, inputs, fp16=options.fp16, timing_cache=options.timing_cache
        )
        trtexec.run(command, f"built no plan from {onnx}")
        off = parity(folder, made, inputs, program, tolerance)
        built = Stamp(
            facts.tensorrt,
            facts.driver,
            facts.compute_capability,
            _sha256(onnx),
            _sha256(made),
            options.fp16,
            tolerance,
            off,
        )
        (Path(beside) / STAMP).write_text(encode_stamp(built))
        sign_file(Path(beside) / STAMP, Path(beside) / STAMP_SIGNATURE, options.key)
        stamp.unlink(missing_ok=True)  # never an old stamp beside a new plan
        made.rename(plan)
        (Path(beside) / STAMP_SIGNATURE).rename(folder / STAMP_SIGNATURE)
        (Path(beside) / STAMP).rename(stamp)
    return built


def check(folder: Path, trusted: Path) -> Stamp:
    """The stamp of the plan in `folder`, signed by a key of the folder `trusted`.

    Raises `StampError` unless the plan can be served on this host.
    """
    for name in ("model.onnx", PLAN, STAMP):
        if not (folder / name).is_file():
            raise StampError(f"{folder / name} does not exist")
    unsigned = f"{folder / STAMP} is not signed: `freshet build-plan` signs it on the host that builds the plan"
    try:
        verify_file(folder / STAMP, folder / STAMP_SIGNATURE, trusted, unsigned)
    except SignatureError as error:
        raise StampError(str(error)) from None
    stamp = decode_stamp((folder / STAMP).read_bytes())
    check_stamp(stamp, host(), _sha256(folder / "model.onnx"), _sha256(folder / PLAN))
    return stamp


def host() -> Host:
    """The facts of this host. Raises `StampError` where there is no GPU or no TensorRT."""
    driver, compute_capability = _gpu()
    return Host(_tensorrt_version(), driver, compute_capability)


def parity(folder: Path, plan: Path, inputs: trtexec.Dims, program: str, tolerance: float) -> float:
    """How far the plan's answers to the golden inputs are off the golden outputs at most.

    Raises `StampError`, also where that is more than `tolerance`.
    """
    golden = read_golden(folder)
    item_vectors = read_table(folder / ITEM_VECTORS)
    with tempfile.TemporaryDirectory(prefix="freshet-plan-") as work:
        files = {spec.name: Path(work) / f"{spec.name}.bin" for spec in USER_ENCODER_INPUTS}
        for name, file in files.items():
            file.write_bytes(np.ascontiguousarray(golden[name], np.int32).tobytes())
        out = Path(work) / "outputs.json"
        batch = len(golden[USER_ENCODER_INPUTS[0].name])
        trtexec.run(trtexec.run_command(program, plan, inputs, batch, files, out), f"cannot run {plan.name}")
        if not out.is_file():
            raise StampError("trtexec wrote no outputs of the plan")
        answers = trtexec.outputs(out.read_text())
    try:
        return check_answers(answers, golden, USER_ENCODER_OUTPUTS, item_vectors, tolerance)
    except GoldenError as error:
        raise StampError(f"the plan answers otherwise: {error}") from None


def _gpu() -> tuple[str, str]:
    """Driver version and compute capability of the first GPU."""
    command = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        driver, _, compute_capability = answer.stdout.splitlines()[0].partition(",")
    except (OSError, IndexError, subprocess.SubprocessError) as error:
        raise StampError(f"nvidia-smi finds no GPU on this host ({error})") from None
    return driver.strip(), compute_capability.strip()


def _tensorrt_version() -> str:
    """The version of the library that Triton itself loads."""
    try:
        packed = ctypes.CDLL(ctypes.util.find_library("nvinfer") or "libnvinfer.so.10").getInferLibVersion()
    except (OSError, AttributeError):
        raise StampError("TensorRT is not on this host: there is no libnvinfer") from None
    return _dotted(packed)


def _dotted(packed: int) -> str:
    """The library's packed version: 100400 is 10.4.0, before TensorRT 10 8601 is 8.6.1."""
    major = 10_000 if packed >= PACKED_10 else 1_000
    return f"{packed // major}.{packed % major // 100}.{packed % 100}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
