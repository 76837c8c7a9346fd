"""`sign` and `keys`: who vouches for a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from freshet import resources
from freshet.cli.console import say
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Directory

Key = Annotated[
    Path | None,
    typer.Option(metavar="FILE.key", help="Private key; without, the local stack's own, made when first needed."),
]


def sign(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="A complete bundle.")],
    key: Key = None,
    ungated: Annotated[
        str,
        typer.Option(metavar="REASON", help="Why to sign what the gate refused; kept in the manifest and on `models`."),
    ] = "",
    directory: Directory = DEFAULT_DIRECTORY,
) -> None:
    """Sign a bundle, so that those who trust the key will serve it."""
    say(f"{bundle} is signed by {sign_bundle(bundle, key or local_keys(directory), ungated)[:16]}")


def keys(
    key: Annotated[Path, typer.Argument(metavar="FILE.key", help="The private key; the public one is put beside it.")],
) -> None:
    """Make a key pair to sign bundles with. Put FILE.pub into the folder that the setting `trusted_keys` names."""
    from freshet.bundle.signature import make_keys

    if key.suffix != ".key":
        raise UserError(f"{key} does not end in .key")
    make_keys(key)
    say(f"{key} signs (keep it to yourself), {key.with_suffix('.pub')} verifies")


def sign_bundle(bundle: Path, key: Path, ungated: str = "") -> str:
    """Sign; returns the key's fingerprint. Raises `BundleError`, `UserError`."""
    from freshet.bundle.signature import sign

    try:
        return sign(bundle, key, ungated)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None


def local_keys(directory: Path) -> Path:
    """A local stack's signing key; its folder `keys` is what the stack trusts, the key of what ships included."""
    from freshet.bundle.signature import make_keys

    key = directory / "keys" / "signing.key"
    if not key.exists():
        make_keys(key)
    for file in resources.KEYS.glob("*.pub"):
        shutil.copy(file, key.parent)
    return key
