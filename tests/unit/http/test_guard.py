"""Who may ask, how much, how often; probes need no key; events are taken when Kafka has them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from freshet.core.events import decode_event
from freshet.http import guard
from freshet.http.guard import MAX_BODY, Buckets, is_loopback
from freshet.http.server import serve
from freshet.ports import DeliveryError, Message, TooLargeError
from freshet.serving.first_version import StartError
from freshet.settings import Settings

from tests.simulation.memory_world import NOW, MemoryWorld, event
from tests.unit.http.worlds import FakeRuntime, client, served

VIEW = {"user_id": "ann", "type": "view", "item_id": "film-1"}


def sent(world: MemoryWorld) -> list[Message]:
    """What was sent to the events topic."""
    return world.messages(world.settings.events_topic)


async def test_events_are_answered_when_kafka_has_them() -> None:
    """Each event is on the topic under its user's key, as the stream decodes it; the answer has its id."""
    world, sender = await served()
    given = [VIEW | {"event_id": "e1", "ts": NOW}, VIEW | {"context": {"recommendation_id": "r"}}]
    answer = await sender.post("/v1/events", json=given)
    assert answer.status_code == 200
    taken = answer.json()
    assert (taken["accepted"], taken["refused"]) == (2, 0)
    decoded = [decode_event(message.value, message.key) for message in sent(world)]
    assert [made.event_id for made in decoded] == [of["event_id"] for of in taken["events"]]
    assert taken["events"][0]["event_id"] == "e1"
    assert decoded[1].ts == NOW + 60_000
    assert decoded[1].context == {"recommendation_id": "r"}


async def test_one_event_needs_no_array() -> None:
    """An object is one event."""
    world, sender = await served()
    assert (await sender.post("/v1/events", json=VIEW)).json()["accepted"] == 1
    assert len(sent(world)) == 1


async def test_cloudevents_are_taken() -> None:
    """Attributes of CloudEvents fill what the data leaves out, for one and for a batch."""
    world, sender = await served()
    cloud = {
        "specversion": "1.0",
        "id": "c1",
        "type": "view",
        "source": "/shop",
        "subject": "ann",
        "time": "2023-11-14T22:13:20Z",
        "data": {"item_id": "film-1"},
    }
    single_event = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
    event_batch = {"Content-Type": "application/cloudevents-batch+json"}
    assert (await sender.post("/v1/events", content=json.dumps(cloud), headers=single_event)).json()["accepted"] == 1
    batch = [cloud | {"id": "c2"}, cloud | {"data": 7}, cloud | {"time": "soon"}]
    answer = (await sender.post("/v1/events", content=json.dumps(batch), headers=event_batch)).json()
    assert [taken.get("reason") for taken in answer["events"]] == [None, "invalid", "invalid"]
    decoded = [decode_event(message.value, message.key) for message in sent(world)]
    assert [(made.event_id, made.user_id, made.type, made.ts) for made in decoded] == [
        ("c1", "ann", "view", 1_700_000_000_000),
        ("c2", "ann", "view", 1_700_000_000_000),
    ]


async def test_each_refused_event_has_its_reason() -> None:
    """The good ones are taken; the reasons are those of dead letters. With none taken the status says so."""
    world, sender = await served()
    given: list[Any] = [
        VIEW,
        VIEW | {"type": "sings"},
        {"user_id": "ann", "type": "view"},
        VIEW | {"ts": 4_000_000_000_000},
        VIEW | {"user_id": 5},
        7,
        VIEW | {"context": {"text": "x" * 70_000}},
        {"type": "view", "item_id": "film-1"},
    ]
    answer = await sender.post("/v1/events", json=given)
    assert answer.status_code == 200
    reasons = [taken.get("reason") for taken in answer.json()["events"]]
    assert reasons == [
        *(None, "unknown_type", "missing_item", "ahead_of_time", "invalid", "invalid", "too_large", "invalid"),
    ]
    assert len(sent(world)) == 1
    assert (await sender.post("/v1/events", json=given[1:])).status_code == 422
    assert len(sent(world)) == 1


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"[", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" + b"1," * 1000 + b"1]", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b"{", "application/json", 422),
        (b"\xff", "application/json", 422),
        (b"", "application/json", 422),
        (b"[" * 500 + b"]" * 500, "application/json", 400),
    ],
)
async def test_a_body_that_is_none_is_refused(body: bytes, media_type: str, status: int) -> None:
    """What is no event at all is refused whole, and nothing is sent."""
    world, sender = await served()
    answer = await sender.post("/v1/events", content=body, headers={"Content-Type": media_type})
    assert answer.status_code == status, answer.text
    assert sent(world) == []


