"""The OpenAPI 3.1 document of the read service, made from the table of operations and the types."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import msgspec

from freshet.core.events import MAX_ID_LENGTH, Event
from freshet.http.events import CLOUDEVENT, CLOUDEVENTS, JSON
from freshet.http.messages import MAX_EVENTS, Problem
from freshet.http.operations import OPERATIONS, Operation
from freshet.http.problems import MEDIA_TYPE, TITLES
from freshet.schemas import described

_TEMPLATE = "#/components/schemas/{name}"
_ALWAYS = (400, 401, 429, 503, 504)
"""Problems that any operation may answer with."""
_CLOUDEVENT = {
    "type": "object",
    "description": "A CloudEvent in JSON (CloudEvents 1.0.2), whose `data` is an event. `id`, `type`, `subject` and "
    "`time` fill fields that the data leaves out.",
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string"},
        "type": {"type": "string"},
        "source": {"type": "string"},
        "subject": {"type": "string", "description": "The user."},
        "time": {"type": "string", "format": "date-time"},
        "data": {"type": "object"},
    },
    "required": ["specversion", "id", "type", "source", "data"],
}


def document() -> dict[str, Any]:
    """The document."""
    answers = [operation.answer for operation in OPERATIONS if operation.answer is not None]
    bodies = [kind for operation in OPERATIONS for kind in (operation.body or {}).values()]
    queries = [operation.query for operation in OPERATIONS]
    _, schemas = msgspec.json.schema_components([*answers, *bodies, *queries, Event, Problem], ref_template=_TEMPLATE)
    schemas = {name: described(schema) for name, schema in schemas.items()}
    parameters = {query.__name__: schemas.pop(query.__name__) for query in dict.fromkeys(queries)}
    schemas |= {"NewEvent": _new_event(schemas["Event"]), "CloudEvent": _CLOUDEVENT}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        described_operation = _operation(operation, parameters[operation.query.__name__])
        paths.setdefault(operation.path, {})[operation.method.lower()] = described_operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Freshet",
            "version": version("freshet"),
            "description": "Lists as of now, and events, beside the workers of a stream.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(operation: Operation, query: dict[str, Any]) -> dict[str, Any]:
    name = operation.path.partition("{")[2].partition("}")[0]
    path = [{"name": name, "in": "path", "required": True, "schema": _ID}] if name else []
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*path, *(_parameter(field, schema) for field, schema in query["properties"].items())],
        "responses": {"200": _answer(operation)},
    }
    if operation.body is not None:
        content = {media_type: {"schema": _body(media_type, kind)} for media_type, kind in operation.body.items()}
        found["requestBody"] = {"required": True, "content": content}
    if operation.name == "postEvents":
        found["responses"]["422"] = _answer(operation) | {"description": "No event was taken: each says why."}
    for status in sorted({*_ALWAYS, *operation.problems}):
        content = {MEDIA_TYPE: {"schema": {"$ref": _TEMPLATE.format(name="Problem")}}}
        found["responses"][str(status)] = {"description": TITLES[status][1], "content": content}
    return found


_ID = {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH}


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in schema.items() if key != "description"}
    if kept.get("default", ...) is None:  # a parameter is absent, never null
        kept = {"anyOf": [kind for kind in kept["anyOf"] if kind != {"type": "null"}]}
    return {"name": name, "in": "query", "description": schema.get("description", ""), "schema": kept}


def _body(media_type: str, kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {"$ref": _TEMPLATE.format(name=kind.__name__)}
    event = {"$ref": _TEMPLATE.format(name="NewEvent")}
    cloudevent = {"$ref": _TEMPLATE.format(name="CloudEvent")}
    array = {"type": "array", "minItems": 1, "maxItems": MAX_EVENTS}
    bodies: dict[str, dict[str, Any]] = {
        JSON: {"oneOf": [event, array | {"items": event}]},
        CLOUDEVENT: cloudevent,
        CLOUDEVENTS: array | {"items": cloudevent},
    }
    return bodies[media_type]


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        return {
            "description": "A stream of server-sent events, each a list (`ServedList`, then records of the topic).",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    reference = {"$ref": _TEMPLATE.format(name=operation.answer.__name__)}
    return {"description": operation.summary, "content": {JSON: {"schema": reference}}}


def _new_event(event: dict[str, Any]) -> dict[str, Any]:
    """An event whose id and time may be left out."""
    required = [name for name in event["required"] if name not in ("event_id", "ts")]
    return event | {
        "description": f"{event['description']} An event without `event_id` is given one, and one without `ts` "
        "happened now: give an id where a request may be repeated.",
        "required": required,
    }
