"""What a network must beat: rankers that count, and the mix of them."""

from __future__ import annotations

import numpy as np
import pytest
from freshet.core.events import Event
from freshet_training.baselines import CoOccurrence, fit_baselines
from freshet_training.evaluate import EvaluationReplay, RankingResult, evaluate, rank_of_target, with_prior
from freshet_training.prior_weights import by_prior_weight

DAY = 86_400
ITEMS = [f"i{number}" for number in range(40)]


def event(user: str, item: str, seconds: int) -> Event:
    return Event(f"{user}-{item}-{seconds}", user, "click", 1_700_000_000_000 + seconds * 1000, item)


def replay(events: list[Event], items: list[str] = ITEMS) -> EvaluationReplay:
    return EvaluationReplay(events, items, {item: row + 2 for row, item in enumerate(items)}, {"click": 1}, DAY, 5)


def random_log(events: int, users: int, seed: int = 0) -> list[Event]:
    random = np.random.default_rng(seed)
    pairs = zip(random.integers(users, size=events), random.integers(len(ITEMS), size=events), strict=True)
    return [event(f"u{user}", ITEMS[item], second) for second, (user, item) in enumerate(pairs)]


def test_co_occurrence_knows_what_is_taken_together() -> None:
    """After `a`, the item that the same users took comes first."""
    fitted = [event(user, item, 0) for user in "xyz" for item in ("a", "c")] + [event("w", "b", 0)]
    items = ["a", "b", "c", "d"]
    rank = CoOccurrence(fitted, {item: row for row, item in enumerate(items)}).over(5)
    (batch,) = replay([event("u", "a", 10), event("u", "c", 11)], items).batches(1, 2)
    assert rank_of_target(rank(batch), batch.target, batch.seen).tolist() == [0]


def test_co_occurrence_is_the_cosine_of_items_users() -> None:
    """The sparse table has the values of the dense formula."""
    log = random_log(300, 20)
    world = replay(log)
    (batch,) = world.batches(250, 300)
    touched = np.zeros((20, len(ITEMS)))
    for touch in log[:250]:
        touched[int(touch.user_id[1:]), world.row[touch.item_id or ""]] = 1
    both = touched.T @ touched
    norm = np.sqrt(np.maximum(np.diag(both), 1))
    dense = np.stack([(both / np.outer(norm, norm))[history[-3:]].sum(axis=0) for history in batch.history])
    np.testing.assert_allclose(CoOccurrence(log[:250], world.row).over(3)(batch), dense, rtol=1e-5)


def test_a_wide_catalogue_has_a_sparse_table() -> None:
    """200,000 items, of which each has few neighbours, need no table of 160 GB."""
    items = [f"i{number}" for number in range(200_000)]
    log = [event(f"u{number % 50}", f"i{number}", number) for number in range(400)]
    rank = CoOccurrence(log, {item: row for row, item in enumerate(items)}).over(5)
    (batch,) = replay([*log, event("u0", "i399", 500)], items).batches(400, 401)
    assert rank(batch).shape == (1, 200_000)


def test_all_weights_at_once_rank_as_one_by_one() -> None:
    """The items that are left out can be in no list, ties and what cannot be ranked included."""
    world = replay(random_log(300, 20, seed=1))

    def coarse(batch: object) -> np.ndarray:
        users = len(batch.users)  # type: ignore[attr-defined]
        scores = np.random.default_rng(3).integers(0, 4, (users, len(ITEMS))).astype(np.float32)
        scores[:, 5] = -np.inf
        scores[:, 6] = np.nan
        return scores

    weights = (0.0, 0.5, 1.0, 30.0)
    together = by_prior_weight(world.batches(20, 300), coarse, weights)
    alone = evaluate(world.batches(20, 300), {str(weight): with_prior(coarse, weight) for weight in weights})
    for weight in weights:
        np.testing.assert_array_equal(together[weight].gain, alone[str(weight)].gain)


def test_the_mix_is_no_worse_than_its_sources() -> None:
    """On the part that it is fitted on; where users repeat what others did, it knows it without a network."""
    random = np.random.default_rng(0)
    groups = [event(f"u{n % 30}", ITEMS[(n % 3) * 10 + int(random.integers(10))], n) for n in range(400)]
    world = replay(groups)

    def ndcg(result: RankingResult) -> float:
        return result.ndcg

    baselines = fit_baselines(
        lambda: world.batches(300, 400), CoOccurrence(groups[:300], world.row), np.zeros((40, 384), np.float32), ndcg
    )
    scores = {name: result.ndcg for name, result in evaluate(world.batches(300, 400), baselines.alone).items()}
    [mixed] = evaluate(world.batches(300, 400), {"mix": baselines.mix}).values()
    assert scores.keys() == {"popularity", "recent popularity", "co-occurrence"}
    assert mixed.ndcg >= max(scores["popularity"], scores["recent popularity"])
    assert "co-occurrence" in str(baselines.mix)


@pytest.mark.parametrize("most", [5, 20, 1000])
def test_a_sample_is_ruled_by_no_account(most: int) -> None:
    """A user with nine tenths of the events has a twentieth of what is judged; the same sample is drawn again."""
    log = [event(f"u{n}" if n % 10 == 0 else "bot", f"i{n % 397}", n) for n in range(2000)]
    items = [f"i{number}" for number in range(397)]
    world = replay(log, items)
    [first] = world.batches(0, 2000, most)
    [again] = world.batches(0, 2000, most)
    assert first.users == again.users
    assert len(first.users) <= most
    assert first.users.count("bot") <= max(1, 0.05 * most)
