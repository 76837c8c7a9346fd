"""What a user can do wrong: one line on stderr and a non-zero exit, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from freshet.cli.console import plain
from freshet.errors import FreshetError

USAGE = 2
FAILED = 1


class UserError(FreshetError):
    """The command line asks for something that cannot be done. The message is one line that says what to do."""


class Group(TyperGroup):
    """All verbs. Errors written for a user, and usage errors, become one line each."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002 - the signature is typer's
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse, run and exit."""
        try:
            status = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except FreshetError as error:
            _end(str(error), FAILED)
        except TyperException as error:
            context = getattr(error, "ctx", None)
            hint = f" (see `{context.command_path} --help`)" if context is not None else ""
            message = error.format_message().rstrip(".")
            if not message:  # no verb was given: the help has been shown
                sys.exit(USAGE)
            _end(message + hint, error.exit_code)
        except typer.Abort:
            _end("stopped", 130)
        sys.exit(status if isinstance(status, int) else 0)


def _end(message: str, status: int) -> NoReturn:
    line = " ".join(plain(part.strip()) for part in message.splitlines() if part.strip())
    typer.echo(f"freshet: {line}", err=True)
    sys.exit(status)
