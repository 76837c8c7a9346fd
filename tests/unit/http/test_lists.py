"""Lists over HTTP are the published ones: whose, as of when, and what happens where a part is away."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from freshet.core.events import OPT_IN, OPT_OUT
from freshet.core.recommendation import Recommendation
from freshet.http.cursor import MAX_SHOWN, encode_cursor, fingerprint
from freshet.http.messages import ServedList
from freshet.ports import Unavailable

from tests.simulation.memory_world import ITEMS, MemoryWorld, event, go_live, lists, make_bundle
from tests.unit.http.worlds import FakeRuntime, client, served

ADDED = {"next", "made_at"}
"""What a served list has and a published one has not."""
UNKNOWN = {"as_of", "recommendation_id"}
"""What is not known of somebody without features."""


def same(answer: httpx.Response, published: Recommendation, but: set[str] = ADDED) -> None:
    """Every other field of a published list is in the answer, and equal to the last bit."""
    assert answer.status_code == 200, answer.text
    made = msgspec.json.decode(answer.content, type=ServedList)
    for name in set(ServedList.__struct_fields__) - ADDED - but:
        assert getattr(made, name) == getattr(published, name), name


def newest(world: MemoryWorld) -> Recommendation:
    """The list that was published last."""
    return lists(world.publisher.messages)[-1]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "diverse and exploring": {"diversity": 0.3, "exploration": 1.0},
    "short history": {"history": 3, "list_size": 4},
    "variants": {"experiment": "e", "variants": {"a": {"share": 0.5}, "b": {"share": 0.5, "diversity": 0.5}}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
async def test_the_answer_is_the_published_list(settings: dict[str, Any]) -> None:
    """For histories of any length nothing differs, and nothing is encoded again."""
    world = MemoryWorld()
    world.settings = msgspec.convert(settings, type(world.settings))
    reader = client(FakeRuntime(await world.start()))
    for number in range(60):
        await world.run(event(number, f"user-{number * number % 7}"))
    asked = len(world.encoder.calls)
    by_user = {made.user_id: made for made in lists(world.publisher.messages)}
    assert len(by_user) == 4
    for user_id, published in by_user.items():
        same(await reader.get(f"/v1/users/{user_id}/list"), published)
    assert len(world.encoder.calls) == asked


async def test_an_event_delivered_twice_moves_the_answer_as_it_moves_the_list() -> None:
    """The position of the answer is the published one's after a duplicate too."""
    world, reader = await served()
    await world.run(event(0), event(1))
    await world.run(event(0))
    same(await reader.get("/v1/users/ann/list"), newest(world))
    assert newest(world).as_of.offset == 2


async def test_a_list_made_without_the_encoder_is_read_without_and_with_it() -> None:
    """The answer is degraded while the encoder is away, as the published list, and no longer when it is back."""
    world, reader = await served()
    await world.run(event(0))
    world.encoder.away = True
    await world.run(event(1))
    assert newest(world).degraded
    same(await reader.get("/v1/users/ann/list"), newest(world))
    world.encoder.away = False
    assert not (await reader.get("/v1/users/ann/list")).json()["degraded"]


async def test_a_vector_of_another_version_is_encoded_anew() -> None:
    """After a promotion the answer is of the new version, though the store holds the old one's vector."""
    world, reader = await served()
    await world.run(event(0))
    newer = make_bundle(2)
    world.encoder.bundles[2] = newer
    go_live(world.model, newer)
    assert (await reader.get("/v1/users/ann/list")).json()["model_version"] == 2
    assert world.encoder.calls[-1] == (1, 2)


async def test_who_has_no_profile_gets_what_is_popular() -> None:
    """Opted out, opted in again, and never seen: the popular list, as the worker publishes it."""
    world, reader = await served()
    for number in range(6):
        await world.run(event(number, f"other-{number}"))
    await world.run(event(10), event(11, kind=OPT_OUT))
    popular = newest(world)
    same(await reader.get("/v1/users/ann/list"), popular, UNKNOWN)
    same(await reader.get("/v1/users/never%20seen/list"), popular, UNKNOWN | {"user_id"})
    await world.run(event(12, kind=OPT_IN))
    same(await reader.get("/v1/users/ann/list"), newest(world))
    assert not popular.personalised


