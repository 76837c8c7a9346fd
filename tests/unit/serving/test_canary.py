"""A candidate beside the live version: both lists of a user, the reports, and the end of a canary."""

import asyncio
from itertools import combinations, count

import pytest
from freshet.core.comparison import WINDOW, Comparison
from freshet.core.features import Tensors
from freshet.core.recommendation import Item
from freshet.core.rollout import MODEL, Report, Rollout, Stage, decode_record, encode_record
from freshet.core.state import UserState
from freshet.ports import Encoded, Message, Record, Unavailable
from freshet.serving import canary

from tests.simulation.memory_world import ITEMS, NOW, FakeEncoder, MemoryWorld, event, lists, make_bundle

ANN = [Item("ann", 1.0, "model")]


async def test_as_many_users_count_as_the_settings_ask_for() -> None:
    """The window holds as many users as the settings ask for, beyond its default size."""
    world = await with_candidate("same", canary_lists=2 * WINDOW)
    await world.canary.report()
    world.canary._comparing.add_failed(WINDOW)
    for _ in range(WINDOW):
        world.canary._comparing.add(ANN, ANN)
    assert world.canary.comparison.error_rate == 0.5


async def with_candidate(other: str, stage: Stage = "canary", share: float = 1.0, **settings: object) -> MemoryWorld:
    """A world with a candidate: `same` ranks as the live version does, `turned` quite otherwise."""
    world = await MemoryWorld(**settings).start()
    items = ITEMS if other == "same" else ITEMS[::-1]
    bundle = make_bundle(2, items)
    vectors = world.bundle.item_vectors
    candidate = type(bundle)(bundle.path, bundle.manifest, bundle.item_ids, vectors)
    world.encoder.bundles[2] = candidate
    step = Rollout(MODEL, 2, stage, NOW, share)
    world.model.apply_models([Record(0, NOW, step.key, encode_record(step))])
    world.model._make_ready(candidate, world.model._space(candidate), (), {})
    return world


def states(world: MemoryWorld, count: int = 8) -> list[tuple[str, UserState]]:
    return [(f"user-{number}", world.state(f"user-{number}")) for number in range(count)]


def said(messages: list[Message], topic: str = "models") -> list[Rollout | Report | str]:
    return [decode_record(message.value) for message in messages if message.topic == topic and message.value]


async def test_equal_versions_make_equal_lists() -> None:
    """A candidate equal to the live version has full overlap and no score gap."""
    world = await with_candidate("same", "shadow")
    await world.run(*(event(number, f"user-{number}") for number in range(8)))
    await world.canary.compare(states(world))
    comparison = world.canary.comparison
    assert (comparison.lists, comparison.failed) == (8, 0)
    assert (comparison.overlap, comparison.score_gap) == (1.0, 0.0)
    assert comparison.live_ms > 0 < comparison.candidate_ms


async def test_a_shadow_publishes_no_list() -> None:
    """A shadow's lists are compared and reported, and users get the live version's lists."""
    world = await with_candidate("turned", "shadow")
    await world.run(*(event(number, f"user-{number}") for number in range(8)))
    await world.canary.compare(states(world))
    await world.canary.report()
    await world.canary.judge()
    assert {made.model_version for made in lists(world.publisher.messages)} == {1}
    [report] = said(world.messages("models"))
    assert isinstance(report, Report)
    assert (report.worker, report.live, report.candidate, report.comparison.lists) == ("worker", 1, 2, 8)
    assert report.comparison.overlap < 0.5
    assert report.comparison.score_gap > 0


async def test_a_canary_s_lists_are_wholly_its_own() -> None:
    """Each user's list and stored vector are of a single version, which the list names."""
    world = await with_candidate("turned", share=0.5)
    await world.run(*(event(number, f"user-{number}") for number in range(40)))
    made = {published.user_id: published.model_version for published in lists(world.publisher.messages)}
    assert set(made.values()) == {1, 2}
    for user, version in made.items():
        assert (await world.features.read(user))["model_version"] == version
        assert world.model.candidate.has(user) is (version == 2)


