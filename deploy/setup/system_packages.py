"""Finds the Debian packages that the system lacks and installs them, where this user may."""

import ctypes.util
import os
import shutil
import sysconfig
from pathlib import Path

from deploy.setup.commands import SetupError, call, interpreter, succeeds
from deploy.setup.layout import KAFKA_LIBS, UV_ENV

LIBPYTHON = "libpython3.11.so.1.0"


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


def missing_packages(*, tests: bool = False) -> list[str]:
    """The Debian packages that must be installed before anything else, those of the tests where they are asked for."""
    wanted = {
        "chromium": not tests or shutil.which("chromium") is not None,
        "prometheus": not tests or shutil.which("prometheus") is not None,
        "default-jre-headless": shutil.which("java") is not None,
        "maven": KAFKA_LIBS.exists() or shutil.which("mvn") is not None,
        "redis-server": shutil.which("redis-server") is not None,
        "libpython3.11": find_libpython() is not None,
        "libgomp1": ctypes.util.find_library("gomp") is not None,
        "python3-venv": uv_on_path() is not None or UV_ENV.exists() or has_venv(),
    }
    return [package for package, present in wanted.items() if not present]


def install_packages(*, tests: bool = False) -> None:
    """Install what the system lacks, where this user may.

    Raises:
        SetupError: It lacks something and this user may not, or there is no apt-get.
    """
    packages = missing_packages(tests=tests)
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
    # At run level 1 a freshly installed redis-server or prometheus is not started as a service.
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1"]
    call([*sudo, *quiet, "apt-get", "update", "-q"])
    call([*sudo, *quiet, *install])
    still = missing_packages(tests=tests)
    if still:
        raise SetupError(f"apt-get installed, yet still missing: {' '.join(still)}")
