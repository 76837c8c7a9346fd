"""Makes the Python environments with uv, each from its lock file, by hash."""

import shutil
from pathlib import Path

from deploy.setup.commands import SetupError, call, interpreter
from deploy.setup.layout import (
    PEERS_ENV,
    REQUIREMENTS,
    ROOT,
    SOURCES,
    TRAINING_ENV,
    TRITON_ENV,
    TRITON_SERVER,
    UV_ENV,
    WORKER_ENV,
)
from deploy.setup.system_packages import LIBPYTHON, find_libpython, uv_on_path


def uv() -> str:
    """The uv to call: the one on PATH, else one of our own, installed by hash.

    Raises:
        SetupError: There is none and it cannot be installed.
    """
    on_path = uv_on_path()
    if on_path is not None:
        return on_path
    own = UV_ENV / "bin" / "uv"
    if not own.exists():
        print("setup: uv ...", flush=True)
        call([interpreter(), "-m", "venv", "--clear", UV_ENV])
        pip = (str(UV_ENV / "bin" / "python"), "-m", "pip", "install", "-q", "--require-hashes")
        call([*pip, "-r", REQUIREMENTS / "uv.txt"])
    return str(own)


def call_uv(*arguments: str | Path) -> None:
    """Run uv, which must never fetch an interpreter of its own.

    Raises:
        SetupError: It failed.
    """
    # the certificates the system trusts, as pip and Maven do: a company's mirror may have its own
    call([uv(), "--no-progress", *arguments], env={"UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "true"})


def make_env(env: Path, lock: Path) -> None:
    """Make a virtual environment that holds exactly what the lock file names, by hash.

    Raises:
        SetupError: A distribution could not be had.
    """
    call_uv("venv", "-q", "--clear", "--python", interpreter(), env)
    call_uv("pip", "sync", "-q", "--require-hashes", "--python", env / "bin" / "python", lock)


def make_worker_env() -> None:
    """The worker's environment, with this tree installed editable and the ``freshet`` command."""
    make_env(WORKER_ENV, REQUIREMENTS / "worker.txt")
    python = WORKER_ENV / "bin" / "python"
    editable = ("--no-deps", "--no-build-isolation", "--python", python, "-e", ROOT)
    call_uv("pip", "install", "-q", *editable)


def make_training_env() -> None:
    """The training environment, with this tree on its path."""
    make_env(TRAINING_ENV, REQUIREMENTS / "training.txt")
    site_packages(TRAINING_ENV).joinpath("freshet.pth").write_text("".join(f"{path}\n" for path in SOURCES))


def site_packages(env: Path) -> Path:
    """Where a virtual environment of this Python keeps its packages."""
    return env / "lib" / "python3.11" / "site-packages"


def make_peers_env() -> None:
    """The peers' environment: RecTools and Open Bandit Pipeline, which need numpy < 2 and nothing of Freshet."""
    make_env(PEERS_ENV, REQUIREMENTS / "peers.txt")
    oracle = ("--no-deps", "--require-hashes", "--python", PEERS_ENV / "bin" / "python")
    call_uv("pip", "install", "-q", *oracle, "-r", REQUIREMENTS / "oracle.txt")


def make_triton() -> None:
    """The server's environment, and its Python backend with the stub for this Python."""
    make_env(TRITON_ENV, REQUIREMENTS / "triton.txt")
    shutil.rmtree(TRITON_SERVER, ignore_errors=True)
    shipped = site_packages(TRITON_ENV) / "pytriton" / "tritonserver"
    backend = TRITON_SERVER / "backends" / "python"
    shutil.copytree(shipped / "backends" / "python", backend)
    stub = backend / "triton_python_backend_stub"
    shutil.copy(shipped / "python_backend_stubs" / "3.11" / stub.name, stub)
    stub.chmod(0o755)
    library = find_libpython()
    if library is None:
        raise SetupError(f"{LIBPYTHON} is nowhere to be found; run: apt-get install libpython3.11")
    (TRITON_SERVER / "lib").mkdir()
    (TRITON_SERVER / "lib" / LIBPYTHON).symlink_to(library)
