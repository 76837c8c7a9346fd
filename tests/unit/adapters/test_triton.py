"""The circuit breaker, and how the encoder uses it."""

from typing import Any

import numpy as np
import pytest
from freshet.adapters import triton
from freshet.adapters.triton import BREAKER_FAILURES, BREAKER_SECONDS, RETRY_BURST, Breaker, TritonEncoder
from freshet.adapters.triton_address import TritonAddress
from freshet.core.features import USER_ENCODER_INPUTS, USER_ENCODER_OUTPUTS, Tensors
from freshet.ports import Unavailable
from freshet.process.metrics import BREAKER_OPEN
from prometheus_client import REGISTRY
from tritonclient.utils import InferenceServerException

LENGTH = 50
TENSORS: Tensors = {spec.name: np.zeros((1, LENGTH), np.int32) for spec in USER_ENCODER_INPUTS}


class Clock:
    """A clock that stands until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock of the test's own."""
    return Clock()


def opened(clock: Clock) -> Breaker:
    """A breaker just opened."""
    breaker = Breaker(clock)
    for _ in range(BREAKER_FAILURES):
        breaker.check()
        breaker.failed()
    return breaker


def test_consecutive_failures_open_the_breaker(clock: Clock) -> None:
    """Consecutive failures open the breaker, and a success between failures starts the count again."""
    breaker = Breaker(clock)
    for _ in range(3):
        for _ in range(BREAKER_FAILURES - 1):
            breaker.failed()
        breaker.check()
        breaker.succeeded()
    with pytest.raises(Unavailable):
        opened(clock).check()


def test_a_single_call_passes_after_the_pause(clock: Clock) -> None:
    """After the pause the breaker lets a single call through, and other calls wait for its result."""
    breaker = opened(clock)
    clock.now += BREAKER_SECONDS - 0.01
    with pytest.raises(Unavailable):
        breaker.check()
    clock.now += 0.01
    breaker.check()
    with pytest.raises(Unavailable):
        breaker.check()


def test_a_good_call_closes_the_breaker(clock: Clock) -> None:
    """A successful trial call closes the breaker for every later call."""
    breaker = opened(clock)
    clock.now += BREAKER_SECONDS
    breaker.check()
    breaker.succeeded()
    breaker.check()
    breaker.check()


def test_a_bad_call_keeps_the_breaker_open(clock: Clock) -> None:
    """A failed trial call starts the pause again."""
    breaker = opened(clock)
    clock.now += BREAKER_SECONDS
    breaker.check()
    clock.now += 0.5
    breaker.failed()
    clock.now += BREAKER_SECONDS - 0.01
    with pytest.raises(Unavailable):
        breaker.check()
    clock.now += 0.01
    breaker.check()


def test_the_gauge_says_whether_the_breaker_is_open(clock: Clock) -> None:
    """The gauge is 1 while the breaker keeps calls away."""
    breaker = Breaker(clock, BREAKER_OPEN.labels("7"))
    for _ in range(BREAKER_FAILURES):
        breaker.failed()
    assert REGISTRY.get_sample_value("freshet_encoder_breaker_open", {"version": "7"}) == 1
    breaker.succeeded()
    assert REGISTRY.get_sample_value("freshet_encoder_breaker_open", {"version": "7"}) == 0


class Result:
    """What Triton answers with."""

    def __init__(self, value: float) -> None:
        self.value = value

    def as_numpy(self, name: str) -> np.ndarray:
        """An output of a version with three candidates, filled with one value."""
        [spec] = [spec for spec in USER_ENCODER_OUTPUTS if spec.name == name]
        return np.full(
            (1, 64 if name == "embedding" else 3), self.value, np.int32 if spec.dtype == "INT32" else np.float32
        )


class FakeTriton:
    """Triton's client: fails as long as it is told to, and counts."""

    def __init__(self) -> None:
        self.failures = 0
        self.value = 1.0
        self.calls: list[dict[str, Any]] = []

    async def infer(self, model: str, _requests: object, **options: Any) -> Result:
        """Answer, or fail."""
        self.calls.append({"model": model, **options})
        if self.failures:
            self.failures -= 1
            raise InferenceServerException("StatusCode.UNAVAILABLE")
        return Result(self.value)


@pytest.fixture
async def encoder(monkeypatch: pytest.MonkeyPatch) -> TritonEncoder:
    """An encoder over a fake client, whose retries do not wait."""
    made = TritonEncoder(TritonAddress("127.0.0.1:1"), deadline=0.7)
    await made._client.close()
    made._client = FakeTriton()

    async def no_wait(_seconds: float) -> None:
        pass

    monkeypatch.setattr(triton.asyncio, "sleep", no_wait)
    return made


async def test_a_call_has_a_deadline_and_a_pinned_version(encoder: TritonEncoder) -> None:
    """Every call carries a deadline and a pinned version."""
    await encoder.encode(TENSORS, 7)
    [call] = encoder._client.calls
    assert (call["model"], call["model_version"], call["client_timeout"]) == ("user_encoder", "7", 0.7)


async def test_a_failed_call_is_tried_again(encoder: TritonEncoder) -> None:
    """The encoder retries a failed call, so the caller does not see a single failure."""
    encoder._client.failures = 1
    encoded = await encoder.encode(TENSORS, 1)
    assert encoded.embedding.shape == (1, 64)
    assert len(encoder._client.calls) == 2


async def test_a_dead_server_is_asked_no_more(encoder: TritonEncoder) -> None:
    """After the failures that open the breaker, calls fail at once and reach no server."""
    encoder._client.failures = 10**9
    for _ in range(20):
        with pytest.raises(Unavailable):
            await encoder.encode(TENSORS, 1)
    assert len(encoder._client.calls) == BREAKER_FAILURES


async def test_a_failing_version_keeps_no_other_from_being_asked(encoder: TritonEncoder) -> None:
    """The breaker of a failing canary leaves the breaker of the live version closed."""
    encoder._client.failures = BREAKER_FAILURES
    for _ in range(5):
        with pytest.raises(Unavailable):
            await encoder.encode(TENSORS, 8)
    assert (await encoder.encode(TENSORS, 7)).embedding.shape == (1, 64)


async def test_an_encoder_with_once_sends_a_single_request(encoder: TritonEncoder) -> None:
    """An encoder with `once` sends a single request a call, and asks a failed version again at the next call."""
    once = TritonEncoder(TritonAddress("127.0.0.1:1"), deadline=0.7, once=True)
    await once._client.close()
    once._client = encoder._client
    encoder._client.failures = 20
    for _ in range(20):
        with pytest.raises(Unavailable):
            await once.encode(TENSORS, 1)
    assert len(encoder._client.calls) == 20
    assert (await once.encode(TENSORS, 1)).embedding.shape == (1, 64)


async def test_retries_have_a_budget(encoder: TritonEncoder) -> None:
    """Under steady failures the number of calls sent is the calls made, the burst and a tenth more."""
    calls = 200
    for _ in range(calls):
        encoder._client.failures = 2
        try:
            await encoder.encode(TENSORS, 1)
        except Unavailable:
            encoder.breaker(1).succeeded()
    assert len(encoder._client.calls) <= calls * 1.1 + RETRY_BURST + 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_what_is_no_number_is_unavailable(
    encoder: TritonEncoder, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that returns NaN or infinity counts as unavailable."""
    monkeypatch.setattr(Result, "as_numpy", lambda *_: np.full((1, 64), value, np.float32))
    with pytest.raises(Unavailable, match="NaN"):
        await encoder.encode(TENSORS, 1)
