"""`/healthz`, `/readyz` and `/metrics` on a thread of their own.

The thread answers even while the event loop is busy; readiness is what the
worker last said of itself.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

STALE_SECONDS = 15.0
"""A worker whose loop has not reported for this long is not alive."""


class Health:
    """What the worker says of itself: a verdict per part, renewed by its event loop."""

    def __init__(self) -> None:
        self._checks: dict[str, str] = {"started": "starting"}
        self._renewed = time.monotonic()

    def renew(self, checks: dict[str, str]) -> None:
        """Take new verdicts; "ok" is good, anything else says what is wrong."""
        self._checks = checks
        self._renewed = time.monotonic()

    def alive(self) -> bool:
        """Whether the event loop still reports."""
        return time.monotonic() - self._renewed < STALE_SECONDS

    def checks(self) -> dict[str, str]:
        """The last verdicts."""
        return dict(self._checks) if self.alive() else {**self._checks, "loop": "does not answer"}

    def ready(self) -> bool:
        """Whether every part is ok."""
        return all(verdict == "ok" for verdict in self.checks().values())


class HealthServer:
    """Serves the three pages. Raises `OSError` for a port that is taken."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(health))
        except OSError as error:
            raise OSError(f"health_port {host}:{port}: {error.strerror}") from None
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def write_port(data_dir: str, port: int) -> None:
    """Leave the port of the pages in `health.port` of a worker's folder."""
    folder = Path(data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "health.port").write_text(str(port))


def _handler(health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/healthz":
                alive = health.alive()
                self._answer(200 if alive else 503, "application/json", json.dumps({"alive": alive}).encode())
            elif self.path == "/readyz":
                body = json.dumps({"ready": health.ready(), "checks": health.checks()}).encode()
                self._answer(200 if health.ready() else 503, "application/json", body)
            elif self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest())
            else:
                self._answer(404, "text/plain", b"try /healthz, /readyz or /metrics\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
