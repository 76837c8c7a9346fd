"""TensorRT through its own command line, `trtexec`, as the Triton container carries it: command lines, and answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from freshet.release.tensorrt.stamp import StampError

BATCHES = (1, 64, 256)
"""Smallest, best-served and largest batch of the optimisation profile."""
WORKSPACE_MIB = 1024
CONTAINER = "/usr/src/tensorrt/bin/trtexec"

Dims = Mapping[str, tuple[int, ...]]


def build_command(
    program: str, onnx: Path, plan: Path, inputs: Dims, *, fp16: bool, timing_cache: Path | None
) -> list[str]:
    """Build a plan with one optimisation profile over the batch."""
    bounds = zip(("min", "opt", "max"), BATCHES, strict=True)
    command = [program, f"--onnx={onnx}", f"--saveEngine={plan}", "--skipInference"]
    command += [f"--memPoolSize=workspace:{WORKSPACE_MIB}"]
    command += [f"--{bound}Shapes={_shapes(inputs, batch)}" for bound, batch in bounds]
    if fp16:
        command.append("--fp16")
    if timing_cache is not None:
        command.append(f"--timingCacheFile={timing_cache}")
    return command


def run_command(program: str, plan: Path, inputs: Dims, batch: int, files: Mapping[str, Path], out: Path) -> list[str]:
    """Run a plan once on the raw tensors in `files` and write its outputs to `out` as JSON."""
    loaded = ",".join(f"{name}:{file}" for name, file in files.items())
    return [
        *(program, f"--loadEngine={plan}", f"--shapes={_shapes(inputs, batch)}", f"--loadInputs={loaded}"),
        *("--warmUp=0", "--duration=0", "--iterations=1", f"--exportOutput={out}"),
    ]


def outputs(text: str) -> dict[str, NDArray[np.float64]]:
    """The tensors that `--exportOutput` wrote. Raises `StampError`."""
    try:
        found = {}
        for tensor in json.loads(text):
            shape = tuple(int(axis) for axis in tensor["dimensions"].split("x"))
            found[str(tensor["name"])] = np.array(tensor["values"], np.float64).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StampError(f"what the plan answered cannot be read: {error}") from None
    return found


def find() -> str:
    """The program. Raises `StampError` where this host has none."""
    found = shutil.which("trtexec") or shutil.which(CONTAINER)
    if found is None:
        raise StampError(f"there is no trtexec on this host, neither on the PATH nor at {CONTAINER}")
    return found


def run(command: list[str], failure: str) -> None:
    """Run a command; its log goes to stderr. Raises `StampError`."""
    if subprocess.run(command, stdout=2, check=False).returncode:
        raise StampError(f"trtexec {failure}; its log is above")


def _shapes(inputs: Dims, batch: int) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, (batch, *dims)))}" for name, dims in inputs.items())
