"""A swap under load as it looks to an operator: the picture in the README, from a real session.

    .venv/bin/python -m deploy.demo.swap [PICTURE.svg]     # some minutes; deploy/demo/swap.svg unless told

Starts a stack of its own in a folder that is removed again, sends it MovieLens-100K, types the commands
of `SESSION` and draws what they print. What is published is the shipped version with half its weight of
popularity, signed by the stack's own key: it ranks a little otherwise, so that there is something to compare.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from freshet.bundle.bundle import MANIFEST
from freshet.core.catalogue import encode_item
from freshet.core.events import encode_event
from freshet.core.rollout import MODEL
from rich.console import Console
from rich.text import Text

from deploy.demo import movielens
from deploy.local.parts import TRITON_MODELS

PICTURE = Path(__file__).with_name("swap.svg")
TITLE = "a swap under load"
COLUMNS = 110
PRIOR_WEIGHT = 0.5
LOAD = "freshet produce events.jsonl --rate 100"
FILL_SECONDS = 10.0
PATIENCE = 180.0
LOOK_SECONDS = 3.0


class Typed(NamedTuple):
    """A command, and what to wait for before the next: so many users compared, or so many seconds."""

    command: str
    compared: int = 0
    seconds: float = 0.0


SESSION = (
    Typed("freshet publish my-bundle --stage shadow", compared=1000),
    Typed("freshet models"),
    Typed("freshet promote --stage canary --share 0.1", compared=250),
    Typed("freshet models"),
    Typed("freshet promote", seconds=10.0),
    Typed("freshet models"),
    Typed("freshet rollback"),
)


def main() -> None:
    """Run the session, and draw it."""
    picture = Path(sys.argv[1]) if sys.argv[1:] else PICTURE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="freshet-swap-") as name, _loaded_stack(Path(name)) as folder:
        printed = "".join(_type(folder, typed) for typed in SESSION)
    picture.write_text(draw(_prompt(f"{LOAD} &") + printed))


def draw(session: str) -> str:
    """What a terminal was sent, as an SVG that fetches nothing."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(session))
    drawn = console.export_svg(title=TITLE, unique_id="swap")
    return re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")


@contextmanager
def _loaded_stack(folder: Path) -> Iterator[Path]:
    """A stack with a worker that events stream through while the block runs, and a bundle to publish."""
    items, events = movielens.read_items(), movielens.at_once(movielens.read_events())
    (folder / "items.jsonl").write_bytes(b"".join(encode_item(item) + b"\n" for item in items))
    (folder / "events.jsonl").write_bytes(b"".join(encode_event(event) + b"\n" for event in events))
    bundle = Path(shutil.copytree(TRITON_MODELS / MODEL / "1", folder / "my-bundle"))
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"prior_weight": PRIOR_WEIGHT}))
    _run(folder, "freshet up")
    try:
        _run(folder, "freshet sign my-bundle")
        _run(folder, "freshet produce --items items.jsonl")
        load = subprocess.Popen(["bash", "-c", f"exec {LOAD}"], cwd=folder, env=_environment())
        try:
            time.sleep(FILL_SECONDS)
            yield folder
        finally:
            load.terminate()
            load.wait()
    finally:
        _run(folder, "freshet down")


def _type(folder: Path, typed: Typed) -> str:
    """Run a command, and wait as told; returns what stands in the terminal because of it."""
    printed = _prompt(typed.command) + _run(folder, typed.command)
    time.sleep(typed.seconds)
    deadline = time.monotonic() + PATIENCE
    while typed.compared and _compared(folder) < typed.compared:
        if time.monotonic() > deadline:
            sys.exit(f"fewer than {typed.compared} users were compared in {PATIENCE:.0f} s")
        time.sleep(LOOK_SECONDS)
    return printed


def _compared(folder: Path) -> int:
    told = json.loads(_run(folder, "freshet models --json"))
    return sum(worker["comparison"]["lists"] for worker in told["workers"])


def _run(folder: Path, command: str) -> str:
    """Run a command as on a terminal, without what moves; returns both its streams. Exits where it fails."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    sys.stdout.write(_prompt(command) + done.stdout)
    sys.stdout.flush()
    if done.returncode:
        sys.exit(f"`{command}` ended with status {done.returncode}")
    return done.stdout


def _environment() -> dict[str, str]:
    """This environment's `freshet` first, in colour, `COLUMNS` wide."""
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    own = {"PATH": search, "FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "TERM": "xterm-256color"}
    return os.environ | own | {"COLUMNS": str(COLUMNS)}


def _prompt(command: str) -> str:
    return f"\x1b[32m$\x1b[0m \x1b[1m{command}\x1b[0m\n"


if __name__ == "__main__":
    main()
