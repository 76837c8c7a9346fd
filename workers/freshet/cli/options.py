"""Options that several verbs share, and how they become settings."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer

from freshet import resources
from freshet.cli.errors import UserError
from freshet.cli.stack_file import STACK_FILE, stack_settings
from freshet.settings import PREFIX, Settings, load_settings

DEFAULT_DIRECTORY = Path(".freshet")
KEPT_SETTINGS = "settings.toml"
"""In a local stack's folder: a link to the settings file that it was brought up with."""
FOLDERS = ("feature_repo", "feast_dir", "data_dir", "archive_dir", "trusted_keys")
"""What a local stack says of itself beside the addresses of what it started; a settings file may say otherwise."""
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="Settings file.", rich_help_panel="Settings")
]
Directory = Annotated[
    Path,
    typer.Option(
        "--dir",
        metavar="DIR",
        help="Folder of a local stack; its addresses are the defaults where `freshet up` was run.",
        rich_help_panel="Settings",
    ),
]
Kafka = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Bootstrap servers.", rich_help_panel="Settings")]
Triton = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Triton's gRPC address.", rich_help_panel="Settings")
]
EncoderKind = Annotated[Literal["onnx", "triton"], typer.Option(help="Encode in process, or through Triton.")]
Group = Annotated[
    str | None,
    typer.Option(help="The workers' consumer group; archivers are one beside it.", rich_help_panel="Settings"),
]
StateDir = Annotated[
    Path | None,
    typer.Option(help="Folder of this process's own data.", rich_help_panel="Settings"),
]
HealthPort = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port of /healthz, /readyz and /metrics.", rich_help_panel="Settings"),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for scripts.")]


class Effective(msgspec.Struct, frozen=True):
    """The settings, the source of each setting, and the settings file that was read."""

    settings: Settings
    sources: dict[str, str]
    config: Path | None


def resolve(config: Path | None, directory: Path, **flags: Any) -> Effective:
    """Merge defaults, the local stack's addresses, the file, the environment and flags, later ones winning.

    Without a file it is the one that the local stack was brought up with, and what was started then wins over it.
    Raises `SettingsError`.
    """
    named = config is not None
    config = config or kept_settings(directory)
    given = {name: value for name, value in flags.items() if value is not None}
    stack = stack_settings(directory)
    sources = dict.fromkeys(Settings.__struct_fields__, "default")
    of_stack = dict.fromkeys(stack, str(directory / STACK_FILE))
    of_file = dict.fromkeys(_file_names(config), str(config))
    sources |= of_stack | of_file
    if not named:
        sources |= {name: source for name, source in of_stack.items() if name not in FOLDERS}
    sources |= {variable[len(PREFIX) :].lower(): variable for variable in os.environ if variable.startswith(PREFIX)}
    sources |= dict.fromkeys(given, "flag")
    beneath = {name: value for name, value in stack.items() if sources[name] == str(directory / STACK_FILE)}
    settings = load_settings(config, {**beneath, **given}, os.environ)
    return Effective(settings, {name: sources[name] for name in Settings.__struct_fields__}, config)


def kept_settings(directory: Path) -> Path | None:
    """The settings file that a local stack was brought up with, where it was."""
    link = directory / KEPT_SETTINGS
    return link.readlink() if link.is_symlink() else None


def keep_settings(directory: Path, config: Path) -> None:
    """Let all commands that come to the stack read this settings file, as it will be then."""
    link = directory / KEPT_SETTINGS
    link.unlink(missing_ok=True)
    link.symlink_to(config.resolve())


def require_checkout(verb: str) -> Path:
    """The checkout that Freshet runs from. Raises `UserError` in an installed wheel, which has no local stack."""
    if resources.CHECKOUT is None:
        raise UserError(
            f"`freshet {verb}` needs a checkout of Freshet, in which `make setup` works; "
            "`freshet init DIR` lays out a folder for a Kafka, Triton and Redis of your own"
        )
    return resources.CHECKOUT


def see_free(to: Path | None) -> None:
    """See that nothing is where a verb's results go. Raises `UserError`."""
    if to is not None and to.exists():
        raise UserError(f"{to} exists: choose another --out")


def read_seconds(option: str, text: str) -> float:
    """The seconds of a duration such as 90s, 10m, 1h or 1d; there are no empty ones. Raises `UserError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or not float(match[1]):
        raise UserError(f"{option} is a duration such as 30s, 10m, 1h or 30d, not {text!r}")
    return float(match[1]) * SECONDS[match[2]]


def record_time(option: str, value: str | None) -> int | None:
    """A moment in ms, UTC where no zone is given. Raises `UserError`."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise UserError(f"{option} is a time such as 2026-11-25T04:00, not {value!r}") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def as_environment(settings: Settings) -> dict[str, str]:
    """The environment variables that give a process these settings."""
    variables = {}
    for name, value in msgspec.to_builtins(settings).items():
        if value is not None:
            variables[PREFIX + name.upper()] = (
                json.dumps(value) if isinstance(value, Mapping | list | tuple) else str(value)
            )
    return variables


def _file_names(config: Path | None) -> list[str]:
    """The names a settings file sets; what is wrong with it is for `load_settings` to say."""
    if config is None:
        return []
    try:
        names = set(tomllib.loads(config.read_text()))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [name for name in Settings.__struct_fields__ if name in names]
