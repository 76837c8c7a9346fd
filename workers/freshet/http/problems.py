"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from freshet.errors import FreshetError
from freshet.http.messages import Problem

MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: ("bad-request", "The request is wrong"),
    401: ("unauthorized", "An API key is needed"),
    404: ("not-found", "There is no such thing"),
    405: ("method-not-allowed", "The address has no such method"),
    410: ("cursor-expired", "The cursor is of another version"),
    413: ("too-large", "The body is too large"),
    415: ("unsupported-media-type", "The body is of another type"),
    421: ("misdirected", "The service does not answer for this host"),
    422: ("refused", "No event was taken"),
    429: ("too-many-requests", "Too many requests"),
    500: ("internal", "The service failed"),
    503: ("unavailable", "A part that the request needs is away"),
    504: ("deadline", "The answer took too long"),
}


class ProblemError(FreshetError):
    """A request cannot be answered; `status` is HTTP's, and the message says why."""

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after = retry_after

    def response(self) -> Response:
        """The answer."""
        slug, title = TITLES[self.status]
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:  # noqa: PLR2004 - HTTP's own number
            headers["WWW-Authenticate"] = "Bearer"
        problem = Problem(f"urn:freshet:problem:{slug}", title, self.status, str(self))
        return Response(msgspec.json.encode(problem), self.status, headers, MEDIA_TYPE)
