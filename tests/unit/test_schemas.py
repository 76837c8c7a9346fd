"""The published wire format: the schema files equal the types, and the topics' records validate."""

import gzip
import re
from pathlib import Path
from typing import Any

import freshet
import msgspec
import pytest
from freshet import schemas
from freshet.cli import app
from freshet.core.comparison import Comparison
from freshet.core.popularity import Partial, encode_partial
from freshet.core.rollout import Report, Rollout, encode_record
from jsonschema import Draft7Validator, Draft202012Validator
from typer.testing import CliRunner

from tests.simulation.memory_world import MemoryWorld, event, record

FOLDER = Path(schemas.__file__).parent
ASYNCAPI = Path(__file__).parents[1] / "data" / "asyncapi-3.0.0.json.gz"
"""The JSON Schema of AsyncAPI: 3.0.0-without-$id.json of the npm package @asyncapi/specs 6.11.1 (Apache-2.0)."""

OPENAPI = "openapi.json"
"""The document of the read service, which tests/unit/http/test_openapi.py holds."""

GOOD: dict[str, Any] = {"event_id": "e1", "user_id": "u", "item_id": "i", "type": "click", "ts": 1_700_000_000_000}


def document(name: str) -> Any:
    return msgspec.json.decode((FOLDER / name).read_bytes())


def faults(topic: str, value: Any) -> list[str]:
    """What the topic's schema has against a value."""
    schema = document(f"{topic}.json")
    Draft202012Validator.check_schema(schema)
    return [fault.message for fault in Draft202012Validator(schema).iter_errors(value)]


def test_the_files_are_what_the_types_say() -> None:
    """The schema files equal what `freshet schemas workers/freshet/schemas` writes."""
    written = {file.name: file.read_bytes() for file in FOLDER.glob("*.json") if file.name != OPENAPI}
    assert written == schemas.documents()


def test_the_verb_writes_every_file(tmp_path: Path) -> None:
    """`schemas` writes every file into a new folder, and a path that is no folder is one line."""
    assert CliRunner().invoke(app, ["schemas", str(tmp_path / "new" / "wire")]).exit_code == 0
    assert {file.name for file in (tmp_path / "new" / "wire").iterdir()} == {*schemas.documents(), OPENAPI}
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["schemas", str(tmp_path / "file")])
    assert result.exit_code == 1
    assert "cannot be written to" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_every_field_is_described() -> None:
    """The schema of each record describes each field."""
    for name in schemas.documents():
        for title, definition in document(name).get("$defs", {}).items():
            for field, schema in definition.get("properties", {}).items():
                assert schema.get("description") or "const" in schema or "enum" in schema, f"{name}: {title}.{field}"


async def test_what_a_worker_publishes_is_of_the_schemas() -> None:
    """A worker's events, lists, counts and dead letters validate against the schemas."""
    world = await MemoryWorld().start()
    events = [event(number, "ann") for number in range(3)]
    bad = msgspec.structs.replace(record(3, events[0]), value=b"\xff")
    await world.process([*(record(number, each) for number, each in enumerate(events)), bad])
    for each in events:
        assert not faults("events", msgspec.json.decode(freshet.encode_event(each)))
    for topic in ("recommendations", "popularity"):
        values = [msgspec.json.decode(message.value) for message in world.messages(topic) if message.value]
        assert values
        assert [fault for value in values for fault in faults(topic, value)] == []
    [letter] = world.messages("events.dlq")
    assert not faults("events.dlq", {name: (raw or b"").decode() for name, raw in letter.headers})


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        ("items", freshet.encode_item(freshet.CatalogueItem("i", "Alien", price=3.5))),
        ("items", freshet.encode_item(freshet.CatalogueItem("i"))),
        ("models", encode_record(Rollout("user_encoder", 2, "canary", 1_700_000_000_000, share=0.1))),
        ("models", encode_record(Report("user_encoder", "w", 1_700_000_000_000, 1, 2, Comparison(lists=3)))),
        ("popularity", encode_partial(Partial(0, 3, 1_700_000_000_000, 60.0, {"i": 1.5}))),
    ],
)
def test_what_the_codecs_write_is_of_the_schemas(topic: str, value: bytes) -> None:
    """The records of the other topics validate against the schemas."""
    assert faults(topic, msgspec.json.decode(value)) == []


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        ("events", {**GOOD, "ts": 1}),
        ("events", {name: value for name, value in GOOD.items() if name != "event_id"}),
        ("items", {"title": "without an id"}),
        ("recommendations", {}),
        ("events.dlq", {"reason": "whim"}),
        ("models", {"record": "rollout", "model": "m", "version": 0, "stage": "promoted", "ts": 1}),
        ("popularity", {"partition": -1}),
    ],
)
def test_the_schemas_refuse_what_the_decoders_refuse(topic: str, value: dict[str, Any]) -> None:
    """The schemas refuse records that the decoders refuse."""
    assert faults(topic, value)


def test_the_asyncapi_document_is_valid() -> None:
    """The document validates as AsyncAPI 3.0, and every reference resolves."""
    described = document("asyncapi.json")
    meta = msgspec.json.decode(gzip.decompress(ASYNCAPI.read_bytes()))
    assert [fault.message for fault in Draft7Validator(meta).iter_errors(described)] == []
    assert list(Draft7Validator(meta).iter_errors({**described, "channels": 3}))
    for reference in re.findall(r'"\$ref": "([^"]+)"', (FOLDER / "asyncapi.json").read_text()):
        file, _, path = reference.partition("#/")
        target = document(file) if file else described
        for part in filter(None, path.split("/")):
            target = target[part]


def test_every_topic_is_a_channel() -> None:
    """The document has a channel and a schema for each topic of the settings."""
    topics = {value for name, value in msgspec.to_builtins(freshet.Settings()).items() if name.endswith("_topic")}
    assert {channel["address"] for channel in document("asyncapi.json")["channels"].values()} == topics
    assert {f"{topic}.json" for topic in topics} == {file.name for file in FOLDER.glob("*.json")} - {
        "asyncapi.json",
        OPENAPI,
    }
