"""Logs as JSON lines on stderr."""

from __future__ import annotations

import json
import logging
import logging.config
from typing import Any

JSON_LOGS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "freshet.process.json_logging.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
    "root": {"level": "INFO", "handlers": ["stderr"]},
}
"""The logging of a process, as `logging.config.dictConfig` takes it."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "data"}


def json_logs() -> None:
    """Log JSON lines to stderr."""
    logging.config.dictConfig(JSON_LOGS)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; fields given as `extra` stand beside the message. Never user ids."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        entry = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
