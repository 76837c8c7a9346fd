"""Triton Inference Server out of its wheel, on the loopback address, models loaded explicitly."""

import compileall
import http.client
import os
import shutil
from pathlib import Path

from freshet.bundle.bundle import version_numbers
from freshet.release.repository import sweep

from deploy.local.errors import MissingPart
from deploy.local.parts import TEXT_ENCODER, TRITON_ENV, TRITON_SERVER, present
from deploy.local.ports import LOOPBACK
from deploy.local.process import Process, spawn, wait_until_ready

PORTS = ("triton_http", "triton_grpc", "triton_metrics")
READY_SECONDS = 120
GRACE_SECONDS = 15
_MODEL_SECONDS = 30  # for one version of one model to load
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the Python backend keeps its tensors


def assemble(models: Path, shipped: Path) -> list[str]:
    """Bring the runtime model repository up to date with the shipped one.

    The text encoder's two files, too big for the repository, come from `make setup`. Versions that
    were published into the runtime repository stay, and one that ships does not come back once it
    has been retired; so the server, which serves the newest two, comes back with what was live. What
    a killed publisher left half-way is removed.

    Args:
        models: The runtime model repository, which the server reads.
        shipped: The repository's own, one folder with a ``config.pbtxt`` for each model.

    Returns:
        The names of all models in the runtime repository.

    Raises:
        MissingPart: There is no model at all, or the text encoder was not fetched.
    """
    models.mkdir(parents=True, exist_ok=True)
    sweep(models)
    for config in sorted(shipped.glob("*/config.pbtxt")):
        model, target = config.parent, models / config.parent.name
        kept = version_numbers(target)
        retired = set(version_numbers(model)) - set(kept) if kept else set()
        ignore = shutil.ignore_patterns("__pycache__", *map(str, retired))
        shutil.copytree(model, target, ignore=ignore, dirs_exist_ok=True)
    if (models / "text_encoder").exists():
        present(TEXT_ENCODER, "the text encoder")
        shutil.copytree(TEXT_ENCODER, models / "text_encoder" / "1", dirs_exist_ok=True)
    # else the server's Python would write bytecode under a model's folder while it serves, and the
    # next load of a version would see a changed folder and reload all its versions
    compileall.compile_dir(models, quiet=2)
    names = sorted(config.parent.name for config in models.glob("*/config.pbtxt"))
    if not names:
        raise MissingPart(f"a model in {shipped}")
    return names


def start(directory: Path, ports: dict[str, int], shipped: Path) -> Process:
    """Assemble ``directory/models``, start the server on it, and wait until every model is ready.

    Raises:
        MissingPart: The server, the text encoder or the models are not there.
        PartDied: The server ended, or a model could not be loaded; the message has the log's end.
        PartNotReady: It was not ready within ``READY_SECONDS``.
    """
    site = present(TRITON_ENV, "Triton's environment") / "lib" / "python3.11" / "site-packages"
    server = present(TRITON_SERVER, "Triton")
    models = directory / "models"
    names = assemble(models, shipped)
    prefix = f"freshet-{ports['triton_http']}-"
    remove_shared_memory(ports)
    command = [
        str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={models}",
        f"--backend-directory={server / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--backend-config=python,stub-timeout-seconds={_MODEL_SECONDS}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in names),
        f"--http-address={LOOPBACK}",
        f"--http-port={ports['triton_http']}",
        f"--grpc-address={LOOPBACK}",
        f"--grpc-port={ports['triton_grpc']}",
        f"--metrics-address={LOOPBACK}",
        f"--metrics-port={ports['triton_metrics']}",
        "--exit-timeout-secs=10",
        "--log-verbose=0",
    ]
    log = directory / "logs" / "triton.log"
    process = spawn(command, log=log, env=_environment(server, site))
    http = ports["triton_http"]
    wait_until_ready("Triton", process, lambda: answers(http), seconds=READY_SECONDS, log=log)
    return process


def answers(http_port: int) -> bool:
    """Whether the server on this loopback port says it is ready, within a second."""
    connection = http.client.HTTPConnection(LOOPBACK, http_port, timeout=1)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def remove_shared_memory(ports: dict[str, int]) -> None:
    """Remove what a killed server with these ports left behind in shared memory."""
    for region in _SHARED_MEMORY.glob(f"freshet-{ports['triton_http']}-*"):
        region.unlink(missing_ok=True)


def _environment(server: Path, site: Path) -> dict[str, str]:
    """This process's environment with the server's own interpreter and libraries first.

    The Python backend's stub finds its packages by the first ``python3`` on PATH, and ignores
    PYTHONPATH.
    """
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in dropped}
    env["PATH"] = f"{TRITON_ENV / 'bin'}:{env.get('PATH', os.defpath)}"
    env["LD_LIBRARY_PATH"] = f"{server / 'lib'}:{site / 'nvidia_pytriton.libs'}"
    env["OMP_NUM_THREADS"] = "1"
    return env
