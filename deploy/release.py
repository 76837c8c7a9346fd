"""Bringing a bundle into service: verify, rename in, load, try, promote.

Triton keeps serving the versions it has while another one loads, and keeps them when that load
fails; so until the record on the models topic is written nothing has changed for any worker.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from workers.core.bundle import BundleError
from workers.core.features import (
    ITEM_TOWER_INPUTS,
    ITEM_TOWER_OUTPUTS,
    USER_ENCODER_INPUTS,
    USER_ENCODER_OUTPUTS,
    TensorSpec,
)
from workers.core.rollout import MODEL, Rollout
from workers.signature import load_trusted

TOWER = "item_tower"
LOAD_ORDER = (TOWER, MODEL)
"""The user encoder last: a worker that sees its new version finds the item tower ready."""
READY_SECONDS = 60.0
INFER_SECONDS = 30.0
TOLERANCE = 1e-3
"""Largest difference from the golden outputs."""

Step = Callable[[str], AbstractContextManager[Any]]


class ReleaseError(Exception):
    """The bundle was not brought into service; the message says why, and what serves now."""


def publish_bundle(
    folder: Path,
    repository: Path,
    address: str,
    trusted: Path,
    announce: Callable[[Rollout], None],
    *,
    version: int | None = None,
    step: Step = lambda _name: nullcontext(),
) -> Rollout:
    """Bring the bundle at `folder` into service as the next version, or as `version`.

    Args:
        folder: The bundle; it is copied.
        repository: Triton's model repository.
        address: Triton's gRPC address.
        trusted: Folder of the public keys that may have signed it.
        announce: Writes the rollout record and returns once it is durable.
        version: The number to give it; must be newer than any other.
        step: Told of each step.

    Raises:
        ReleaseError: A step failed. What was renamed in has been removed again.
    """
    with step("bundle verified"):
        try:
            load_trusted(folder, trusted)
        except (BundleError, OSError, ValueError) as error:
            raise ReleaseError(str(error)) from None
    for model in LOAD_ORDER:
        if not (repository / model / "config.pbtxt").is_file():
            raise ReleaseError(f"{repository} is no model repository: it lacks {model}/config.pbtxt")
    client = triton.InferenceServerClient(address)
    try:
        with _only_publisher(repository) as staging:
            _require_live(client, address)
            number = _number(repository, version)
            placed: list[Path] = []
            try:
                with step(f"version {number} copied"):
                    _place(folder, trusted, repository, number, staging, placed)
                with step("loaded"):
                    for model in LOAD_ORDER:
                        _load(client, model, number)
                with step("golden inference"):
                    try_golden(client, folder, number)
            except BaseException:
                _take_back(client, placed)
                raise
            rollout = Rollout(MODEL, number, "promoted", int(time.time() * 1000))
            with step("promoted"):
                try:
                    announce(rollout)
                except Exception as error:
                    # the record may have arrived, so the version must stay where workers will look for it
                    raise ReleaseError(
                        f"version {number} is loaded and works, but its promotion may not have been recorded: {error}"
                    ) from error
            return rollout
    finally:
        client.close()


def try_golden(client: Any, folder: Path, version: int) -> None:
    """Run the pinned version on the bundle's golden inputs.

    Raises:
        ReleaseError: It does not answer, or not with the golden outputs.
    """
    with np.load(folder / "golden.npz", allow_pickle=False) as stored:
        golden = dict(stored)
    for model, inputs, outputs in (
        (MODEL, USER_ENCODER_INPUTS, USER_ENCODER_OUTPUTS),
        (TOWER, ITEM_TOWER_INPUTS, ITEM_TOWER_OUTPUTS),
    ):
        if any(spec.name not in golden for spec in (*inputs, *outputs)):
            if model == TOWER:
                continue
            raise ReleaseError(f"{folder / 'golden.npz'} has no golden tensors of {model}")
        answered = _infer(client, model, version, golden, inputs, outputs)
        for spec in outputs:
            if spec.dtype != "FP32":
                continue  # nearly equal scores may swap their places; their scores are compared
            values = answered[spec.name]
            if values.shape != golden[spec.name].shape or not np.isfinite(values).all():
                raise ReleaseError(f"{model} version {version}: {spec.name} has a wrong shape, NaN or infinity")
            worst = float(np.abs(values - golden[spec.name]).max(initial=0.0))
            if worst > TOLERANCE:
                raise ReleaseError(f"{model} version {version}: {spec.name} is off its golden values by {worst:.2g}")


def _infer(
    client: Any,
    model: str,
    version: int,
    golden: dict[str, Any],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> dict[str, Any]:
    requests = []
    for spec in inputs:
        request = triton.InferInput(spec.name, list(golden[spec.name].shape), spec.dtype)
        request.set_data_from_numpy(golden[spec.name])
        requests.append(request)
    try:
        answer = client.infer(model, requests, model_version=str(version), client_timeout=INFER_SECONDS)
    except InferenceServerException as error:
        raise ReleaseError(f"{model} version {version} does not answer: {error.message()}") from None
    return {spec.name: answer.as_numpy(spec.name) for spec in outputs}


@contextmanager
def _only_publisher(repository: Path) -> Iterator[Path]:
    """A scratch folder beside the repository, where Triton does not look; one publisher at a time."""
    beside = repository.resolve().parent / f".{repository.resolve().name}-publish"
    try:
        beside.mkdir(exist_ok=True)
        if beside.stat().st_dev != repository.stat().st_dev:
            beside = repository / ".publish"
            beside.mkdir(exist_ok=True)
        lock = (beside / "lock").open("w")
    except OSError as error:
        raise ReleaseError(f"{error.filename}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReleaseError(f"somebody else is publishing into {repository}") from None
        with tempfile.TemporaryDirectory(dir=beside) as scratch:
            yield Path(scratch)


def _require_live(client: Any, address: str) -> None:
    try:
        if client.is_server_live(client_timeout=5.0):
            return
    except InferenceServerException as error:
        raise ReleaseError(f"Triton at {address} does not answer: {error.message()}") from None
    raise ReleaseError(f"Triton at {address} is not live")


def _number(repository: Path, asked: int | None) -> int:
    """The version's number. Raises `ReleaseError` for one that is not newer than what is there."""
    present = [
        int(folder.name)
        for model in LOAD_ORDER
        for folder in (repository / model).iterdir()
        if folder.is_dir() and folder.name.isdigit()
    ]
    newest = max(present, default=0)
    if asked is not None and asked <= newest:
        raise ReleaseError(f"version {asked} is not newer than {newest}, and only the newest two are served")
    return newest + 1 if asked is None else asked


