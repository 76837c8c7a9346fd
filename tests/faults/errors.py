"""A worker with an error put in on purpose, or that dies at a step: what the judge must find, and what must be borne.

    PUT_IN_ERROR=NAME python -m tests.faults.errors worker

The settings come as for `freshet worker`. `kill:STEP` ends the process with SIGKILL when it comes to a step.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

ERROR = os.environ["PUT_IN_ERROR"]
sys.argv[1:] = ["worker"]  # importing faust reads it

import numpy as np  # noqa: E402
from freshet.adapters import kafka, state_table, triton  # noqa: E402
from freshet.cli import app as command_line  # noqa: E402
from freshet.core import fold_run, state  # noqa: E402
from freshet.ports import Encoded  # noqa: E402
from freshet.serving import app, pipeline  # noqa: E402


def take() -> None:
    """The agent acknowledges what it has been handed before anything is done with it, as Faust's `take` does."""

    async def work(self: Any, least: int) -> None:
        while True:
            events = await self.inbox.take(least)
            for event in events:
                event.ack()
            self._commit_soon()
            runs = [
                pipeline.PartitionBatch(
                    state_table.PartitionState(self.table, event.message.partition),
                    event.message.partition,
                    event.value.records,
                )
                for event in events
            ]
            for run in runs:
                await self.runtime.pipeline.process([run])

    app.WorkerApp._work = work  # type: ignore[method-assign]


def no_wait() -> None:
    """Nobody waits for the deliveries of lists before the commit."""
    publish = kafka.KafkaPublisher.publish

    async def publish_alone(self: Any, messages: Any) -> None:
        task = asyncio.create_task(publish(self, messages))
        task.add_done_callback(lambda done: done.exception())
        await asyncio.sleep(0)

    kafka.KafkaPublisher.publish = publish_alone  # type: ignore[method-assign]


def no_deduplication() -> None:
    """Neither offsets nor event ids that were seen are known again."""

    def advance(known: state.UserState, partition: int, offset: int) -> bool:
        known.partition, known.offset, known.event_id_log = partition, offset, state.ID_SEPARATOR
        return True

    state.advance = advance  # type: ignore[assignment]
    fold_run.advance = advance  # type: ignore[attr-defined]


def skip_duplicates() -> None:
    """A user touched by duplicates alone is not written, encoded or published again."""
    fold = pipeline.Pipeline.fold

    def fold_changed(self: Any, run: Any) -> Any:
        touched, dead = fold(self, run)
        return [user for user in touched if user.changed], dead

    pipeline.Pipeline.fold = fold_changed  # type: ignore[method-assign]


def concurrency_2() -> None:
    """Faust's agent runs twice over the same stream."""
    agent = app.faust.App.agent

    def twice(self: Any, channel: Any, **options: Any) -> Any:
        return agent(self, channel, **options | {"concurrency": 2})

    app.faust.App.agent = twice  # type: ignore[method-assign]


def embedding(change: Callable[[Encoded], Encoded]) -> Callable[[], None]:
    """An encoder whose every third answer is changed."""

    def put_in() -> None:
        infer, calls = triton.TritonEncoder._infer, iter(range(10**9))

        async def changed(self: Any, breaker: Any, model: str, *given: Any) -> list[Any]:
            outputs = await infer(self, breaker, model, *given)
            if model != triton.MODEL or next(calls) % 3 < 2:
                return outputs
            return list(change(Encoded(*outputs)))

        triton.TritonEncoder._infer = changed  # type: ignore[method-assign]

    return put_in


def clock(seconds: float) -> Callable[[], None]:
    """The wall clock jumps by so much, forth and back, twice a second."""

    def put_in() -> None:
        true, jumps = time.time, random.Random(0)
        time.time = lambda: true() + seconds * (int(true() * 2) % 2) * jumps.choice((1, 1, -1))

    return put_in


def kill_at(step: str) -> None:
    """SIGKILL at the third time that a step is come to."""
    owner, name = STEPS[step]
    original, calls = getattr(owner, name), iter(range(10**9))

    def dying(*given: Any, **options: Any) -> Any:
        if next(calls) == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **options)

    setattr(owner, name, dying)


KILLED_AT = 5
STEPS: dict[str, tuple[Any, str]] = {
    "fold": (pipeline.Pipeline, "fold"),
    "changelog": (state_table.StateTable, "write"),
    "files": (state_table.RocksDBStore, "write_states"),
    "encode": (triton.TritonEncoder, "encode"),
    "features": (pipeline.Pipeline, "_write_features"),
    "publish": (pipeline.Pipeline, "_publish_lists"),
    "commit": (app.WorkerApp, "_commit_soon"),
}

CONTROLS: dict[str, Callable[[], None]] = {
    "take": take,
    "no_wait": no_wait,
    "no_deduplication": no_deduplication,
    "skip_duplicates": skip_duplicates,
    "concurrency_2": concurrency_2,
}
OTHERS: dict[str, Callable[[], None]] = {
    "zero_embedding": embedding(lambda encoded: encoded._replace(embedding=np.zeros_like(encoded.embedding))),
    "nan_embedding": embedding(lambda encoded: encoded._replace(embedding=encoded.embedding * np.float32("nan"))),
    "short_embedding": embedding(lambda encoded: encoded._replace(embedding=encoded.embedding[:, :-1])),
    "short_batch": embedding(lambda encoded: encoded.take(list(range(len(encoded.embedding) - 1)))),
    "wrong_index": embedding(lambda encoded: encoded._replace(topk_index=encoded.topk_index + 10**6)),
    "clock": clock(86_400.0),
}


def main() -> None:
    """Put the error in and run the worker."""
    kind, _, step = ERROR.partition(":")
    if kind == "kill":
        kill_at(step)
    else:
        (CONTROLS | OTHERS)[kind]()
    command_line()


if __name__ == "__main__":
    main()
