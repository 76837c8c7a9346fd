"""Lists that stand are made again on real parts: somebody else bought the last one, and nobody sees it any more."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from freshet.core.events import Event
from freshet.core.recommendation import OWN_CAUSES

from deploy.local import Stack
from tests.integration.deployment import Deployment, until
from tests.integration.event_stream import stream

pytestmark = pytest.mark.integration


@pytest.fixture
def deployment(stack: Stack, tmp_path: Path, unique: Any) -> Iterator[Deployment]:
    """A deployment whose worker has all the time for living lists that it wants."""
    name = unique("living")
    made = Deployment(stack, tmp_path / name, name, FRESHET_LIVING_BUDGET="0.5")
    (tmp_path / name).mkdir(exist_ok=True)
    yield made
    made.close()


def events_of_today(seed: int, count: int) -> list[Event]:
    """A stream whose users are active now."""
    now_ms = int(time.time() * 1000)
    made = list(stream(seed, count))
    return [
        Event(f"{seed}-{number}", old.user_id, old.type, now_ms - count + number, old.item_id, old.amount)
        for number, old in enumerate(made)
        if not old.type.startswith("user.")
    ]


def shown(made: dict[str, Any]) -> list[str]:
    """The items of a list."""
    return [item["item_id"] for item in made["items"]]


def favourite(deployment: Deployment) -> str:
    """The item that stands in most lists."""
    return Counter(item for made in deployment.lists().values() for item in shown(made)).most_common(1)[0][0]


def is_gone(deployment: Deployment, item: str) -> bool:
    """Whether an item stands in no list."""
    return not any(item in shown(made) for made in deployment.lists().values())


def check_lists(deployment: Deployment) -> None:
    """No user's list goes back, none made again stands twice, and every list is what the code says."""
    newest: dict[bytes, int] = {}
    again = Counter()
    for record in deployment.records("recommendations"):
        made = json.loads(record.value)
        assert made["as_of"]["offset"] >= newest.get(record.key, -1), made
        newest[record.key] = made["as_of"]["offset"]
        again[made["recommendation_id"]] += made["cause"] not in OWN_CAUSES
    assert max(again.values()) == 1
    verified = deployment.freshet("verify", "kafka", "--feature-users", "20")
    assert sum(verified["mismatches"].values()) == 0, verified["examples"]
    assert verified["compared"]["lists"] == len(deployment.records("recommendations"))


def test_a_sold_out_item_leaves_every_list(deployment: Deployment) -> None:
    """Made unavailable, or removed from the catalogue: each list that held the item is made again without it."""
    worker = deployment.worker()
    deployment.send(events_of_today(1, 600))
    deployment.settle()
    before = deployment.lists()
    item = favourite(deployment)
    deployment.item(item, available=False)
    until(lambda: is_gone(deployment, item), "no list holds the item", worker)
    after = deployment.lists()
    for user, made in after.items():
        assert made["as_of"] == before[user]["as_of"]
        if item in shown(before[user]):
            assert made["cause"] == "item"
            assert made["timings"]["broker"] <= made["timings"]["publish"]
    second = favourite(deployment)
    deployment.producer.send(deployment.topics["items"], None, second.encode()).get(10)
    until(lambda: is_gone(deployment, second), "no list holds the removed item", worker)
    assert worker.metric("freshet_living_lists_total") >= 2
    until(lambda: worker.metric("freshet_living_waiting_lists") == 0, "nothing waits any more", worker)
    assert worker.metric("freshet_living_record_bytes") > 0
    deployment.send(events_of_today(2, 100))
    deployment.settle()
    deployment.check()
    check_lists(deployment)


def test_what_was_sold_out_while_nobody_worked_leaves_the_lists_after_it(deployment: Deployment) -> None:
    """After a crash, and after a second worker took over partitions."""
    worker = deployment.worker()
    deployment.send(events_of_today(3, 400))
    deployment.settle()
    item = favourite(deployment)
    worker.kill()
    deployment.item(item, available=False)
    workers = [deployment.worker(), deployment.worker("w2")]
    until(lambda: is_gone(deployment, item), "no list holds the item", *workers)
    second = favourite(deployment)
    deployment.item(second, available=False)
    until(lambda: is_gone(deployment, second), "no list holds the second item", *workers)
    assert workers[0].terminate() == 0
    third = favourite(deployment)
    deployment.item(third, available=False)
    until(lambda: is_gone(deployment, third), "no list holds the third item", workers[1])
    deployment.send(events_of_today(4, 100))
    deployment.settle()
    deployment.check()
    newest = deployment.lists().values()
    assert not {item, second, third} & {item_id for made in newest for item_id in shown(made)}
    verified = deployment.freshet("verify", "kafka", "--feature-users", "0")
    assert sum(verified["mismatches"].values()) == 0, verified["examples"]