async def test_features_away_are_said_to_be() -> None:
    """Without the store nothing is known of anybody: the popular list, and it says that it is degraded."""
    world, reader = await served()
    await world.run(event(0))

    async def away(_: str) -> dict[str, Any]:
        raise Unavailable("Redis: gone")

    world.features.read = away  # type: ignore[method-assign]
    answer = (await reader.get("/v1/users/ann/list")).json()
    assert (answer["degraded"], answer["personalised"], answer["as_of"]) == (True, False, None)
    assert (await reader.get("/v1/users/ann/explanation")).status_code == 503


async def test_pages_follow_one_another_without_a_repetition() -> None:
    """The pages hold every candidate once, whatever became popular meanwhile, and the last one has no cursor."""
    world, reader = await served(history=5)
    await world.run(event(0))
    shown: list[str] = []
    cursor = None
    while True:
        answer = await reader.get("/v1/users/ann/list", params={"limit": 3, **({"cursor": cursor} if cursor else {})})
        page = answer.json()
        shown += [item["item_id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
        await world.run(event(100 + len(shown), f"other-{len(shown)}"))
    assert len(shown) == len(set(shown)) > 99
    assert set(shown) <= set(ITEMS[1:])


async def test_what_is_excluded_makes_room() -> None:
    """An excluded item is in no list, and the next best one stands in its place."""
    world, reader = await served()
    await world.run(event(0))
    first = [item["item_id"] for item in (await reader.get("/v1/users/ann/list?limit=4")).json()["items"]]
    without = (await reader.get(f"/v1/users/ann/list?limit=3&exclude={first[0]}")).json()["items"]
    assert [item["item_id"] for item in without] == first[1:]
    popular = (await reader.get(f"/v1/users/nobody/list?exclude={first[0]}&exclude={first[1]}")).json()["items"]
    assert not {first[0], first[1]} & {item["item_id"] for item in popular}


async def test_a_session_is_folded_as_a_user_is() -> None:
    """The list of a session is that of a user who did the same, and nothing is stored."""
    world, reader = await served()
    await world.run(event(0), event(1, kind="purchase"))
    given = [{"type": "view", "item_id": ITEMS[0], "ts": event(0).ts}, {"type": "purchase", "item_id": ITEMS[1]}]
    before = len(world.publisher.messages)
    answer = await reader.post("/v1/list", json={"events": given})
    personal = (await reader.get("/v1/users/ann/list")).json()
    assert [(item["item_id"], item["score"]) for item in answer.json()["items"]] == [
        (item["item_id"], item["score"]) for item in personal["items"]
    ]
    assert answer.json()["personalised"]
    assert len(world.publisher.messages) == before
    assert (await world.features.read("session"))["recent_items"] is None
    assert not (await reader.post("/v1/list", json={})).json()["personalised"]


async def test_the_list_of_a_job_that_ran_earlier_knows_no_later_event() -> None:
    """With `events_before` the list is made from the older events alone."""
    world, reader = await served()
    await world.run(event(0))
    before = (await reader.get("/v1/users/ann/list")).json()
    await world.run(event(1))
    earlier = (await reader.get(f"/v1/users/ann/list?events_before={event(1).ts}")).json()
    assert earlier["items"] == before["items"]
    assert not (await reader.get("/v1/users/ann/list?events_before=0")).json()["personalised"]


async def test_similar_items_are_near_and_available() -> None:
    """The nearest items come first, without the item itself, those excluded, and those sold out."""
    world, reader = await served()
    vectors = world.bundle.item_vectors
    answer = (await reader.get(f"/v1/items/{ITEMS[0]}/similar?limit=100")).json()["items"]
    cosines = {item["item_id"]: item["similarity"] for item in answer}
    assert list(cosines) == sorted(cosines, key=lambda item: -cosines[item])
    assert len(cosines) == 100
    assert ITEMS[0] not in cosines
    row = ITEMS.index(answer[0]["item_id"])
    norms = (vectors[0] @ vectors[0]) ** 0.5 * (vectors[row] @ vectors[row]) ** 0.5
    assert answer[0]["similarity"] == pytest.approx(vectors[0] @ vectors[row] / norms, abs=1e-5)
    assert world.model.live is not None
    world.model.live.space.set_available(answer[0]["item_id"], available=False)
    rest = await reader.get(f"/v1/items/{ITEMS[0]}/similar?limit=1&exclude={answer[1]['item_id']}")
    assert rest.json()["items"] == [answer[2]]


async def test_an_explanation_names_the_users_events() -> None:
    """Each item of the list has the events that raised it; another item can be asked for."""
    world, reader = await served()
    await world.run(event(0), event(1, kind="click"))
    explained = (await reader.get("/v1/users/ann/explanation")).json()
    in_list = [item["item_id"] for item in (await reader.get("/v1/users/ann/list")).json()["items"]]
    assert [item["item_id"] for item in explained["items"]] == in_list
    raised = {reason["item_id"] for item in explained["items"] for reason in item["raised_by"]}
    assert raised == {ITEMS[0], ITEMS[1]}
    [explained_item] = (await reader.get(f"/v1/users/ann/explanation?item_id={ITEMS[5]}")).json()["items"]
    assert explained_item["item_id"] == ITEMS[5]


WRONG = {
    "limit 0": ("/v1/users/ann/list?limit=0", 400),
    "limit of a million": ("/v1/users/ann/list?limit=1000000", 400),
    "no number": ("/v1/users/ann/list?limit=ten", 400),
    "null": ("/v1/users/ann/list?limit=null", 400),
    "given twice": ("/v1/users/ann/list?limit=1&limit=2", 400),
    "unknown parameter": ("/v1/users/ann/list?limits=3", 400),
    "no cursor": ("/v1/users/ann/list?cursor=hello", 400),
    "a cursor of another alphabet": ("/v1/users/ann/list?cursor=%C3%A9", 400),
    "a cursor too long": (f"/v1/users/ann/list?cursor={encode_cursor(1, range(MAX_SHOWN + 1))}", 400),
    "a cursor of another version": (f"/v1/users/ann/list?cursor={encode_cursor(2, [fingerprint('x')])}", 410),
    "no user": ("/v1/users//list", 400),
    "a user id too long": (f"/v1/users/{'x' * 257}/list", 400),
    "unknown item": ("/v1/items/nowhere/similar", 404),
    "unknown item of the catalogue": ("/v1/items/nowhere", 404),
    "an explanation of nobody": ("/v1/users/nobody/explanation", 404),
    "an explanation of nothing": ("/v1/users/ann/explanation?item_id=nowhere", 404),
    "no such page": ("/v2/lists", 404),
    "another method": ("/v1/list", 405),
    "another host": ("http://evil.example/v1/users/ann/list", 421),
}


@pytest.mark.parametrize(("address", "status"), WRONG.values(), ids=WRONG)
async def test_what_is_wrong_is_said(address: str, status: int) -> None:
    """Bad input has a problem of RFC 9457 and a status, never a list and never a traceback."""
    world, reader = await served()
    await world.run(event(0))
    answer = await reader.get(address)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:freshet:problem:")
    assert problem["detail"]


BODIES = {
    "no JSON": b"{",
    "no object": b"[]",
    "deep": b'{"events": [{"context": ' + b"[" * 500 + b"]" * 500 + b"}]}",
    "Latin-1": '{"session_id": "é"}'.encode("latin-1"),
    "an unknown field": b'{"event": []}',
    "an event without an item": b'{"events": [{"type": "view"}]}',
    "an event of no type": b'{"events": [{"type": "sings", "item_id": "1"}]}',
    "an event in the future": b'{"events": [{"type": "view", "item_id": "1", "ts": 4000000000000}]}',
    "too many items": b'{"limit": 101}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_session_that_is_none_is_said_to_be(body: bytes) -> None:
    """A body that is no session is refused with its reason."""
    _, reader = await served()
    answer = await reader.post("/v1/list", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")


async def test_any_user_id_can_be_asked_for() -> None:
    """Slashes, percent signs, blanks and other scripts are parts of an id as any other character."""
    world, reader = await served()
    for number, user_id in enumerate(("a/b/list", "é😀", "100%", "a b", "..", "?x=1")):
        await world.run(event(number, user_id))
        address = httpx.URL("http://127.0.0.1").copy_with(raw_path=b"/v1/users/" + quoted(user_id) + b"/list")
        same(await reader.get(address), newest(world))


def quoted(user_id: str) -> bytes:
    """Every byte as %XX."""
    return "".join(f"%{byte:02X}" for byte in user_id.encode()).encode()
