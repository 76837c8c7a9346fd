"""A publisher killed on entering and on leaving every step, and what the next one finds."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from freshet.core.rollout import MODEL, Rollout, decode_record
from freshet.release.publish import Service, publish_bundle
from freshet.release.repository import versions
from freshet.release.server import Server

from deploy import local
from tests.altered_bundles import SHIPPED, Keys
from tests.memory_ports import MemoryRecords

STEPS = ("verified", "copied", "loaded", "golden", "promoted", "obeyed")
"""A word of each step's name that is in no other's."""
ROOT = Path(__file__).parents[2]


def kill_at_every_step(folder: Path) -> bool:
    """Returns whether after each kill the live version served, the next publication worked, and nothing was left."""
    keys = Keys(folder / "keys")
    stack = local.start(folder / "stack", kafka=False)
    good = True
    try:
        service = Service(stack.models, stack.triton, keys.folder, 2)
        records = MemoryRecords(Rollout(MODEL, 1, "promoted", 0))
        live = 1
        for name in STEPS:
            for where in ("enter", "leave"):
                server = [service.triton.address, service.triton.control_key]
                arguments = [SHIPPED, service.repository, *server, keys.folder, live, name, where]
                command = [sys.executable, "-m", "tests.integration.publisher", *map(str, arguments)]
                publisher = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE)
                killed = publisher.returncode == -signal.SIGKILL
                for line in publisher.stdout.splitlines():
                    rollout = decode_record(line)
                    assert isinstance(rollout, Rollout)
                    records.write(rollout)
                    live = rollout.version
                triton = Server(service.triton)
                triton.try_golden(service.repository / MODEL / str(live), live)
                left = sorted(versions(service.repository) - {live})
                live = publish_bundle(SHIPPED, service, records).version
                triton.try_golden(service.repository / MODEL / str(live), live)
                triton.close()
                beside = service.repository.parent / f".{service.repository.name}-publish"
                debris = [file.name for file in beside.iterdir() if file.name != "lock"]
                clean = killed and not debris and len(versions(service.repository)) == 2
                print(
                    f"killed on {where:5} {name:8} folders then {left or 'none'}, next publication {live}, "
                    f"{'clean' if clean else f'NOT CLEAN: {debris} {sorted(versions(service.repository))}'}",
                    flush=True,
                )
                good &= clean
    finally:
        local.stop(stack)
    return good
