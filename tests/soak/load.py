"""Steady streams: of inferences at a Triton, each pinned and timed, and of events to a worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tritonclient.grpc as triton
from freshet.core.features import USER_ENCODER_INPUTS
from freshet.core.rollout import MODEL
from tritonclient.utils import InferenceServerException

from tests.integration.deployment import Deployment
from tests.integration.event_stream import stream

USERS = 16
PER_SECOND = 50.0
DEADLINE = 5.0
EVENTS_PER_SECOND = 100
FILL_SECONDS = 10.0


@contextmanager
def events_sent(deployment: Deployment) -> Iterator[None]:
    """Send a deployment events at an even pace while the block runs, which begins once caches are full."""
    done = threading.Event()
    feeder = threading.Thread(target=_feed, args=(deployment, done), name="feeder")
    feeder.start()
    try:
        time.sleep(FILL_SECONDS)
        yield
    finally:
        done.set()
        feeder.join()


def _feed(deployment: Deployment, done: threading.Event) -> None:
    events = iter(stream(11, 10**6 // 10, users=2000))
    due = time.monotonic()
    while not done.is_set():
        deployment.send([next(events) for _ in range(EVENTS_PER_SECOND // 10)])
        due += 0.1
        time.sleep(max(0.0, due - time.monotonic()))


class Call(NamedTuple):
    """When an inference began, how long it took in ms, and what went wrong."""

    began: float
    ms: float
    failure: str


class Load:
    """Asks for `version`, which may be set at any time, until it is closed; `calls` are all so far."""

    def __init__(self, address: str, bundle: Path, version: int) -> None:
        self.version = version
        self.calls: list[Call] = []
        with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
            tensors = [(spec, golden[spec.name][:USERS]) for spec in USER_ENCODER_INPUTS]
        self._inputs = []
        for spec, values in tensors:
            self._inputs.append(triton.InferInput(spec.name, list(values.shape), spec.dtype))
            self._inputs[-1].set_data_from_numpy(values)
        self._client = triton.InferenceServerClient(address)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._closing.set()
        self._thread.join()
        self._client.close()

    def between(self, start: float, end: float) -> list[float]:
        """The ms of the inferences that began in a time."""
        return [call.ms for call in self.calls if start <= call.began < end]

    def failures(self) -> list[str]:
        """What went wrong."""
        return [call.failure for call in self.calls if call.failure]

    def _run(self) -> None:
        due = time.monotonic()
        while not self._closing.is_set():
            due += 1 / PER_SECOND
            began, failure = time.monotonic(), ""
            try:
                self._client.infer(MODEL, self._inputs, model_version=str(self.version), client_timeout=DEADLINE)
            except InferenceServerException as error:
                failure = str(error.message())
            self.calls.append(Call(began, (time.monotonic() - began) * 1000, failure))
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due, time.monotonic() - 1.0)
