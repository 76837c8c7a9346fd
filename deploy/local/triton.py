"""Triton Inference Server out of its wheel, on the loopback address, models loaded explicitly."""

import compileall
import os
import secrets
import shutil
from pathlib import Path

from freshet.adapters.triton_address import CONTROL_KEY
from freshet.bundle.bundle import version_numbers
from freshet.cli.stack_file import TRITON_KEY_FILE
from freshet.release.repository import sweep
from tritonclient.utils import InferenceServerException

from deploy.local.errors import MissingPart
from deploy.local.parts import TEXT_ENCODER, TRITON_ENV, TRITON_SERVER, present
from deploy.local.ports import LOOPBACK
from deploy.local.process import Process, spawn, wait_until_ready

PORTS = ("triton_grpc", "triton_metrics")
CONTROL = "model-repository,shared-memory,trace,logging"
"""The protocols that ask for the control key: by them a client could load code, read memory or write files."""
READY_SECONDS = 120
GRACE_SECONDS = 15
KEPT = frozenset({"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"})
"""What the server keeps of the environment that it is started in."""
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
    grpc = ports["triton_grpc"]
    prefix = f"freshet-{grpc}-"
    remove_shared_memory(ports)
    command = [
        str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={models}",
        f"--backend-directory={server / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--backend-config=python,stub-timeout-seconds={_MODEL_SECONDS}",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in names),
        "--allow-http=false",
        f"--grpc-address={LOOPBACK}",
        f"--grpc-port={grpc}",
        f"--grpc-restricted-protocol={CONTROL}:{CONTROL_KEY}={control_key(directory)}",
        f"--metrics-address={LOOPBACK}",
        f"--metrics-port={ports['triton_metrics']}",
        "--exit-timeout-secs=10",
        "--log-verbose=0",
    ]
    log = directory / "logs" / "triton.log"
    process = spawn(command, log=log, env=_environment(server, site))
    wait_until_ready("Triton", process, lambda: answers(grpc), seconds=READY_SECONDS, log=log)
    return process


def control_key(directory: Path) -> str:
    """The secret that this stack's server asks for where models are loaded; made when it is first asked for."""
    file = directory / TRITON_KEY_FILE
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_urlsafe(24))
    return file.read_text()


def answers(grpc_port: int) -> bool:
    """Whether the server on this loopback port says it is ready, within a second."""
    import tritonclient.grpc as client  # noqa: PLC0415 - half a second that only those who wait for Triton spend

    with client.InferenceServerClient(f"{LOOPBACK}:{grpc_port}") as server:
        try:
            return bool(server.is_server_ready(client_timeout=1.0))
        except InferenceServerException:
            return False


def remove_shared_memory(ports: dict[str, int]) -> None:
    """Remove what a killed server with these ports left behind in shared memory."""
    for region in _SHARED_MEMORY.glob(f"freshet-{ports['triton_grpc']}-*"):
        region.unlink(missing_ok=True)


def _environment(server: Path, site: Path) -> dict[str, str]:
    """The server's own interpreter and libraries first, and nothing else of this process but what `KEPT` names.

    Models run as code in the server: this process's secrets are not theirs to read. The Python
    backend's stub finds its packages by the first ``python3`` on PATH, and ignores PYTHONPATH.
    """
    env = {name: value for name, value in os.environ.items() if name in KEPT}
    env["PATH"] = f"{TRITON_ENV / 'bin'}:{env.get('PATH', os.defpath)}"
    env["LD_LIBRARY_PATH"] = f"{server / 'lib'}:{site / 'nvidia_pytriton.libs'}"
    env["OMP_NUM_THREADS"] = "1"
    return env
