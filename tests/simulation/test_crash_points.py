"""A kill at every point of every micro-batch, and a second kill after it, loses nothing and counts nothing twice."""

import asyncio
import dataclasses
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from freshet.core import fold_run
from freshet.core.events import Event
from freshet.core.state import Outcome, UserState, empty_state, fold
from freshet.ports import Message, Record
from freshet.serving.pipeline import PartitionBatch, Pipeline
from freshet.serving.touched_user import Touched

from tests.simulation.mortal_worker import (
    IN_FLIGHT,
    SLOW_ENCODER,
    SLOW_STATE,
    Durable,
    Life,
    commit_first,
    commit_last,
    judge_finished,
    simulate,
    small_log,
)

LOG = small_log()


@pytest.fixture(scope="module", autouse=True)
def _killed_lives_are_buried() -> Iterator[None]:
    """A killed life's tasks are told of when they are collected: here, and not while a module is being compiled.

    Python 3.11 ends with "AST constructor recursion depth mismatch" there.
    """
    yield
    gc.collect()


@pytest.fixture
async def clean() -> Durable:
    """What a life without kills leaves."""
    return await simulate(LOG, [])


async def outcomes(
    clean: Durable,
    kills: Sequence[Sequence[int]],
    interleaving: int = 0,
    life: Life = commit_last,
    pipeline: type[Pipeline] = Pipeline,
    log: Sequence[Record] = LOG,
    in_flight: int = IN_FLIGHT,
) -> dict[tuple[int, ...], set[str]]:
    """What is wrong after each of the given series of kills, where anything is."""
    found = {}
    for series in kills:
        durable = await simulate(log, series, interleaving, life, pipeline, in_flight)
        assert durable.crashes == len(series), f"a kill of {series} never happened"
        if wrong := await judge_finished(log, durable, clean):
            found[tuple(series)] = wrong
    return found


def every_point(clean: Durable) -> list[list[int]]:
    """One kill at each point of a life over the whole log."""
    return [[at] for at in range(1, clean.points + 1)]


async def test_without_kills_all_is_well(clean: Durable) -> None:
    """A log without kills satisfies the judge and has points enough to be killed at."""
    assert await judge_finished(LOG, clean, clean) == set()
    assert clean.crashes == 0
    assert clean.points > 4 * 15


@pytest.mark.parametrize(
    ("interleaving", "in_flight"),
    [(0, 1), *((interleaving, IN_FLIGHT) for interleaving in (0, 1, 2, SLOW_STATE, SLOW_ENCODER))],
)
async def test_one_kill_at_every_point(clean: Durable, interleaving: int, in_flight: int) -> None:
    """A kill at any point, with effects in any order, leads to the same end."""
    points = (await simulate(LOG, [], interleaving, in_flight=in_flight)).points
    kills = [[at] for at in range(1, points + 1)]
    assert await outcomes(clean, kills, interleaving, in_flight=in_flight) == {}


@pytest.mark.parametrize("log", [LOG[:6], LOG[7:13]], ids=["behaviour", "consent"])
async def test_two_kills_at_every_pair_of_points(log: list[Record]) -> None:
    """A second kill at any point of the second life leads to the same end."""
    clean = await simulate(log, [])
    assert await judge_finished(log, clean, clean) == set()
    for first in range(1, clean.points + 1):
        second = await simulate(log, [first])
        pairs = [[first, at] for at in range(1, second.points + 1)]
        assert await outcomes(clean, pairs, log=log) == {}


async def test_a_commit_that_does_not_wait_is_found_out(clean: Durable) -> None:
    """Failing control: a commit before the effects loses state, lists and dead letters."""
    found = await outcomes(clean, every_point(clean)[:-8], life=commit_first)
    lost = set().union(*found.values())
    for loss in ("the state is behind", "the list is behind", "is nowhere"):
        assert any(loss in wrong for wrong in lost), loss
    assert any("items is" in wrong for wrong in lost)


async def test_folding_without_deduplication_is_found_out(clean: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing control: a fold without deduplication counts redelivered events twice."""

    def forgetful(state: UserState, event: Event, partition: int, offset: int, history: int) -> Outcome:
        state.offset, state.event_id_log = -1, empty_state(partition).event_id_log
        return fold(state, event, partition, offset, history)

    monkeypatch.setattr(fold_run, "fold", forgetful)
    found = await outcomes(clean, every_point(clean))
    assert any("folded is" in wrong for wrong in set().union(*found.values()))


async def test_folding_without_offsets_alone_is_found_out(clean: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing control: without the offset, event ids do not save a profile opted out and in again."""

    def without_offsets(state: UserState, event: Event, partition: int, offset: int, history: int) -> Outcome:
        state.offset = -1
        return fold(state, event, partition, offset, history)

    monkeypatch.setattr(fold_run, "fold", without_offsets)
    assert await outcomes(clean, every_point(clean))


class Hasty(Pipeline):
    """A pipeline that publishes lists without waiting for the state."""

    async def _publish_lists(self, batch: Any, *arguments: Any, **options: Any) -> None:
        """Publish as if the state were written."""
        loop = asyncio.get_running_loop()
        written = loop.create_future()
        written.set_result(None)
        await super()._publish_lists(dataclasses.replace(batch, written=written), *arguments, **options)


class Overtaking(Pipeline):
    """A pipeline whose batches have their effects without waiting for the batch before."""

    async def _take_effect(self, folded: Any, _before: Any) -> None:
        """Have the effects at once."""
        await super()._take_effect(folded, None)


class Forgetting(Pipeline):
    """A pipeline that folds a batch before the states of the one before can be read."""

    async def _fold_next(self, runs: Any, _before: Any) -> Any:
        """Fold at once."""
        return await super()._fold_next(runs, None)


@pytest.mark.parametrize(
    ("pipeline", "slow", "symptom"),
    [
        pytest.param(Hasty, SLOW_STATE, "lists go back", id="publishing before the state"),
        pytest.param(Overtaking, SLOW_ENCODER, "lists go back", id="effects before those of the batch before"),
        pytest.param(Forgetting, SLOW_STATE, "items is", id="folding before the states of the batch before"),
    ],
)
async def test_a_pipeline_out_of_order_is_found_out(
    clean: Durable, pipeline: type[Pipeline], slow: int, symptom: str
) -> None:
    """Failing control: lists and states go back without any of the orders within and between batches."""
    points = (await simulate(LOG, [], slow, pipeline=pipeline)).points
    found = await outcomes(clean, [[at] for at in range(1, points + 1)], slow, pipeline=pipeline)
    assert any(symptom in complaint for complaint in set().union(*found.values()))


class Skipping(Pipeline):
    """A pipeline to which redelivered events are no reason for effects."""

    def fold(self, run: PartitionBatch) -> tuple[list[Touched], list[Message]]:
        """Leave out whoever has not changed."""
        touched, dead = super().fold(run)
        return [user for user in touched if user.changed], dead


async def test_skipping_the_effects_of_duplicates_is_found_out(clean: Durable) -> None:
    """Failing control: a kill between state and list loses the list where duplicates have no effects."""
    found = await outcomes(clean, every_point(clean), pipeline=Skipping)
    wrong = set().union(*found.values())
    assert any("the list is behind" in complaint for complaint in wrong)
    assert any("features are" in complaint for complaint in wrong)
