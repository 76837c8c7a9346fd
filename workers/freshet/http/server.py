"""The read service as a process: uvicorn, probes, the page, and an ordered end."""

from __future__ import annotations

import asyncio
import logging.config
import signal
import socket
import ssl
from collections.abc import Callable
from types import FrameType

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from freshet.http.guard import Guard, is_loopback
from freshet.http.openapi import document
from freshet.http.operations import answer, routes
from freshet.http.page import PAGE_HEADERS, page_files
from freshet.http.problems import TITLES, ProblemError
from freshet.http.runtime import HttpRuntime
from freshet.process.json_logging import JSON_LOGS
from freshet.serving.first_version import StartError
from freshet.settings import Settings, require_folders

KEEP_ALIVE_SECONDS = 30
DRAIN_SECONDS = 10
"""How long requests may go on after SIGTERM."""
SPARE_CONNECTIONS = 512
"""Connections beside the open streams; uvicorn refuses those beyond with 503."""
WAITING_CONNECTIONS = 1024
"""Connections that wait to be taken."""
UNREAD_MS = 20_000
"""The kernel ends a connection whose reader takes nothing for so long."""

log = logging.getLogger(__name__)


def serve(settings: Settings, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `started` is told the address once requests are answered.

    Raises `StartError`, and what else keeps a part from opening.
    """
    logging.config.dictConfig(JSON_LOGS)
    require_folders(settings)
    if not is_loopback(settings.http_host) and not settings.http_api_keys and settings.http_client_ca is None:
        raise StartError(
            f"http_host {settings.http_host} is reached from other machines: set http_api_keys, or http_client_ca for "
            "mutual TLS, or leave the service on 127.0.0.1 behind a proxy that asks for credentials"
        )
    runtime = HttpRuntime(settings)
    listener = _listener(settings)
    config = _config(settings, application(runtime))
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(runtime, _Server(config, runtime), listener, started))


async def _serve(
    runtime: HttpRuntime, server: uvicorn.Server, listener: socket.socket, started: Callable[[str], None]
) -> None:
    settings = runtime.settings
    scheme = "https" if settings.http_certificate else "http"
    host = f"[{settings.http_host}]" if ":" in settings.http_host else settings.http_host
    await runtime.start()
    try:
        listener.listen(WAITING_CONNECTIONS)
        started(f"{scheme}://{host}:{listener.getsockname()[1]}")
        await server.serve(sockets=[listener])
    finally:
        await runtime.stop()


def application(runtime: HttpRuntime) -> Starlette:
    """The service as an ASGI application over an open runtime."""
    return Starlette(
        routes=[*routes(runtime), *_pages(runtime)],
        middleware=[Middleware(Guard, settings=runtime.settings)],
        exception_handlers={ProblemError: _problem, HTTPException: _http_problem, Exception: _surprise},
    )


def _pages(runtime: HttpRuntime) -> list[Route]:
    async def healthz(_: Request) -> Response:
        return answer({"alive": True})

    async def readyz(_: Request) -> Response:
        """Ready as long as lists can be made: a part that is away shows in `checks`, and degrades the answers."""
        ready = not runtime.draining
        return answer({"ready": ready, "checks": runtime.health.checks()}, 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def description(_: Request) -> Response:
        return answer(document())

    own = [("/healthz", healthz), ("/readyz", readyz), ("/metrics", metrics), ("/openapi.json", description)]
    return [*(Route(path, endpoint) for path, endpoint in own), *map(_file, page_files())]


def _file(file: tuple[str, str, bytes]) -> Route:
    path, media_type, content = file

    async def page(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=PAGE_HEADERS)

    return Route(path, page)


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return error.response()


async def _http_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answered = ProblemError(error.status_code if error.status_code in TITLES else 400, error.detail).response()
    answered.headers.update(error.headers or {})
    return answered


async def _surprise(_: Request, __: Exception) -> Response:
    return ProblemError(500, "the log of the service says more").response()


class _Server(uvicorn.Server):
    """Ends the streams at the first signal: uvicorn waits for what is open."""

    def __init__(self, config: uvicorn.Config, runtime: HttpRuntime) -> None:
        super().__init__(config)
        self._runtime = runtime

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """Uvicorn would raise the signal again at the end, and the exit status would not be 0."""
        self._runtime.drain()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _config(settings: Settings, app: Starlette) -> uvicorn.Config:
    mutual = settings.http_client_ca is not None
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ssl_certfile=settings.http_certificate,
        ssl_keyfile=settings.http_key,
        ssl_ca_certs=settings.http_client_ca,
        ssl_cert_reqs=ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE,
        limit_concurrency=settings.http_streams + SPARE_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def _listener(settings: Settings) -> socket.socket:
    """Raises `StartError` for an address that cannot be listened on."""
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
    try:
        listener.bind((settings.http_host, settings.http_port))
    except OSError as error:
        raise StartError(
            f"http_host {settings.http_host}, http_port {settings.http_port}: {error.strerror}: set another port"
        ) from None
    return listener