def _place(folder: Path, trusted: Path, repository: Path, number: int, staging: Path, placed: list[Path]) -> None:
    """Copy aside, make durable, rename in; `placed` grows with each folder that is in."""
    tower, encoder = staging / TOWER, staging / MODEL
    shutil.copytree(folder, encoder)
    try:
        load_trusted(encoder, trusted)
    except BundleError as error:
        raise ReleaseError(f"the copy is not the bundle: {error}") from None
    tower.mkdir()
    shutil.copy(encoder / "item_tower.onnx", tower / "model.onnx")
    for source in (tower, encoder):
        _sync(source)
        target = repository / source.name / str(number)
        source.rename(target)
        placed.append(target)
        _sync_one(target.parent)


def _load(client: Any, model: str, version: int) -> None:
    try:
        client.load_model(model, client_timeout=READY_SECONDS)
        deadline = time.monotonic() + READY_SECONDS
        while not client.is_model_ready(model, str(version)):
            if time.monotonic() > deadline:
                raise ReleaseError(f"{model} version {version} was not ready after {READY_SECONDS:.0f} s")
            time.sleep(0.1)
    except InferenceServerException as error:
        first = next(iter(error.message().splitlines()), "no reason given")
        raise ReleaseError(f"Triton cannot load {model} version {version}, the old one serves on: {first}") from None


def _take_back(client: Any, placed: list[Path]) -> None:
    """Remove the version's folders and have Triton forget it, as far as that goes."""
    for folder in reversed(placed):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in placed:
        try:
            client.load_model(folder.parent.name, client_timeout=READY_SECONDS)
        except InferenceServerException:
            continue  # it keeps what it had


def _sync(folder: Path) -> None:
    """Make a folder and all its files durable."""
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
