"""The command line in process, for verbs that must fail."""

from freshet.cli import app
from typer.testing import CliRunner


def fails(*arguments: str, status: int = 1, stdin: str | None = None) -> str:
    """The single error line of a verb that must fail."""
    result = CliRunner().invoke(app, list(arguments), input=stdin)
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("freshet: ")
    return lines[0]
