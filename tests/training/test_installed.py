"""`freshet train` as an installed wheel with the extra `train` has it: outside any checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from freshet.bundle.bundle import load_bundle
from freshet_training.train import REFUSED

from deploy.setup.environments import call_uv, site_packages
from deploy.setup.layout import ROOT, TEXT_ENCODER, TRAINING_ENV, WORKER_ENV
from tests.training.ring_log import walk, write_config, write_items, write_log


def installed(folder: Path) -> Path:
    """The commands of an environment that holds the wheel.

    What the wheel depends on is read from the environments that the tests have: nothing is fetched again. Their own
    `.pth` files, which lead to the checkout, have no effect there.
    """
    build = [WORKER_ENV / "bin" / "python", "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    env = folder / "env"
    python = env / "bin" / "python"
    call_uv("venv", "-q", "--python", TRAINING_ENV / "bin" / "python", env)
    call_uv("pip", "install", "-q", "--no-deps", "--offline", "--python", python, *folder.glob("*.whl"))
    dependencies = "".join(f"{site_packages(other)}\n" for other in (WORKER_ENV, TRAINING_ENV))
    site_packages(env).joinpath("dependencies.pth").write_text(dependencies)
    return python.parent


def test_the_wheel_trains_without_a_checkout(tmp_path: Path) -> None:
    """With the wheel, the extra and a text encoder, `freshet train` makes a version; a single epoch is too little."""
    commands = installed(tmp_path / "built")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and "FRESHET" not in name}

    def run(*arguments: str | Path, status: int = 0) -> str:
        done = subprocess.run(
            [commands / arguments[0], *arguments[1:]],
            cwd=tmp_path,
            env=alone,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    where = "import freshet, freshet_training; print(freshet.__file__, freshet_training.__file__, sep='\\n')"
    for module in run("python", "-c", where).splitlines():
        assert Path(module).is_relative_to(commands.parent)
    events = write_log(tmp_path / "events.jsonl", walk())
    items = write_items(tmp_path / "items.jsonl")
    config = write_config(tmp_path / "ring.toml", epochs=1)
    log = ("--events", events, "--items", items, "--text-encoder", TEXT_ENCODER)
    refused = run(
        "freshet", "train", *log, "--config", config, "--out", "version", "--tracking", "none", status=REFUSED
    )
    assert "refused" in refused
    assert load_bundle(tmp_path / "version").manifest.name == "ring"
