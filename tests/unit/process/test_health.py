"""The health pages on a free port, and the log format."""

import json
import logging
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from freshet.process import health as health_module
from freshet.process import metrics
from freshet.process.health import Health, HealthServer
from freshet.process.json_logging import JsonFormatter

ALL_OK = {"tables": "ok", "model": "ok"}


@pytest.fixture
def health() -> Health:
    """A worker's health."""
    return Health()


@pytest.fixture
def server(health: Health) -> Iterator[HealthServer]:
    """Its pages."""
    server = HealthServer(health, "127.0.0.1", 0)
    yield server
    server.close()


def get(server: HealthServer, path: str) -> tuple[int, str]:
    """Status and body of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_starting_worker_is_alive_and_not_ready(server: HealthServer) -> None:
    """Before the first report a worker is alive and not ready."""
    assert get(server, "/healthz")[0] == 200
    status, body = get(server, "/readyz")
    assert status == 503
    assert json.loads(body) == {"ready": False, "checks": {"started": "starting"}}


def test_ready_is_every_check_ok(server: HealthServer, health: Health) -> None:
    """A worker with a failed check is not ready, and the page names the check and the reason."""
    health.renew(ALL_OK)
    assert get(server, "/readyz") == (200, json.dumps({"ready": True, "checks": ALL_OK}))
    health.renew({**ALL_OK, "model": "version 3 is not ready at Triton"})
    status, body = get(server, "/readyz")
    assert status == 503
    assert json.loads(body)["checks"]["model"] == "version 3 is not ready at Triton"


def test_a_loop_that_is_stuck_is_not_alive(
    server: HealthServer, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a fresh report a worker is neither alive nor ready, and the page still answers."""
    health.renew(ALL_OK)
    monkeypatch.setattr(health_module, "STALE_SECONDS", -1.0)
    assert get(server, "/healthz") == (503, '{"alive": false}')
    status, body = get(server, "/readyz")
    assert status == 503
    assert json.loads(body)["checks"]["loop"] != "ok"


def test_metrics_are_prometheus_text(server: HealthServer) -> None:
    """The metrics page is in the Prometheus exposition format."""
    metrics.FOLDED.inc()
    status, body = get(server, "/metrics")
    assert status == 200
    assert "# TYPE freshet_events_folded_total counter" in body
    assert "freshet_event_to_publish_seconds_bucket" in body


def test_other_pages_are_not_found(server: HealthServer) -> None:
    """Any other page is 404."""
    assert get(server, "/")[0] == 404
    assert get(server, "/healthz/../etc")[0] == 404


def test_a_taken_port_is_refused(server: HealthServer, health: Health) -> None:
    """A health server refuses a port in use."""
    with pytest.raises(OSError, match="in use"):
        HealthServer(health, "127.0.0.1", server.port)


def test_a_closed_server_answers_no_more(health: Health) -> None:
    """A closed health server frees its port."""
    server = HealthServer(health, "127.0.0.1", 0)
    server.close()
    with pytest.raises(urllib.error.URLError):
        get(server, "/healthz")
    HealthServer(health, "127.0.0.1", server.port).close()


def test_a_log_line_is_one_json_object() -> None:
    """A log line is a JSON object with message, level, extra fields and the exception as a field."""
    try:
        int("two\nlines")
    except ValueError:
        record = logging.LogRecord("freshet.test", logging.WARNING, "f.py", 1, "batch %d", (7,), sys.exc_info())
    record.users = 3
    line = JsonFormatter().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["message"], entry["level"], entry["logger"]) == ("batch 7", "warning", "freshet.test")
    assert entry["users"] == 3
    assert "ValueError: invalid literal" in entry["exception"]
    assert set(entry) == {"ts", "level", "logger", "message", "users", "exception"}


def test_half_open_requests_are_bounded_and_end(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of silent connections takes a bounded number of threads, and the pages answer again."""
    monkeypatch.setattr(health_module, "CONNECTION_SECONDS", 0.5)
    server = HealthServer(health, "127.0.0.1", 0)
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(200)]
    try:
        refused = [connection for connection in silent if is_closed(connection)]
        assert len(refused) >= len(silent) - health_module.MAX_CONNECTIONS
        assert threading.active_count() - before <= health_module.MAX_CONNECTIONS
        assert all(is_closed(connection) for connection in silent if connection not in refused)
        health.renew(ALL_OK)
        assert get(server, "/healthz")[0] == 200
    finally:
        for connection in silent:
            connection.close()
        server.close()


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed a connection that said nothing, which is waited for."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
