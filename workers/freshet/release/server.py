"""Triton, as a release asks it: what is ready, load, and whether a version gives its golden answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from freshet.adapters.triton_address import CONTROL_KEY, TritonAddress
from freshet.bundle.bundle import ITEM_VECTORS, BundleError, read_table
from freshet.bundle.golden import TOLERANCE, GoldenError, check_answers, read_golden
from freshet.core.features import (
    ITEM_TOWER_INPUTS,
    ITEM_TOWER_OUTPUTS,
    USER_ENCODER_INPUTS,
    USER_ENCODER_OUTPUTS,
    TensorSpec,
)
from freshet.core.rollout import MODEL
from freshet.release.errors import ReleaseError
from freshet.release.repository import MODELS, TOWER
from freshet.release.tensorrt.build_plan import STAMP
from freshet.release.tensorrt.stamp import StampError, decode_stamp

READY_SECONDS = 60.0
INFER_SECONDS = 30.0


class Server:
    """One Triton. Close it."""

    def __init__(self, server: TritonAddress) -> None:
        self.address = server.address
        self._control = server.control_headers
        self._client = triton.InferenceServerClient(**server.arguments)

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def require_live(self) -> None:
        """See that it answers. Raises `ReleaseError`."""
        try:
            if self._client.is_server_live(client_timeout=5.0):
                return
        except InferenceServerException as error:
            raise ReleaseError(f"Triton at {self.address} does not answer: {error.message()}") from None
        raise ReleaseError(f"Triton at {self.address} is not live")

    def ready(self) -> list[int]:
        """The versions of which both models are ready, ascending. Raises `ReleaseError`."""
        try:
            index = self._client.get_model_repository_index(headers=self._control, client_timeout=5.0).models
        except InferenceServerException as error:
            raise self._refused(error) or ReleaseError(
                f"Triton at {self.address} does not answer: {error.message()}"
            ) from None
        found: dict[str, set[int]] = {model: set() for model in MODELS}
        for entry in index:
            if entry.name in found and entry.state == "READY":
                found[entry.name].add(int(entry.version))
        return sorted(set.intersection(*found.values()))

    def load(self, version: int) -> None:
        """Load both models, and wait for the version. Raises `ReleaseError`; what served before then still does."""
        for model in MODELS:
            try:
                self._client.load_model(model, headers=self._control, client_timeout=READY_SECONDS)
                deadline = time.monotonic() + READY_SECONDS
                while not self._client.is_model_ready(model, str(version), client_timeout=5.0):
                    if time.monotonic() > deadline:
                        raise ReleaseError(f"{model} version {version} was not ready after {READY_SECONDS:.0f} s")
                    time.sleep(0.1)
            except InferenceServerException as error:
                why = next(iter(error.message().splitlines()), "no reason given")
                raise self._refused(error) or ReleaseError(
                    f"Triton cannot load {model} version {version}, the old one serves on: {why}"
                ) from None

    def reload(self) -> None:
        """Have both models read again, as far as that goes: they keep what they have where it does not."""
        for model in MODELS:
            try:
                self._client.load_model(model, headers=self._control, client_timeout=READY_SECONDS)
            except InferenceServerException:
                continue

    def try_golden(self, folder: Path, version: int) -> None:
        """Run the pinned version on the bundle's golden inputs.

        Raises:
            ReleaseError: It does not answer, or not with the golden outputs.
        """
        stamp = folder / STAMP
        model = MODEL
        try:
            tolerance = decode_stamp(stamp.read_bytes()).tolerance if stamp.is_file() else TOLERANCE
            golden, item_vectors = read_golden(folder), read_table(folder / ITEM_VECTORS)
            for model, inputs, outputs in (
                (MODEL, USER_ENCODER_INPUTS, USER_ENCODER_OUTPUTS),
                (TOWER, ITEM_TOWER_INPUTS, ITEM_TOWER_OUTPUTS),
            ):
                answers = self._infer(model, version, golden, inputs, outputs)
                check_answers(answers, golden, outputs, item_vectors, tolerance)
        except (BundleError, GoldenError, StampError) as error:
            raise ReleaseError(f"{model} version {version}: {error}") from None

    def _refused(self, error: InferenceServerException) -> ReleaseError | None:
        """What to say where the server asked for a key that this client did not show."""
        if CONTROL_KEY not in error.message():
            return None
        return ReleaseError(
            f"Triton at {self.address} lets only those load models who have its key: set `triton_control_key` "
            "(FRESHET_TRITON_CONTROL_KEY)"
        )

    def _infer(
        self,
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
            answer = self._client.infer(model, requests, model_version=str(version), client_timeout=INFER_SECONDS)
        except InferenceServerException as error:
            raise ReleaseError(f"{model} version {version} does not answer: {error.message()}") from None
        return {spec.name: answer.as_numpy(spec.name) for spec in outputs}
