"""The user encoder in Triton alone: how many users a second it encodes at one batch size.

A closed loop with a few requests in flight and nothing else done: the requests
are made beforehand, from states that a generated stream was folded into.
"""

from __future__ import annotations

import asyncio
import time
from itertools import cycle
from typing import Any

import numpy as np
from freshet.core.features import TOP_K
from freshet.core.state import HISTORY, UserState, empty_state, fold
from tritonclient.grpc import InferResult
from tritonclient.grpc.aio import InferenceServerClient

from tests.bench import harness, job
from tests.bench.stream import generate

BATCHES = 16


def measure(
    *,
    triton: str,
    batch: int = 64,
    in_flight: int = 2,
    seconds: float = 10.0,
    warmup_s: float = 2.0,
    version: int = 1,
    bundle: str | None = None,
    seed: int = 0,
) -> harness.Figures:
    """Encode batches of `batch` users for `seconds`, `in_flight` requests at a time."""
    vocabulary = job.Vocabulary(bundle)
    states = _states(batch * BATCHES, vocabulary, seed)
    requests = [
        job.encoder_request(states[start : start + batch], vocabulary, version)
        for start in range(0, len(states), batch)
    ]
    latencies, elapsed = asyncio.run(_closed_loop(triton, requests, in_flight, seconds, warmup_s))
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "system": "triton alone",
        "batch": batch,
        "in_flight": in_flight,
        "seconds": round(elapsed, 3),
        "users": len(latencies) * batch,
        "users_per_s": round(len(latencies) * batch / elapsed, 1),
        "request_p50_ms": round(float(p50) * 1e3, 3),
        "request_p99_ms": round(float(p99) * 1e3, 3),
    }


def _states(users: int, vocabulary: job.Vocabulary, seed: int) -> list[UserState]:
    states = [empty_state(0) for _ in range(users)]
    stream = generate(users=users, events=users * HISTORY, items=vocabulary.items, seed=seed)
    for offset, event in enumerate(stream):
        fold(states[int(event.user_id[1:])], event, 0, offset)
    return states


async def _closed_loop(
    triton: str, requests: list[dict[str, Any]], in_flight: int, seconds: float, warmup_s: float
) -> tuple[list[float], float]:
    latencies: list[float] = []
    batch = requests[0]["inputs"][0].shape()[0]
    client = InferenceServerClient(triton)
    endless = cycle(requests)
    begin = time.perf_counter() + warmup_s
    end = begin + seconds
    last = begin

    async def ask() -> None:
        nonlocal last
        while (sent := time.perf_counter()) < end:
            answer = await client.infer(**next(endless))
            if sent >= begin:
                last = time.perf_counter()
                latencies.append(last - sent)
                _check(answer, batch)

    await asyncio.gather(*(ask() for _ in range(in_flight)))
    await client.close()
    return latencies, last - begin


def _check(answer: InferResult, batch: int) -> None:
    """An answer without tensors, or with other ones, would be fast and worth nothing."""
    shapes = answer.as_numpy("topk_index").shape, answer.as_numpy("embedding").shape[:1]
    if shapes != ((batch, TOP_K), (batch,)):
        raise harness.ComparatorError(f"Triton answered with shapes {shapes}")


run = harness.launcher(measure)

if __name__ == "__main__":
    harness.command_line(measure)
