"""What stands before every request: who may ask, how much, how often and how long."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from freshet.http.problems import ProblemError
from freshet.process import metrics
from freshet.settings import Settings

MAX_BODY = 2 * 1024 * 1024
"""Bytes of a body; `MAX_EVENTS` ordinary events take a fifth of it."""
REQUEST_SECONDS = 10.0
"""A request that is not answered by then has failed; a stream of lists goes on."""
CLIENTS_KEPT = 10_000
"""Clients whose rate is remembered."""
OPEN_PATHS = frozenset({"/", "/page.css", "/page.js", "/healthz", "/readyz", "/metrics", "/openapi.json"})
"""What needs no key: probes, the page's own files, and the description."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Buckets:
    """A token bucket per client: `rate` requests a second, and as many at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> bool:
        """Take a token; returns False where the client has none left."""
        now = self._clock()
        tokens, before = self._clients.pop(client, (self._rate, now))
        tokens = min(self._rate, tokens + (now - before) * self._rate)
        granted = tokens >= 1.0
        self._clients[client] = (tokens - granted, now)
        if len(self._clients) > CLIENTS_KEPT:
            self._clients.popitem(last=False)
        return granted


class Guard:
    """Refuses what may not be asked, bounds bodies and times, and measures."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._digests = [_digest(key) for key in (settings.http_api_keys or "").split()]
        self._local_names = not settings.http_api_keys and is_loopback(settings.http_host)
        self._buckets = Buckets(settings.http_rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, started = time.monotonic(), 500, False

        async def noted(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message["headers"], *_SECURITY_HEADERS]
            await send(message)

        try:
            self._admit(scope)
            async with asyncio.timeout(REQUEST_SECONDS) as deadline:
                scope.setdefault("state", {})["deadline"] = deadline
                await self._app(scope, _bounded(scope, receive), noted)
        except ProblemError as problem:
            if started:
                raise
            await problem.response()(scope, receive, noted)
        except TimeoutError:
            if started:
                raise
            await ProblemError(504, f"no answer within {REQUEST_SECONDS:.0f} s").response()(scope, receive, noted)
        finally:
            route = getattr(scope.get("endpoint"), "__name__", "none")
            metrics.REQUESTS.labels(route, str(status)).observe(time.monotonic() - began)

    def _admit(self, scope: Scope) -> None:
        """Raise `ProblemError` for who may not ask, or asks too often."""
        headers = dict(scope["headers"])
        if self._local_names and _host_name(headers.get(b"host", b"").decode("latin-1")) not in LOOPBACK_NAMES:
            raise ProblemError(421, "ask for localhost: a name that leads here may be another page's")
        client = scope["client"][0] if scope.get("client") else ""
        if scope["path"] not in OPEN_PATHS:
            if self._digests:
                given = _digest(headers.get(b"authorization", b"").decode("latin-1").removeprefix("Bearer "))
                if not any(hmac.compare_digest(given, digest) for digest in self._digests):
                    raise ProblemError(401, "send the header `Authorization: Bearer KEY` with a key of http_api_keys")
                client = given.hex()
            if not self._buckets.take(client):
                raise ProblemError(429, "more requests than http_rate allows a client", 1)


def is_loopback(host: str) -> bool:
    """Whether a server on this host is reached from the machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unbounded(scope: Scope) -> None:
    """Take the deadline from a request that lasts as long as its reader wants."""
    scope["state"]["deadline"].reschedule(None)


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Receive a body of at most `MAX_BODY` bytes."""
    said = dict(scope["headers"]).get(b"content-length", b"0")
    received = 0

    async def bounded() -> Message:
        nonlocal received
        if said.isdigit() and int(said) > MAX_BODY:
            raise ProblemError(413, f"a body of {int(said)} bytes: at most {MAX_BODY}")
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise ProblemError(413, f"a body of more than {MAX_BODY} bytes")
        return message

    return bounded


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def _host_name(host: str) -> str:
    return host if host.endswith("]") else host.rpartition(":")[0] or host


_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