async def test_kafka_away_is_503_and_nothing_is_accepted() -> None:
    """Events that Kafka does not take are refused, with when to come again; one too large does not keep the others."""
    world, sender = await served()
    publish = world.publisher.publish

    async def away(_: Sequence[Message]) -> None:
        raise DeliveryError("timed out")

    async def second_too_large(messages: Sequence[Message]) -> None:
        await publish([messages[0], *messages[2:]])
        raise TooLargeError([messages[1]], "too large")

    world.publisher.publish = away  # type: ignore[method-assign]
    answer = await sender.post("/v1/events", json=VIEW)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    world.publisher.publish = second_too_large  # type: ignore[method-assign]
    answer = await sender.post("/v1/events", json=[VIEW, VIEW, VIEW])
    assert [taken.get("reason") for taken in answer.json()["events"]] == [None, "too_large", None]
    assert answer.json()["accepted"] == 2


async def test_a_large_body_is_refused() -> None:
    """10 MB are 413, whether the length is said or not; the probes stay."""
    _, sender = await served()

    async def parts() -> Any:
        for _ in range(10):
            yield b"x" * (MAX_BODY // 4)

    for content in (b"x" * 10_000_000, parts()):
        answer = await sender.post("/v1/events", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"


async def test_a_request_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes too long is 504."""
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 0.05)
    world, reader = await served()

    async def slow(_: str) -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    world.features.read = slow  # type: ignore[method-assign]
    assert (await reader.get("/v1/users/ann/list")).status_code == 504


async def test_a_surprise_is_500_and_no_more_is_told() -> None:
    """An error that nobody foresaw has a problem without its words."""
    world, reader = await served()

    async def broken(_: str) -> dict[str, Any]:
        raise RuntimeError("the secret")

    world.features.read = broken  # type: ignore[method-assign]
    answer = await reader.get("/v1/users/ann/list")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text


async def test_keys_are_asked_for() -> None:
    """With keys nothing but probes, page and description is answered without one; each key will do."""
    world = MemoryWorld(http_api_keys="first second\nthird")
    reader = client(FakeRuntime(await world.start()), "shop.example")
    address = "/v1/users/ann/list"
    for headers in ({}, {"Authorization": "Bearer fourth"}, {"Authorization": "Bearer "}):
        answer = await reader.get(address, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    for key in ("first", "second", "third"):
        assert (await reader.get(address, headers={"Authorization": f"Bearer {key}"})).status_code == 200
    for page in ("/", "/page.js", "/page.css", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert (await reader.get(page)).status_code == 200


async def test_a_client_that_asks_too_often_waits() -> None:
    """Beyond the rate a client is told to wait; another client, and the probes, are answered."""
    world = MemoryWorld(http_rate=5.0, http_api_keys="a b")
    reader = client(FakeRuntime(await world.start()))
    answers = [await reader.get("/v1/status", headers={"Authorization": "Bearer a"}) for _ in range(20)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:5] == [200] * 5
    assert 429 in statuses
    assert answers[statuses.index(429)].headers["retry-after"] == "1"
    assert (await reader.get("/v1/status", headers={"Authorization": "Bearer b"})).status_code == 200
    assert (await reader.get("/readyz")).status_code == 200


def test_a_bucket_fills_with_time() -> None:
    """The tokens of a second come back within one, and no more are saved than that."""
    now = 100.0
    buckets = Buckets(2.0, clock=lambda: now)
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    now += 0.5
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    now += 100
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]


def test_clients_are_forgotten() -> None:
    """However many addresses ask, as many are remembered as there is room for."""
    buckets = Buckets(1.0, clock=time.monotonic)
    for number in range(guard.CLIENTS_KEPT + 100):
        buckets.take(str(number))
    assert len(buckets._clients) == guard.CLIENTS_KEPT


async def test_probes_say_how_it_is() -> None:
    """Alive, ready with the parts' verdicts, and no longer ready once it drains; metrics count by operation."""
    world, reader = await served()
    assert (await reader.get("/healthz")).json() == {"alive": True}
    runtime = FakeRuntime(world)
    reader = client(runtime)
    assert (await reader.get("/readyz")).json() == {"ready": True, "checks": {"encoder": "ok"}}
    await reader.get("/v1/users/ann/list")
    text = (await reader.get("/metrics")).text
    assert 'freshet_http_request_seconds_count{route="getUserList",status="200"}' in text
    runtime.drain()
    assert (await reader.get("/readyz")).status_code == 503


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "shop.example"])  # noqa: S104 - what is refused
def test_others_are_not_let_in_without_credentials(host: str) -> None:
    """The service does not start where others reach it and nobody is asked for a key or a certificate."""
    assert not is_loopback(host)
    with pytest.raises(StartError, match="http_api_keys"):
        serve(Settings(http_host=host), print)


async def test_the_page_is_kept_from_foreign_scripts() -> None:
    """The page's policy lets in its own files alone."""
    _, reader = await served()
    answer = await reader.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in answer.headers["content-security-policy"]


async def test_the_status_tells_of_the_stream() -> None:
    """Versions, items, behaviours and the parts' verdicts."""
    world, reader = await served()
    await world.run(event(0))
    status = (await reader.get("/v1/status")).json()
    assert status["live_version"] == 1
    assert status["items"] == 120
    assert status["behaviours"] == msgspec.to_builtins(world.settings.behaviours)
    assert status["checks"] == {"encoder": "ok"}
