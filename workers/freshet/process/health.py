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
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

STALE_SECONDS = 15.0
"""A worker whose loop has not reported for this long is not alive."""
MAX_CONNECTIONS = 32
"""Connections served at once; probes and scrapers need a few."""
CONNECTION_SECONDS = 5.0
"""How long a connection may be silent: a request that never ends must not keep its thread."""


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


class _BoundedServer(ThreadingHTTPServer):
    """A thread a connection, and no more than `MAX_CONNECTIONS` of them: a connection beyond is closed at once."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the worker."""


class HealthServer:
    """Serves the three pages. Raises `OSError` for a port that is taken."""

    def __init__(self, health: Health, host: str, port: int) -> None:
        try:
            self._server = _BoundedServer((host, port), _handler(health))
        except OSError as error:
            raise OSError(f"health_port {host}:{port}: {error.strerror}") from None
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
        timeout = CONNECTION_SECONDS

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
