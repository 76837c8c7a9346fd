"""The encoder behind Triton's gRPC API, with a deadline, a retry budget and a circuit breaker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from freshet.adapters.triton_address import TritonAddress
from freshet.core.features import (
    ITEM_TOWER_INPUTS,
    ITEM_TOWER_OUTPUTS,
    TEXT_ENCODER_INPUTS,
    TEXT_ENCODER_OUTPUTS,
    USER_ENCODER_INPUTS,
    USER_ENCODER_OUTPUTS,
    Tensors,
    TensorSpec,
)
from freshet.core.rollout import MODEL
from freshet.ports import Encoded, Unavailable
from freshet.process import metrics

RETRY_RATIO = 0.1
"""Retries allowed per call on average, so that a struggling server is not made worse."""
RETRY_BURST = 10.0
BREAKER_FAILURES = 3
"""Consecutive failures that open the breaker."""
BREAKER_SECONDS = 1.0
"""How long an open breaker keeps calls away before one may try again."""
VERSIONS_KEPT = 4
"""Versions that have a breaker; Triton serves two."""
TEXT_VERSION = ""
"""The text encoder has one version."""
_CHANNEL_ARGS = [
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
]


class Breaker:
    """A circuit breaker: opens after consecutive failures, lets one call try after a pause."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, gauge: Any = None) -> None:
        self._clock = clock
        self._gauge = gauge
        self._failures = 0
        self._closed_again_at = 0.0

    def check(self) -> None:
        """Raise `Unavailable` while the breaker is open; an allowed trial call keeps others out."""
        if self._failures < BREAKER_FAILURES:
            return
        now = self._clock()
        if now < self._closed_again_at:
            raise Unavailable("the circuit breaker is open after consecutive failures of Triton")
        self._closed_again_at = now + BREAKER_SECONDS

    def succeeded(self) -> None:
        """Close the breaker."""
        self._failures = 0
        if self._gauge is not None:
            self._gauge.set(0)

    def failed(self) -> None:
        """Count a failure; enough of them open the breaker."""
        self._failures += 1
        if self._failures >= BREAKER_FAILURES:
            self._closed_again_at = self._clock() + BREAKER_SECONDS
            if self._gauge is not None:
                self._gauge.set(1)


class TritonEncoder:
    """An `Encoder` over one gRPC channel; call it from one event loop. `deadline` in seconds per call.

    With `once` every call is one request, whatever came of those before it: no retry and no breaker, for a version
    that is to be judged by its answers.
    """

    def __init__(self, server: TritonAddress, deadline: float, *, once: bool = False) -> None:
        self._client = triton.InferenceServerClient(**server.arguments, channel_args=_CHANNEL_ARGS)
        self._deadline = deadline
        self._once = once
        self._burst = 0.0 if once else RETRY_BURST
        self._retries = self._burst
        self._breakers: dict[int, Breaker] = {}
        """One per version: a failing canary must not keep the live version from being asked."""

    def breaker(self, version: int) -> Breaker:
        """The breaker of one version of the user encoder."""
        if self._once:
            return Breaker()
        found = self._breakers.get(version)
        if found is None:
            found = self._breakers[version] = Breaker(gauge=metrics.BREAKER_OPEN.labels(version))
            if len(self._breakers) > VERSIONS_KEPT:
                oldest = next(iter(self._breakers))
                del self._breakers[oldest]
                metrics.BREAKER_OPEN.remove(oldest)
        return found

    async def encode(self, tensors: Tensors, version: int) -> Encoded:
        """Encode a batch of users with the pinned version. Raises `Unavailable`."""
        outputs = await self._infer(
            self.breaker(version), MODEL, str(version), tensors, USER_ENCODER_INPUTS, USER_ENCODER_OUTPUTS
        )
        encoded = Encoded(*outputs)
        if not (np.isfinite(encoded.embedding).all() and np.isfinite(encoded.topk_score).all()):
            raise Unavailable(f"{MODEL} version {version} returned NaN or infinity")
        return encoded

    async def item_vectors(self, texts: Sequence[str], version: int) -> NDArray[np.float32]:
        """Vectors `[len(texts), D]` for item texts in the pinned version's space, asked for once. Raises `Unavailable`.

        Whoever asks tries other texts after a failure (`serving.item_texts`): there is neither retry nor breaker here.
        """
        raw = np.array([[text.encode()] for text in texts], dtype=np.object_)
        [text_embedding] = await self._infer(
            None,
            "text_encoder",
            TEXT_VERSION,
            {TEXT_ENCODER_INPUTS[0].name: raw},
            TEXT_ENCODER_INPUTS,
            TEXT_ENCODER_OUTPUTS,
        )
        [vectors] = await self._infer(
            None,
            "item_tower",
            str(version),
            {ITEM_TOWER_INPUTS[0].name: text_embedding},
            ITEM_TOWER_INPUTS,
            ITEM_TOWER_OUTPUTS,
        )
        return vectors

    async def ready(self, version: int) -> bool:
        """Whether the pinned version of the user encoder is ready; if so, an open breaker closes."""
        try:
            ready = bool(await self._client.is_model_ready(MODEL, str(version), client_timeout=self._deadline))
        except (InferenceServerException, grpc.aio.AioRpcError):
            return False
        if ready:
            self.breaker(version).succeeded()
        return ready

    async def newest(self, versions: Collection[int]) -> int | None:
        """The newest of these versions of the user encoder that is ready; None for none. Raises `Unavailable`."""
        try:
            for version in sorted(versions, reverse=True):
                if await self._client.is_model_ready(MODEL, str(version), client_timeout=self._deadline):
                    return version
        except (InferenceServerException, grpc.aio.AioRpcError) as error:
            raise Unavailable(f"Triton: {_why(error)}") from error
        return None

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()

    async def _infer(
        self,
        breaker: Breaker | None,
        model: str,
        version: str,
        tensors: Tensors,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> list[NDArray[Any]]:
        requests = []
        for spec in inputs:
            request = InferInput(spec.name, list(tensors[spec.name].shape), spec.dtype)
            request.set_data_from_numpy(tensors[spec.name])
            requests.append(request)
        wanted = [InferRequestedOutput(spec.name) for spec in outputs]
        if breaker is not None:
            self._retries = min(self._retries + RETRY_RATIO, self._burst)
        while True:
            if breaker is not None:
                breaker.check()
            try:
                result = await self._client.infer(
                    model, requests, model_version=version, outputs=wanted, client_timeout=self._deadline
                )
            except (InferenceServerException, grpc.aio.AioRpcError) as error:
                if breaker is not None:
                    breaker.failed()
                if breaker is None or self._retries < 1.0:
                    raise Unavailable(f"{model} at Triton: {_why(error)}") from error
                self._retries -= 1.0
                await asyncio.sleep(0.02)
            else:
                if breaker is not None:
                    breaker.succeeded()
                return [result.as_numpy(spec.name) for spec in outputs]


def _why(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
