"""The prequential judge, against numbers worked by hand."""

import math
import random

import msgspec
import numpy as np
import pytest
from freshet.core.evaluation.buckets import paired
from freshet.core.evaluation.compare import difference
from freshet.core.evaluation.prequential import DAY_MS, Judgement, Prequential, SavedJudge
from freshet.core.evaluation.results import Slice
from numpy.typing import NDArray


def axes(items: list[str]) -> NDArray[np.float32]:
    """A vector for each item: items of one first letter stand at one place, others at right angles."""
    vectors = np.zeros((len(items), 26), np.float32)
    vectors[np.arange(len(items)), [ord(item[0]) - ord("a") for item in items]] = 1.0
    return vectors


def judge(name: str = "ours", cutoff: int = 4, catalogue: int = 10) -> Prequential:
    return Prequential(name, cutoff=cutoff, catalogue=catalogue, vectors=axes)


def act(user: str, item: str, items: str, ts: int = 0, kind: str = "view", segment: str = "known user") -> Judgement:
    listed = items.split()
    return Judgement(user, ts, kind, item, listed, [1.0] * len(listed), (segment,))


def whole(judged: Prequential) -> Slice:
    return judged.evaluation().slices["all"]["all"]


def test_hits_gains_and_reciprocal_ranks() -> None:
    """Rank 1 scores 1, 1, 1, rank 3 scores 1, 1/log2(4), 1/3, and a miss scores 0."""
    judged = judge()
    judged.judge(act("ada", "a", "a b c d"))
    judged.judge(act("ada", "c", "a b c d"))
    judged.judge(act("ben", "z", "a b c d"))
    judged.judge(act("ben", "e", "a b c d e"))
    found = whole(judged)
    assert (found.events, found.users) == (4, 2)
    assert found.metrics["hr"].mean == 2 / 4
    assert found.metrics["ndcg"].mean == (1 + 1 / 2) / 4
    assert found.metrics["mrr"].mean == pytest.approx((1 + 1 / 3) / 4)


def test_slices_by_day_type_and_segment() -> None:
    """Each act counts in the slices of its type, day and segment, and a late act counts in the newest day."""
    judged = judge()
    judged.judge(act("ada", "a", "a b"))
    judged.judge(act("ada", "b", "a b", DAY_MS, "purchase"))
    judged.judge(act("ben", "z", "a b", DAY_MS + 1, "purchase", "new user"))
    judged.judge(act("ben", "z", "a b", DAY_MS - 1, segment="cold item"))
    found = judged.evaluation().slices
    events = {(name, value): part.events for name, parts in found.items() for value, part in parts.items()}
    assert events == {
        ("all", "all"): 4,
        ("day", "1970-01-01"): 1,
        ("day", "1970-01-02"): 3,
        ("type", "view"): 2,
        ("type", "purchase"): 2,
        ("segment", "known user"): 2,
        ("segment", "new user"): 1,
        ("segment", "cold item"): 1,
    }
    assert found["type"]["purchase"].metrics["hr"].mean == 1 / 2
    assert found["day"]["1970-01-01"].metrics["hr"].mean == 1.0
    assert found["day"]["1970-01-02"].metrics["hr"].mean == pytest.approx(1 / 3)


def test_list_metrics_worked_by_hand() -> None:
    """List metrics equal the values worked by hand, in all, by day and by segment."""
    judged = judge(catalogue=10)
    for item in ("a1", "a1", "b1"):
        judged.interacted(item)
    judged.shown("ada", 0, ["a1", "a2", "b1", "c1"], "new user")
    judged.shown("ben", DAY_MS, ["a1", "a2", "a3", "a4"], "known user")
    found = whole(judged).metrics
    assert found["coverage"].mean == 6 / 10
    # exposures 0 0 0 0 1 1 1 1 2 2: sum of rank times value is 5 + 6 + 7 + 8 + 18 + 20 = 64
    assert found["gini"].mean == pytest.approx(2 * 64 / (10 * 8) - 11 / 10)
    surprisal = [-math.log2(count / 13) for count in (3, 1, 2, 1)], [-math.log2(count / 13) for count in (3, 1, 1, 1)]
    assert found["novelty"].mean == pytest.approx(sum(map(sum, surprisal)) / 8)
    # of the first list's six pairs one is at one place: the only list of the two that is measured
    assert found["intra_list_diversity"].mean == pytest.approx(5 / 6)
    assert found["personalisation"].mean == 1 - 2 / 4
    slices = judged.evaluation().slices
    assert slices["day"]["1970-01-01"].metrics["coverage"].mean == 4 / 10
    assert slices["day"]["1970-01-02"].metrics["coverage"].mean == 4 / 10
    assert slices["segment"]["new user"].metrics["novelty"].mean == pytest.approx(sum(surprisal[0]) / 4)


def test_a_paired_difference_sees_what_two_intervals_hide() -> None:
    """A small gain of every user has a paired verdict though the two intervals overlap."""
    rng = random.Random(1)
    old, new, other = judge("old"), judge("new"), judge("other")
    for number in range(2000):
        user, liked = f"user-{number % 200}", (number % 200) / 200
        hit = rng.random() < liked
        better = hit or rng.random() < 0.03
        old.judge(act(user, "a", "a" if hit else "b"))
        new.judge(act(user, "a", "a" if better else "b"))
        other.judge(act(user, "a", "a" if rng.random() < liked else "b"))
    found = difference(old, new, "hr")
    assert found.verdict == "better"
    assert 0.005 < found.estimate.low < found.estimate.mean < found.estimate.high < 0.03
    assert whole(old).metrics["hr"].high > whole(new).metrics["hr"].low
    assert difference(new, old, "hr").verdict == "worse"
    assert difference(old, other, "hr").verdict == "no difference shown"
    other.judge(act("ada", "a", "a"))
    with pytest.raises(ValueError, match="same events"):
        paired(old.sums(), other.sums(), 0)


def fed(judged: Prequential, days: int, per_day: int) -> Prequential:
    rng = random.Random(7)
    for number in range(days * per_day):
        ts, user = number * DAY_MS // per_day, f"user-{rng.randrange(300)}"
        items = rng.sample("abcdefgh", 4)
        judged.shown(user, ts, items, "known user")
        judged.judge(act(user, rng.choice("abcdefgh"), " ".join(items), ts))
        judged.interacted(rng.choice("abcdefgh"))
    return judged


def test_memory_does_not_grow_with_the_log() -> None:
    """Ten times the events take no more memory, and another day takes only its estimates."""
    short, long = fed(judge(), 4, 200), fed(judge(), 4, 2000)
    assert len(msgspec.msgpack.encode(long.saved())) < 1.02 * len(msgspec.msgpack.encode(short.saved()))
    more_days = fed(judge(), 40, 200)
    assert len(msgspec.msgpack.encode(more_days.saved())) - len(msgspec.msgpack.encode(long.saved())) < 36 * 2000


def test_an_evaluation_goes_on_where_it_was_cut_off() -> None:
    """An evaluation that was saved and restored equals an evaluation without a break."""
    halves, once = fed(judge(), 3, 100), fed(judge(), 3, 100)
    again = judge()
    again.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(halves.saved()), type=SavedJudge))
    assert again.evaluation() == once.evaluation()
    for judged in (again, once):
        judged.shown("ada", 3 * DAY_MS, ["a", "b", "c"], "new user")
        judged.judge(act("ada", "b", "a b c", 3 * DAY_MS))
    assert again.evaluation() == once.evaluation()
