"""Build a TensorRT plan next to a version's model.onnx, on the host that serves it.

    python -m deploy.tensorrt.build_plan triton_models/user_encoder/1 --fp16
    python -m deploy.tensorrt.build_plan triton_models/user_encoder/1 --check

Run it where Triton runs (same container, same GPU) and before the version is
loaded. Then start the server with `--model-config-name=tensorrt`, which picks
`configs/tensorrt.pbtxt`. `--check` exits 1 with one line where the plan does
not fit the host or the ONNX file: start the server without the flag and the
same version is served by ONNX Runtime.

Not run on a GPU so far: the stamp's comparison is tested, building is not.
It is written for TensorRT 10 (Triton 2.51, container 24.10).
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.tensorrt.stamp import Host, Stamp, StampError, check_stamp, decode_stamp, encode_stamp

BATCHES = (1, 64, 256)
"""Smallest, best-served and largest batch of the optimisation profile."""
FIRST_LENGTH = 50
"""Of the first versions, whose manifests do not say it."""
WORKSPACE_BYTES = 1 << 30
PACKED_10 = 100_000
"""TensorRT 10.0.0 as its library packs it; older ones are packed by thousands."""
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"


class BuildError(Exception):
    """The plan cannot be built here; the message is one line that says why."""


def host() -> Host:
    """The facts of this host. Raises `BuildError` where there is no GPU or no TensorRT."""
    driver, compute_capability = _gpu()
    return Host(_tensorrt_version(), driver, compute_capability)


def build(folder: Path, fp16: bool) -> Stamp:
    """Build `folder/model.plan` and write its stamp last. Raises `BuildError`."""
    onnx = folder / "model.onnx"
    if not onnx.is_file():
        raise BuildError(f"{onnx} does not exist")
    facts = host()
    plan, stamp = folder / "model.plan", folder / "plan.json"
    stamp.unlink(missing_ok=True)
    partial = folder / "model.plan.partial"
    try:
        import tensorrt  # type: ignore[import-not-found] # noqa: F401, PLC0415 - on the serving host alone
    except ImportError:
        _build_by_trtexec(onnx, partial, fp16)
    else:
        partial.write_bytes(_build_by_package(onnx, fp16))
    partial.rename(plan)
    made = Stamp(facts.tensorrt, facts.driver, facts.compute_capability, _sha256(onnx), _sha256(plan), fp16)
    stamp.write_text(encode_stamp(made))
    return made


def check(folder: Path) -> None:
    """Raise `StampError` or `BuildError` unless the plan in `folder` can be served on this host."""
    for name in ("model.onnx", "model.plan", "plan.json"):
        if not (folder / name).is_file():
            raise StampError(f"{folder / name} does not exist")
    stamp = decode_stamp((folder / "plan.json").read_text())
    check_stamp(stamp, host(), _sha256(folder / "model.onnx"), _sha256(folder / "model.plan"))


def _build_by_package(onnx: Path, fp16: bool) -> bytes:
    import tensorrt as trt  # noqa: PLC0415 - on the serving host alone

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise BuildError(f"{onnx}: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in BATCHES))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"TensorRT built no plan from {onnx}; its log is above")
    return bytes(plan)


def _build_by_trtexec(onnx: Path, plan: Path, fp16: bool) -> None:
    shapes = _inputs(onnx.parent)
    flags = [
        f"--{bound}Shapes=" + ",".join(f"{name}:{batch}x{dims}" for name, dims in shapes.items())
        for bound, batch in zip(("min", "opt", "max"), BATCHES, strict=True)
    ]
    command = [_trtexec(), f"--onnx={onnx}", f"--saveEngine={plan}", "--skipInference", *flags]
    if fp16:
        command.append("--fp16")
    if subprocess.run(command, check=False).returncode:
        raise BuildError(f"trtexec built no plan from {onnx}; its log is above")


def _inputs(folder: Path) -> dict[str, str]:
    """Input names with their dims (`50`): the model configuration's, -1 there being the version's own length."""
    config = (folder.parent / "configs" / "tensorrt.pbtxt").read_text()
    block = re.search(r"^input \[(.*?)^\]", config, re.DOTALL | re.MULTILINE)
    tensors = re.findall(r'name: "(\w+)".*?dims: \[ ([-\d, ]+) \]', block.group(1) if block else "")
    if any("-1" in dims for _, dims in tensors):
        try:
            length = str(json.loads((folder / "manifest.json").read_text()).get("length", FIRST_LENGTH))
        except (OSError, ValueError, AttributeError):
            raise BuildError(f"{folder / 'manifest.json'} cannot be read: it says the version's length") from None
        tensors = [(name, dims.replace("-1", length)) for name, dims in tensors]
    return {name: dims.replace(", ", "x") for name, dims in tensors}


def _gpu() -> tuple[str, str]:
    """Driver version and compute capability of the first GPU."""
    command = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"nvidia-smi finds no GPU on this host ({error})") from None
    driver, _, compute_capability = answer.stdout.splitlines()[0].partition(",")
    return driver.strip(), compute_capability.strip()


def _tensorrt_version() -> str:
    """The version of the Python package, or else of the library that Triton itself loads."""
    try:
        import tensorrt  # noqa: PLC0415 - on the serving host alone
    except ImportError:
        try:
            packed = ctypes.CDLL(ctypes.util.find_library("nvinfer") or "libnvinfer.so.10").getInferLibVersion()
        except (OSError, AttributeError):
            raise BuildError("TensorRT is not on this host: no tensorrt package, no libnvinfer") from None
        return _dotted(packed)
    return ".".join(str(tensorrt.__version__).split(".")[:3])


def _dotted(packed: int) -> str:
    """The library's packed version: 100400 is 10.4.0, before TensorRT 10 8601 is 8.6.1."""
    major = 10_000 if packed >= PACKED_10 else 1_000
    return f"{packed // major}.{packed % major // 100}.{packed % 100}"


def _trtexec() -> str:
    found = shutil.which("trtexec") or shutil.which(TRTEXEC)
    if found is None:
        raise BuildError("neither the tensorrt package nor trtexec is on this host")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="build_plan", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="version folder that holds model.onnx")
    parser.add_argument("--fp16", action="store_true", help="allow half precision")
    parser.add_argument("--check", action="store_true", help="build nothing: does the plan there fit this host?")
    given = parser.parse_args(arguments)
    try:
        if given.check:
            check(given.folder)
            print(f"{given.folder / 'model.plan'} fits this host")
        else:
            print(encode_stamp(build(given.folder, given.fp16)), end="")
    except (BuildError, StampError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