async def test_a_canary_out_of_its_bands_is_rolled_back_once() -> None:
    """The rollback is written once, with reason and worker, and takes effect when it is read."""
    world = await with_candidate("turned", canary_lists=8, canary_overlap=1.0)
    await world.run(*(event(number, f"user-{number}") for number in range(8)))
    await world.canary.compare(states(world, 4))
    await world.canary.judge()
    assert said(world.messages("models")) == []
    await world.canary.compare(states(world))
    await world.canary.judge()
    await world.canary.judge()
    [step] = said(world.messages("models"))
    assert isinstance(step, Rollout)
    assert (step.version, step.stage) == (2, "rolled_back")
    assert step.reason.startswith("worker: its lists overlap by")
    [message] = world.messages("models")
    world.model.apply_models([Record(1, NOW, message.key, message.value)])
    assert world.model.candidate is None
    await world.run(event(50, "user-1"))
    assert lists(world.publisher.messages)[-1].model_version == 1


@pytest.mark.parametrize(("stage", "share"), [("promoted", 1.0), ("canary", 0.5)])
async def test_a_rollback_that_comes_late_undoes_nothing(stage: Stage, share: float) -> None:
    """A rollback behind the operator's next step changes nothing, and a renewed canary is judged anew."""
    world = await with_candidate("turned", canary_lists=8, canary_overlap=1.0)
    await world.run(*(event(number, f"user-{number}") for number in range(8)))
    await world.canary.compare(states(world))
    await world.canary.judge()
    [late] = world.messages("models")
    next_ = Rollout(MODEL, 2, stage, NOW + 1, share)
    world.model.apply_models(
        [Record(1, NOW, next_.key, encode_record(next_)), Record(2, NOW, late.key, late.value)],
    )
    assert world.model.steps[2] == next_
    assert world.model.live.version == (2 if stage == "promoted" else 1)
    await world.canary.compare(states(world))
    await world.canary.judge()
    assert len(world.messages("models")) == (1 if stage == "promoted" else 2)


async def test_a_candidate_that_does_not_answer_has_failed() -> None:
    """A candidate fails only where the live version answers, so an unavailable server is no failure."""
    world = await with_candidate("same", canary_lists=8)
    await world.run(*(event(number, f"user-{number}") for number in range(8)))
    kept = world.encoder.bundles.pop(2)
    world.encoder.away = True
    await world.canary.compare(states(world))
    assert world.canary.comparison.failed == 0
    world.encoder.away = False
    world.encoder.bundles[2] = kept
    world.encoder.broken = {2}
    await world.canary.compare(states(world))
    assert world.canary.comparison.failed == 8
    await world.canary.judge()
    [step] = said(world.messages("models"))
    assert "100.0% of its inferences failed" in step.reason


