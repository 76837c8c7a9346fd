"""Workers that stop, crash and freeze in turn while events stream in: no event is lost, none counts twice."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

from freshet.core.state import decode_state

from deploy import local
from tests.integration import independent_fold
from tests.integration.deployment import Deployment, Worker, until
from tests.soak.list_order import went_back
from tests.soak.load import events_sent

NAMES = ("w1", "w2", "w3")
ACTIONS = ("stop", "kill", "kill and wipe", "freeze")
FROZEN_SECONDS = 15.0
"""Longer than a session: the partitions of who is frozen go to others, and it wakes up to what is no longer its own."""


def hand_over_under_load(folder: Path, rounds: int) -> bool:
    """Whether states are the fold of the log, no list came behind a newer one, and files hold what they claim to."""
    folder.mkdir(parents=True)
    stack = local.start(folder / "stack")
    deployment = Deployment(stack, folder, "soak")
    chance = random.Random(0)
    ended: list[str] = []
    try:
        workers = {name: deployment.worker(name) for name in NAMES}
        with events_sent(deployment):
            for number in range(rounds):
                name, action = chance.choice(NAMES), chance.choice(ACTIONS)
                print(f"round {number + 1}: {action} {name}", flush=True)
                _act(workers[name], action)
                time.sleep(chance.uniform(0.0, 6.0))
                ended += _start_again(deployment, workers)
                time.sleep(chance.uniform(0.0, 12.0))
        ended += _start_again(deployment, workers)
        for worker in workers.values():
            until(lambda restarted=worker: restarted.get("/readyz")[0] == 200, "the worker is ready", worker)  # type: ignore[misc]
        deployment.settle()
        deployment.check()
        lists = [json.loads(record.value) for record in deployment.records("recommendations")]
        back = went_back(lists, lambda published: int(published["as_of"]["offset"]))
        events = len(deployment.records("events"))
        print(f"{events:,} events, of which the states are the fold; {len(lists):,} lists, ", end="")
        print(f"{back} of them behind a newer one; {len(ended)} workers ended themselves")
        surprises = [why for why in ended if "stood still" not in why]
        surprises += [f"{name} did not stop" for name, worker in workers.items() if worker.terminate()]
        behind = sum(_behind(deployment, worker.data) for worker in workers.values())
        print(f"{behind} states in workers' files are older than the changelog that the files claim to hold")
        return not back and not behind and not surprises
    finally:
        deployment.close()
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


def _start_again(deployment: Deployment, workers: dict[str, Worker]) -> list[str]:
    """Start the workers that are not there, as a supervisor would; why those that ended themselves did."""
    reasons = []
    for name, worker in workers.items():
        status = worker.process.poll()
        if status is None:
            continue
        if status not in (0, -signal.SIGKILL):
            reasons.append(worker.log.read_text().strip().splitlines()[-1])
            print(f"    {name} has ended itself, status {status}: {reasons[-1]}")
        deployment.workers.remove(worker)
        workers[name] = deployment.worker(name, ready=False)
    return reasons


def _behind(deployment: Deployment, data: Path) -> int:
    """How many states in a worker's files are older than in the part of the changelog that these name as held."""
    topic = f"{deployment.group}-user_state-changelog"
    records = independent_fold.read_topic(deployment.stack.bootstrap, topic)
    behind = 0
    for folder in data.rglob("*.db"):
        partition = int(folder.stem.rpartition("-")[2])
        reached, files = independent_fold.local_files(folder)
        newest: dict[bytes, int] = {}
        for record in records:
            if record.partition == partition and record.offset <= reached and record.value is not None:
                newest[record.key] = max(newest.get(record.key, -1), decode_state(record.value).offset)
        for user, offset in newest.items():
            held = files.get(user)
            behind += held is None or decode_state(held).offset < offset
    return behind
