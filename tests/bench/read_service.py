"""Lists over HTTP: `freshet serve` beside a working worker, and the same answer written the usual way.

The usual way is `feast serve` for the features and a Triton client for the candidates, asked one after the other.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import tritonclient.grpc as triton
from freshet.bundle.bundle import load_bundle
from freshet.core.features import USER_ENCODER_INPUTS, USER_ENCODER_OUTPUTS, featurise, state_of
from freshet.core.rollout import MODEL

from deploy.local import Stack
from deploy.local.ports import choose_ports
from tests.bench import harness
from tests.bench.whole_path import PARTITIONS, WARM_UP_SECONDS, paced
from tests.bench.worker import BenchWorker, Names

USERS = 2000
CLIENTS = 4
"""Requests under way together where the rate is what the service can do."""
START_SECONDS = 60.0
RECENT = ("recent_items", "recent_types", "recent_times", "last_event_time")


def measure(stack: Stack, prefix: str, *, rate: float, seconds: float) -> dict[str, harness.Figures]:
    """Latency at `rate` requests a second beside as many events, then what each way can do with nothing beside it."""
    names = Names(prefix)
    names.create(stack.bootstrap, PARTITIONS)
    store = {"FRESHET_ONLINE_STORE": f"redis://{stack.redis}"}
    ports = choose_ports(["serve", "feast"], asked={}, preferred={})
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder:
        environment = names.environment(stack) | store | {"FRESHET_FEAST_DIR": f"{folder}/feast"}
        environment |= {"FRESHET_HTTP_PORT": str(ports["serve"]), "FRESHET_HTTP_RATE": "100000"}
        with BenchWorker(names, stack, Path(folder), **store) as worker:
            worker.start()
            worker.wait_ready()
            with _process("freshet.cli", "serve", environment=environment, port=ports["serve"]):
                events = int(rate * (WARM_UP_SECONDS + seconds))
                producing = Thread(target=paced, args=(stack, names, USERS, events, rate, {}))
                producing.start()
                time.sleep(WARM_UP_SECONDS)
                figures = {f"{rate:.0f} requests/s": asyncio.run(_at_rate(ports["serve"], rate, seconds - 2))}
                producing.join()
                ours = _closed_loop(lambda: _asked(ports["serve"]), seconds / 2)
            feast = ("-f", f"{folder}/feast/feature_store.yaml", "serve", "-p", str(ports["feast"]))
            with _process("feast.cli.cli", *feast, environment=environment, port=ports["feast"]):
                usual = _closed_loop(lambda: _usual(stack, ports["feast"]), seconds / 2)
    figures["freshet serve"] = {"requests_per_s": ours, "x_usual": round(ours / usual, 2)}
    figures["feast serve and Triton"] = {"requests_per_s": usual}
    return figures


def _user(numbers: random.Random) -> str:
    return f"u{numbers.randrange(USERS)}"


async def _at_rate(port: int, rate: float, seconds: float) -> harness.Figures:
    """Latencies from the moment at which a request was due: a late one does not hide those behind it."""
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    numbers, taken = random.Random(1), []

    @asynccontextmanager
    async def connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        pair = idle.get_nowait() if not idle.empty() else await asyncio.open_connection("127.0.0.1", port)
        yield pair
        idle.put_nowait(pair)

    async def ask(due: float) -> None:
        async with connection() as (reader, writer):
            writer.write(f"GET /v1/users/{_user(numbers)}/list HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise harness.ComparatorError(head.decode())
            [length] = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(length)
        taken.append((time.perf_counter() - due) * 1000)

    begin = time.perf_counter()
    asked = []
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(ask(due)))
    await asyncio.gather(*asked)
    p50, p90, p99 = np.percentile(taken, [50, 90, 99])
    return {name: round(float(value), 1) for name, value in (("p50_ms", p50), ("p90_ms", p90), ("p99_ms", p99))}


def _closed_loop(opened: Callable[[], Callable[[str], None]], seconds: float) -> float:
    """Requests a second of `CLIENTS` clients, each of which asks again as soon as it is answered."""

    def work(seed: int) -> int:
        ask, numbers, done = opened(), random.Random(seed), 0
        for _ in range(10):
            ask(_user(numbers))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            ask(_user(numbers))
            done += 1
        return done

    with ThreadPoolExecutor(CLIENTS) as clients:
        return round(sum(clients.map(work, range(CLIENTS))) / seconds, 1)


def _asked(port: int) -> Callable[[str], None]:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(user_id: str) -> None:
        connection.request("GET", f"/v1/users/{user_id}/list")
        answer = connection.getresponse()
        if len(msgspec.json.decode(answer.read())["items"]) != 10:
            raise harness.ComparatorError("a list is short")

    return ask


def _usual(stack: Stack, port: int) -> Callable[[str], None]:
    """Features of `feast serve`, the encoder's candidates from Triton, and the best ten that were not seen."""
    bundle = load_bundle(stack.models / MODEL / "1")
    client = triton.InferenceServerClient(stack.triton_grpc)
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(user_id: str) -> None:
        body = {"features": [f"user_behaviour:{name}" for name in RECENT], "entities": {"user_id": [user_id]}}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/get-online-features", msgspec.json.encode(body), headers)
        answer = msgspec.json.decode(connection.getresponse().read())
        values = (result["values"][0] for result in answer["results"])
        found: dict[str, Any] = dict(zip(answer["metadata"]["feature_names"], values, strict=True))
        features = {name: found[name] or [] for name in RECENT[:3]} | {"last_event_time": found["last_event_time"] or 0}
        state = state_of(features | {"as_of": None, "seen_items": None, "feature_time": None})
        tensors = featurise([state], bundle.item_index, bundle.type_index, bundle.manifest.length)
        inputs = []
        for spec in USER_ENCODER_INPUTS:
            inputs.append(triton.InferInput(spec.name, list(tensors[spec.name].shape), spec.dtype))
            inputs[-1].set_data_from_numpy(tensors[spec.name])
        outputs = [triton.InferRequestedOutput(spec.name) for spec in USER_ENCODER_OUTPUTS]
        rows = client.infer(MODEL, inputs, "1", outputs=outputs).as_numpy("topk_index")[0]
        ids = [bundle.item_ids[row - 2] for row in rows]
        if len([item for item in ids if item not in state.items][:10]) != 10:
            raise harness.ComparatorError("a list is short")

    return ask


@contextmanager
def _process(module: str, *arguments: str, environment: dict[str, str], port: int) -> Iterator[None]:
    command = [sys.executable, "-m", module, *arguments]
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=harness.ROOT, env=os.environ | environment, stdout=null, stderr=null)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise harness.ComparatorError(f"{module} did not start") from None
                time.sleep(0.2)
            else:
                break
        yield
    finally:
        process.terminate()
        process.wait(30)