async def streamed(world: MemoryWorld, batches: int = 40, users: int = 40) -> list[str]:
    """Stream batches of the same users through the pipeline beside the analysis; why the canary was rolled back."""
    beside = asyncio.create_task(world.canary.run())
    for batch in range(batches):
        await world.run(*(event(batch * users + number, f"user-{number}") for number in range(users)))
        await asyncio.sleep(0.005)
        ended = [step.reason for step in said(world.messages("models")) if isinstance(step, Rollout)]
        if ended:
            break
    beside.cancel()
    return ended


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker judges whenever it can."""
    monkeypatch.setattr(canary, "TICK_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("share", [0.5, 1.0])
async def test_a_canary_that_fails_on_the_stream_is_rolled_back(share: float) -> None:
    """A canary that never answers on the stream is rolled back though no user has a list from it."""
    world = await with_candidate("same", share=share, canary_lists=48)
    world.encoder.broken = {2}
    [why] = await streamed(world)
    assert why == "worker: 100.0% of its inferences failed, more than 1.0%"
    degraded = {made.model_version for made in lists(world.publisher.messages) if made.degraded}
    assert degraded == {2}


class Overheard(FakeEncoder):
    """While it answers, another worker reports."""

    world: MemoryWorld

    async def encode(self, tensors: Tensors, version: int) -> Encoded:
        """Answer after the report."""
        report = Report(MODEL, "another", NOW, 1, 2, Comparison())
        self.world.model.apply_models([Record(1, NOW, report.key, encode_record(report))])
        return await super().encode(tensors, version)


async def test_no_comparison_is_lost_to_another_worker_s_report() -> None:
    """A report of another worker during a comparison does not discard the comparison."""
    world = await with_candidate("same")
    world.canary._encoder = overheard = Overheard(*world.encoder.bundles.values())
    overheard.world = world
    overheard.broken = {2}
    await world.run(event(0, "user-0"))
    await world.canary.compare(states(world, 1))
    assert world.canary.comparison.failed == 1


class Bounded(FakeEncoder):
    """Version 2 answers in time for few users at once, and not for more."""

    async def encode(self, tensors: Tensors, version: int) -> Encoded:
        """Answer, or miss the deadline."""
        if version == 2 and len(tensors["item_index"]) > canary.SAMPLE_USERS:
            raise Unavailable("deadline exceeded")
        return await super().encode(tensors, version)


@pytest.mark.usefixtures("at_once")
async def test_a_canary_that_misses_its_deadline_for_full_batches_is_rolled_back() -> None:
    """A canary that misses its deadline for full batches is rolled back."""
    world = await with_candidate("same", canary_lists=48)
    world.canary._encoder = world.pipeline._encoder = Bounded(*world.encoder.bundles.values())
    [why] = await streamed(world)
    assert "100.0% of its inferences failed" in why


@pytest.mark.usefixtures("at_once")
async def test_a_canary_that_is_slow_on_the_stream_is_rolled_back() -> None:
    """A canary that meets its deadline but exceeds its latency band is rolled back."""
    world = await with_candidate("same", share=0.5, canary_lists=48)
    world.encoder.takes[2] = 0.05
    [why] = await streamed(world)
    assert "times as long as the live version, more than 2" in why


@pytest.mark.usefixtures("at_once")
async def test_a_server_that_is_away_ends_no_canary() -> None:
    """An unavailable server never rolls a canary back."""
    world = await with_candidate("same", share=0.5, canary_lists=16, canary_latency_ratio=1e6)
    for away in (False, True, False):
        world.encoder.away = away
        assert await streamed(world, batches=10) == []
        assert any(made.degraded for made in lists(world.publisher.messages[-40:])) is away
    assert world.canary.comparison.failed == 0
    assert world.canary.comparison.lists >= 16


class Interrupted(FakeEncoder):
    """Away for some calls, told by their number."""

    async def encode(self, tensors: Tensors, version: int) -> Encoded:
        """Answer, or be away."""
        self.away = next(self.number) in self.missed
        return await super().encode(tensors, version)


@pytest.mark.parametrize("live_first", [False, True])
async def test_no_interruption_is_held_against_the_candidate(live_first: bool) -> None:
    """An interruption of the server at any calls of a comparison does not count against the candidate."""
    world = await with_candidate("same")
    await world.run(event(0, "user-0"))
    world.canary._encoder = interrupted = Interrupted(*world.encoder.bundles.values())
    for start, end in combinations(range(6), 2):
        interrupted.number, interrupted.missed = count(), range(start, end)
        world.canary._live_first = live_first
        await world.canary.compare(states(world, 1))
        assert world.canary.comparison.failed == 0, (start, end)
    assert world.canary.comparison.lists > 0


async def test_a_new_stage_is_measured_anew() -> None:
    """A canary's comparison starts without the figures of its shadow stage."""
    world = await with_candidate("turned", "shadow")
    await world.run(*(event(number, f"user-{number}") for number in range(8)))
    await world.canary.compare(states(world))
    step = Rollout(MODEL, 2, "canary", NOW, 1.0)
    world.model.apply_models([Record(1, NOW, step.key, encode_record(step))])
    await world.canary.judge()
    await world.canary.report()
    assert world.canary.comparison == Comparison()


async def test_a_change_of_versions_is_reported_at_once() -> None:
    """A worker reports each change of versions once, and withdraws the report when it leaves."""
    world = await MemoryWorld().start()
    await world.canary.report()
    await world.canary.report()
    [report] = said(world.messages("models"))
    assert (report.live, report.candidate) == (1, 0)
    await world.canary.leave()
    assert world.messages("models")[-1] == Message("models", report.key, None)
