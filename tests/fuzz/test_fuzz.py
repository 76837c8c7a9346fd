"""Whatever is on the topics: nothing ends, hangs or traces back, and every good event in between is folded.

`FUZZ_SECONDS` says how long (`make fuzz` for an hour), `FUZZ_SEED` with what. A failure prints the seed and the
smallest record that fails by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import count, islice
from pathlib import Path

import pytest

from deploy.local import Stack
from tests.fuzz.arena import Arena
from tests.fuzz.batches import TOPICS, Batch, batches

pytestmark = pytest.mark.integration

SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
ROUND = 80
"""Batches of a round; the reading of all that is there is the greater part of its time."""


@pytest.mark.timeout(SECONDS + 900)
def test_nothing_stops_the_stream(stack: Stack, tmp_path: Path, unique: Callable[[str], str]) -> None:
    """Round after round of batches over one worker, an archiver and the verbs; with the files wiped in between."""
    began = time.monotonic()
    for seed in count(SEED):
        made = list(islice(batches(seed), ROUND))
        if why := failure(stack, tmp_path / str(seed), unique, made):
            smallest = smaller(made, lambda part, seed=seed: failure(stack, tmp_path / f"{seed}s", unique, part))  # type: ignore[misc]
            shown = "\n".join(
                f"{each.topic}: {each.summary[:300]}\n  {each.data.hex()[:1000]}" for each in smallest[:3]
            )
            pytest.fail(f"FUZZ_SEED={seed}: {why}\nthe smallest input, {len(smallest)} batches:\n{shown}")
        if time.monotonic() - began > SECONDS:
            break


def failure(stack: Stack, folder: Path, unique: Callable[[str], str], made: Sequence[Batch]) -> str:
    """What goes wrong with these batches; nothing where all is well."""
    folder = folder / unique("f")
    folder.mkdir(parents=True)
    arena = Arena(stack, folder, unique("fuzz"))
    try:
        arena.begin()
        half = len(made) // 2
        arena.produce(made[:half])
        arena.settle_round()
        arena.recover()
        arena.produce(made[half:])
        arena.settle_round()
        arena.run_verbs()
    except AssertionError as error:
        return str(error)
    finally:
        arena.close()
    return ""


def smaller(made: list[Batch], failing: Callable[[list[Batch]], str]) -> list[Batch]:
    """Those of one topic where they fail by themselves, halved for as long as a half does."""
    by_topic = [[each for each in made if each.topic == topic] for topic in TOPICS]
    made = next((part for part in by_topic if failing(part)), made)
    while len(made) > 1:
        halves = made[: len(made) // 2], made[len(made) // 2 :]
        found = next((half for half in halves if failing(half)), None)
        if found is None:
            return made
        made = found
    return made


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_makes_the_same_batches(seed: int) -> None:
    """But for the record times."""
    first, second = ([(each.topic, each.summary) for each in islice(batches(seed), 200)] for _ in range(2))
    assert first == second
