"""Policies judged on real parts: simulated shoppers react to a worker's lists, so the truth is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from freshet.adapters.onnx import OnnxEncoder
from freshet.core.evaluation.off_policy import off_policy, served
from freshet.core.evaluation.results import Estimate
from freshet.core.events import Event
from freshet.core.recommendation import Recommendation, decode_recommendation
from freshet.logs.source import read_topic
from freshet.replay import policies
from freshet.replay.rebuild import FoldedLog, SideInputTopics
from freshet.report.results_file import read_results
from freshet.settings import Settings, load_settings
from freshet.simulate.catalogue import Offer
from freshet.simulate.shop import Plan, Shop, shopper_number, user_id
from freshet.simulate.shoppers import HOUR_MS

from deploy.demo.movielens import read_items
from deploy.local import Stack
from deploy.local.parts import TEXT_ENCODER
from tests.integration.deployment import Deployment

pytestmark = pytest.mark.integration

SHOPPERS = 250
ROUNDS = 3
WINDOW_HOURS = 2
VARIANTS = {"plain": {"share": 0.5}, "popular": {"share": 0.5, "prior_weight": 3.0}}
LOOKS_AFTER_MS = 40_000


@pytest.fixture
def deployment(stack: Stack, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Deployment]:
    """A worker that explores with every list, in an experiment with two variants."""
    made = Deployment(
        stack,
        tmp_path,
        unique("policies"),
        partitions=2,
        FRESHET_EXPLORATION="1.0",
        FRESHET_EXPERIMENT="first",
        FRESHET_VARIANTS=json.dumps(VARIANTS),
    )
    yield made
    made.close()


def shop() -> Shop:
    """Shoppers with tastes in films."""
    items = [Offer(item, 0) for item in read_items()]
    return Shop(Plan(seed=4, users=SHOPPERS, items=len(items), days=30, daily_users=0, daily_items=0), items)


def opened_at(over: Shop, round_: int) -> int:
    """When all shoppers look at their newest lists."""
    return over.plan.origin + round_ * HOUR_MS


def live(deployment: Deployment, over: Shop) -> tuple[dict[str, int], int]:
    """Rounds of looking at the newest list and acting on it: which lists were looked at, and when; clicks on them."""
    ids = [item.item_id for item in over.catalogue.items]
    looked: dict[str, int] = {}
    clicks = 0
    for round_ in range(ROUNDS + 1):
        now, lists = opened_at(over, round_), deployment.lists() if round_ else {}
        events: list[Event] = []
        for shopper in range(SHOPPERS):
            user = user_id(shopper)
            if user in lists:
                shown = lists[user]
                looked[shown["recommendation_id"]] = now
                items = [item["item_id"] for item in shown["items"]]
                events += over.react(shopper, items, now, shown["recommendation_id"]).events
            found = ids[(shopper * 7 + round_ * 31) % len(ids)]
            events.append(Event(f"own-{shopper}-{round_}", user, "view", now + LOOKS_AFTER_MS + 20_000, found))
        clicks += sum(event.type == "click" for event in events)
        deployment.send(events)
        deployment.settle()
    closing = opened_at(over, ROUNDS + WINDOW_HOURS) + LOOKS_AFTER_MS
    deployment.send([Event("closing", "somebody else", "view", closing, ids[0])])
    return looked, clicks


async def truth(
    deployment: Deployment, over: Shop, looked: dict[str, int], target: policies.Target
) -> tuple[float, float]:
    """What judged lists are worth in truth, as shown and as the target would have made them, by clicks a list."""
    settings = load_settings(environ=deployment.settings)
    lists = {published.recommendation_id: published for published in _published(settings)}
    log = policies.open_log("kafka", settings)
    folded = FoldedLog(log, settings, lists.values())
    topics = SideInputTopics([], list(read_topic(settings, settings.popularity_topic)))
    young = opened_at(over, ROUNDS) + LOOKS_AFTER_MS
    judged = [
        published
        for published in folded.recorded
        if published.list.as_of.ts <= young and published.list.personalised and not published.list.degraded
    ]
    encoder = OnnxEncoder(Path(settings.model_repository), TEXT_ENCODER)
    worth = [0.0, 0.0]
    async for published, made in policies.rebuilt(judged, target, settings, encoder, topics):
        if published.list.recommendation_id in looked:
            ts, shopper = looked[published.list.recommendation_id], shopper_number(published.list.user_id)
            for policy, items in enumerate((published.list.items, made.items)):
                worth[policy] += over.expected(shopper, [item.item_id for item in items], ts)[:, 1].sum()
    encoder.close()
    return worth[0] / len(judged), worth[1] / len(judged)


def _published(settings: Settings) -> Iterator[Recommendation]:
    for record in read_topic(settings, settings.recommendations_topic):
        if record.value is not None:
            yield decode_recommendation(record.value)


def _cli(deployment: Deployment, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "freshet.cli", *arguments, "--json"]
    done = subprocess.run(command, env=os.environ | deployment.settings, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def near(estimate: Estimate, value: float, half_widths: float = 2.0) -> bool:
    """Whether a value is within two half widths of the 95 % interval: chance leaves it once in 10,000."""
    return abs(estimate.mean - value) <= half_widths * (estimate.high - estimate.low) / 2


async def test_estimates_meet_the_truth(deployment: Deployment, tmp_path: Path) -> None:
    """Clicks on published lists say what lists that were never published are worth; each variant is read out.

    An archive and a file of the lists say the same without a broker.
    """
    deployment.worker()
    over = shop()
    looked, clicked = live(deployment, over)
    record = policies.RecordedRun(
        settings=load_settings(environ=deployment.settings),
        source="kafka",
        lists="kafka",
        window_ms=WINDOW_HOURS * HOUR_MS,
    )
    found = await policies.off_policy(record, policies.Target(), "click", TEXT_ENCODER)
    as_shown, greedy = await truth(deployment, over, looked, policies.Target())
    judged = found.counts["judged"]
    assert served(found.slots).value.mean * judged == pytest.approx(clicked)
    assert near(served(found.slots).value, as_shown)
    unexplored = off_policy("no exploration", found.slots)
    for estimate in unexplored:
        assert near(estimate.value, greedy), (estimate, greedy)
        assert estimate.mean_weight is not None
        assert near(estimate.mean_weight, 1.0), estimate
        assert estimate.effective_sample_size > judged / 2

    results = tmp_path / "results.json"
    _cli(deployment, "ope", "--diversity", "0.05", "--window", f"{WINDOW_HOURS}h", "--out", str(results))
    _, diverse = await truth(deployment, over, looked, policies.Target(diversity=0.05))
    first, *_, robust = read_results(results).off_policy
    assert first == served(found.slots)
    assert near(robust.value, diverse, 3.0), (robust, diverse)
    # Not by how much: one slot in 500 that exploration changed holds the target's item, so a run may have none.
    assert robust.effective_sample_size < unexplored[0].effective_sample_size

    lists = tmp_path / "lists.jsonl"
    lists.write_bytes(b"".join(record.value + b"\n" for record in deployment.records("recommendations")))
    arguments = ("ope", str(deployment.archived()), "--lists", str(lists), "--diversity", "0.05")
    deployment.settings["FRESHET_KAFKA"] = "127.0.0.1:1"
    alone = _cli(deployment, *arguments, "--window", f"{WINDOW_HOURS}h")
    deployment.settings["FRESHET_KAFKA"] = deployment.stack.bootstrap
    assert alone["off_policy"] == msgspec.to_builtins(read_results(results).off_policy)

    read = _cli(deployment, "compare", "--window", f"{WINDOW_HOURS}h")
    assert [variant["variant"] for variant in read["variants"]] == ["plain", "popular"]
    assert sum(variant["users"] for variant in read["variants"]) == SHOPPERS
    clicks = sum(variant["metrics"]["click per user"]["mean"] * variant["users"] for variant in read["variants"])
    assert clicks == pytest.approx(clicked)
