"""The operations of the read service: from a request to types of `messages`, and back.

A table says of each what it takes and gives. The routes and the OpenAPI document are made from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from freshet.core.catalogue import CatalogueItem
from freshet.core.decoding import Undecodable, decode
from freshet.core.events import MAX_ID_LENGTH
from freshet.http.events import CLOUDEVENT, CLOUDEVENTS, JSON
from freshet.http.guard import unbounded
from freshet.http.messages import (
    AcceptedEvents,
    Explanation,
    ExplanationQuery,
    FoundItems,
    ListQuery,
    NoQuery,
    SearchQuery,
    ServedList,
    Session,
    SimilarItems,
    SimilarQuery,
    Status,
)
from freshet.http.problems import ProblemError
from freshet.http.runtime import HttpRuntime
from freshet.http.streams import StreamResponse
from freshet.ports import Unavailable

Query = TypeVar("Query", bound=msgspec.Struct)

Handler = Callable[[HttpRuntime, Request, Any], Awaitable[Response]]


class Operation(NamedTuple):
    """One operation; `answer` is the type of its JSON, and None where it is a stream."""

    name: str
    method: str
    path: str
    summary: str
    query: type[msgspec.Struct]
    handler: Handler
    answer: Any
    problems: tuple[int, ...] = ()
    body: Mapping[str, Any] | None = None
    """Types of the body by media type."""


async def user_list(runtime: HttpRuntime, request: Request, query: ListQuery) -> Response:
    """The user's list."""
    return answer(await runtime.lists.of_user(_id(request, "user_id"), query))


async def session_list(runtime: HttpRuntime, request: Request, _: NoQuery) -> Response:
    """The list of a session."""
    if _media_type(request) != JSON:
        raise ProblemError(415, f"send {JSON}")
    session = decode(_session, await request.body())
    if isinstance(session, Undecodable):
        raise ProblemError(400, f"the body is no session: {session.why}")
    return answer(await runtime.lists.of_session(session))


async def user_lists(runtime: HttpRuntime, request: Request, query: ListQuery) -> Response:
    """The user's lists as they are published."""
    user_id = _id(request, "user_id")
    unbounded(request.scope)

    async def first() -> bytes:
        return msgspec.json.encode(await runtime.lists.of_user(user_id, query))

    return StreamResponse(runtime.streams, user_id, first)


async def explanation(runtime: HttpRuntime, request: Request, query: ExplanationQuery) -> Response:
    """What the user's events do for their list."""
    return answer(await runtime.lists.explanation(_id(request, "user_id"), query))


async def similar_items(runtime: HttpRuntime, request: Request, query: SimilarQuery) -> Response:
    """Items like an item."""
    return answer(runtime.lists.similar(_id(request, "item_id"), query))


async def item(runtime: HttpRuntime, request: Request, _: NoQuery) -> Response:
    """An item of the catalogue."""
    return answer(runtime.item(_id(request, "item_id")))


async def items(runtime: HttpRuntime, _: Request, query: SearchQuery) -> Response:
    """Items of the catalogue."""
    return answer(FoundItems(runtime.search(query.search, query.limit)))


async def events(runtime: HttpRuntime, request: Request, _: NoQuery) -> Response:
    """Send events on."""
    taken = await runtime.events.take(await request.body(), _media_type(request))
    return answer(taken, 200 if taken.accepted else 422)


async def status(runtime: HttpRuntime, _: Request, __: NoQuery) -> Response:
    """How the stream is."""
    return answer(await runtime.status())


def answer(value: Any, status_code: int = 200) -> Response:
    """A value as JSON; nothing between may keep it."""
    return Response(msgspec.json.encode(value), status_code, {"Cache-Control": "no-store"}, JSON)


OPERATIONS = (
    Operation(
        "getUserList",
        "GET",
        "/v1/users/{user_id}/list",
        "A user's list as of now.",
        ListQuery,
        user_list,
        ServedList,
        (410,),
    ),
    Operation(
        "followUserLists",
        "GET",
        "/v1/users/{user_id}/lists",
        "Server-sent events: the user's list as of now, then each that is published (`list`), and `erased`.",
        ListQuery,
        user_lists,
        None,
        (410,),
    ),
    Operation(
        "explainUserList",
        "GET",
        "/v1/users/{user_id}/explanation",
        "What each of the user's events does for the items of their list.",
        ExplanationQuery,
        explanation,
        Explanation,
        (404,),
    ),
    Operation(
        "postSessionList",
        "POST",
        "/v1/list",
        "The list of a visitor who is only a few events; nothing is stored.",
        NoQuery,
        session_list,
        ServedList,
        (410, 413, 415),
        {JSON: Session},
    ),
    Operation(
        "getSimilarItems",
        "GET",
        "/v1/items/{item_id}/similar",
        "The available items nearest to an item.",
        SimilarQuery,
        similar_items,
        SimilarItems,
        (404,),
    ),
    Operation(
        "getItem", "GET", "/v1/items/{item_id}", "An item of the catalogue.", NoQuery, item, CatalogueItem, (404,)
    ),
    Operation("findItems", "GET", "/v1/items", "Items of the catalogue, by words.", SearchQuery, items, FoundItems),
    Operation(
        "postEvents",
        "POST",
        "/v1/events",
        "Send events: one, many, or CloudEvents. The answer comes when Kafka has them; 422 where none was taken.",
        NoQuery,
        events,
        AcceptedEvents,
        (413, 415),
        {JSON: dict, CLOUDEVENT: dict, CLOUDEVENTS: list},
    ),
    Operation("getStatus", "GET", "/v1/status", "Versions, freshness, lag and dead letters.", NoQuery, status, Status),
)


def routes(runtime: HttpRuntime) -> list[Route]:
    """The routes of the table. An id may hold any character, a slash too."""
    return [
        Route(operation.path.replace("_id}", "_id:path}"), _endpoint(runtime, operation), methods=[operation.method])
        for operation in OPERATIONS
    ]


def _endpoint(runtime: HttpRuntime, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        query = _query(request, operation.query)
        try:
            return await operation.handler(runtime, request, query)
        except Unavailable as error:
            raise ProblemError(503, str(error), 1) from None

    endpoint.__name__ = operation.name
    return endpoint


def _query(request: Request, kind: type[Query]) -> Query:
    """The query's parameters. Raises `ProblemError`."""
    given: dict[str, Any] = {}
    repeated = {field.name for field in msgspec.structs.fields(kind) if field.default == ()}
    for name, value in request.query_params.multi_items():
        if name in repeated:
            given.setdefault(name, []).append(value)
        elif name in given:
            raise ProblemError(400, f"{name} is given twice")
        else:
            given[name] = value
    try:
        query = msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ProblemError(400, f"the query: {error}") from None
    for name, value in given.items():
        if getattr(query, name) is None:
            raise ProblemError(400, f"{name} is {value!r}: leave it out instead")
    return query


def _id(request: Request, name: str) -> str:
    found: str = request.path_params[name]
    if not 1 <= len(found) <= MAX_ID_LENGTH:
        raise ProblemError(400, f"{name} has {len(found)} characters: an id has 1 to {MAX_ID_LENGTH}")
    return found


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


_session = msgspec.json.Decoder(Session)
