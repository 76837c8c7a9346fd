"""Workers that stop, crash and freeze in turn while events stream in: no event is lost, none counts twice."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

from rocksdict import AccessType, Options, Rdict

from deploy import local
from tests.integration import oracle
from tests.integration.world import Worker, World, until
from tests.soak.lists import went_back
from tests.soak.load import events_sent
from workers.core.state import decode_state
from workers.ending import EXIT_FAILED

NAMES = ("w1", "w2", "w3")
ACTIONS = ("stop", "kill", "kill and wipe", "freeze")
FROZEN_SECONDS = 15.0
"""Longer than a session: the partitions of who is frozen go to others, and it wakes up to what is no longer its own."""
OFFSET_KEY = b"__faust\0offset__"


def hand_over_under_load(folder: Path, rounds: int) -> bool:
    """Returns whether states are the fold of the log in the end, and every worker's files hold what they claim to."""
    folder.mkdir(parents=True)
    stack = local.start(folder / "stack")
    world = World(stack, folder, "soak")
    chance = random.Random(0)
    ended: list[int] = []
    try:
        workers = {name: world.worker(name) for name in NAMES}
        with events_sent(world):
            for number in range(rounds):
                name, action = chance.choice(NAMES), chance.choice(ACTIONS)
                print(f"round {number + 1}: {action} {name}", flush=True)
                _act(workers[name], action)
                time.sleep(chance.uniform(0.0, 6.0))
                for other, worker in workers.items():
                    if (status := worker.process.poll()) is not None:
                        if status == EXIT_FAILED:
                            print(f"    {other} has ended itself: {_reason(worker)}")
                        ended.append(status)
                        world.workers.remove(worker)
                        workers[other] = world.worker(other, ready=False)
                time.sleep(chance.uniform(0.0, 12.0))
        for worker in workers.values():
            until(lambda one=worker: one.get("/readyz")[0] == 200, "the worker is ready", worker)  # type: ignore[misc]
        world.settle()
        world.check()
        surprises = [status for status in ended if status not in (0, -signal.SIGKILL, EXIT_FAILED)]
        lists = [json.loads(record.value) for record in world.records("recommendations")]
        back = went_back(lists, lambda one: int(one["as_of"]["offset"]))
        events = len(world.records("events"))
        print(f"{events:,} events, of which the states are the fold; {len(lists):,} lists, ", end="")
        print(f"{back} of them behind a newer one; {ended.count(EXIT_FAILED)} workers ended themselves")
        for worker in workers.values():
            worker.terminate()
        behind = sum(_behind(world, worker.data) for worker in workers.values())
        print(f"{behind} states in workers' files are older than the changelog that the files claim to hold")
        return not behind and not surprises
    finally:
        world.close()
        local.stop(stack)


def _act(worker: Worker, action: str) -> None:
    if action == "stop":
        worker.terminate()
    elif action == "freeze":
        worker.process.send_signal(signal.SIGSTOP)
        time.sleep(FROZEN_SECONDS)
        worker.process.send_signal(signal.SIGCONT)
    else:
        worker.kill()
        if action == "kill and wipe":
            shutil.rmtree(worker.data)


def _reason(worker: Worker) -> str:
    """What the worker last said of its end."""
    said = [line for line in worker.log.read_text().splitlines() if '"level": "critical"' in line]
    return str(json.loads(said[-1]).get("exception", said[-1])).strip().splitlines()[-1]


def _behind(world: World, data: Path) -> int:
    """How many states in a worker's files are older than in the part of the changelog that these name as held."""
    topic = f"{world.group}-user_state-changelog"
    records = oracle.read_topic(world.stack.bootstrap, topic)
    behind = 0
    for folder in data.rglob("*.db"):
        partition = int(folder.stem.rpartition("-")[2])
        files = Rdict(str(folder), options=Options(raw_mode=True), access_type=AccessType.read_only())
        reached = int(files.get(OFFSET_KEY) or -1)
        newest: dict[bytes, int] = {}
        for record in records:
            if record.partition == partition and record.offset <= reached and record.value is not None:
                newest[record.key] = max(newest.get(record.key, -1), decode_state(record.value).offset)
        for user, offset in newest.items():
            held = files.get(user)
            behind += held is None or decode_state(held).offset < offset
        files.close()
    return behind
