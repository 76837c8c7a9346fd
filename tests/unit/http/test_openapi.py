"""The OpenAPI document is checked in, is the service's, and the service keeps to it whatever is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
import schemathesis
from freshet import schemas
from freshet.http.openapi import document
from freshet.http.operations import OPERATIONS
from freshet.http.server import application
from hypothesis import HealthCheck, settings

from tests.simulation.memory_world import MemoryWorld, event
from tests.unit.http.worlds import FakeRuntime, client, served

FILE = Path(schemas.__file__).with_name("openapi.json")


async def _world() -> MemoryWorld:
    world = await MemoryWorld(http_rate=100_000.0).start()
    await world.run(*(event(number, f"user-{number % 3}") for number in range(9)))
    return world


APPLICATION = application(FakeRuntime(asyncio.run(_world())))
DESCRIBED = schemathesis.openapi.from_dict(document()).exclude(operation_id="followUserLists")
DESCRIBED.app = APPLICATION


def test_the_file_is_what_the_operations_say() -> None:
    """The document that is checked in equals what `freshet schemas workers/freshet/schemas` writes."""
    assert FILE.read_bytes() == schemas.as_file(document())


async def test_the_service_gives_its_document() -> None:
    """`/openapi.json` is the document, every operation is in it, and each field is described."""
    _, reader = await served()
    given = (await reader.get("/openapi.json")).json()
    assert given == msgspec.json.decode(FILE.read_bytes())
    names = {operation["operationId"] for path in given["paths"].values() for operation in path.values()}
    assert names == {operation.name for operation in OPERATIONS}
    for name, schema in given["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert described.get("description") or name == "CloudEvent", f"{name}.{field}"


@DESCRIBED.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_has_an_answer_of_the_document(case: schemathesis.Case) -> None:
    """Requests made from the document, right and wrong, are answered as it says, and never with a failure.

    A cursor or an event of the right shape may still be refused: what it says is wrong.
    """
    case.call_and_validate(base_url="http://127.0.0.1", excluded_checks=[schemathesis.checks.positive_data_acceptance])


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_an_unknown_parameter_is_refused_everywhere(operation: object) -> None:
    """No operation takes a parameter that its description has not."""
    [known] = [known for known in OPERATIONS if known is operation]
    reader = client(FakeRuntime(await _world()))
    address = known.path.replace("{user_id}", "user-1").replace("{item_id}", "film-1")
    answer = await reader.request(known.method, f"{address}?surprise=1")
    assert (answer.status_code, answer.json()["status"]) == (400, 400)
