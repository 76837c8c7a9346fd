"""Settings that the log chooses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from freshet.core.events import Event
from freshet_training.config import ConfigError, TrainingConfig, load_config, names_training
from freshet_training.defaults import LogFacts, choose, counted_repeats, proposed_repeats
from freshet_training.model_shape import check_model_settings

FILMS = LogFacts(80_000, 750, 1_600, 60, 30.0, tied=0.5, repeats=0.0, texts=1.0)
SHOP = LogFacts(180_000, 22_000, 12_000, 6, 86_400.0, tied=0.3, repeats=0.0, texts=0.99)


def event(user: str, item: str, minute: int, kind: str = "view") -> Event:
    return Event(f"{user}-{item}-{minute}", user, kind, 1_700_000_000_000 + minute * 60_000, item)


def test_a_log_is_looked_at() -> None:
    """Lengths, gaps, ties, repeats and texts are those of the learned runs."""
    runs = [
        [event("ann", "a", 0), event("ann", "b", 0), event("ann", "a", 5), event("ann", "c", 9)],
        [event("bob", "b", 3)],
    ]
    facts = LogFacts.of(SimpleNamespace(runs=runs, item_ids=["a", "b", "c", "d"], without_text=1))  # type: ignore[arg-type]
    assert (facts.events, facts.users, facts.items, facts.median_length) == (5, 2, 4, 4)
    assert facts.median_gap_s == 240
    assert (facts.tied, facts.repeats, facts.texts) == (0.2, 0.2, 0.75)


def test_domains_get_what_was_found_by_hand() -> None:
    """Films have two narrow blocks and small steps, a shop's long tail a wide block, later targets and words."""
    films, shop = choose(FILMS, 30, 1).settings, choose(SHOP, 30, 1).settings
    assert films == {
        "positions": 800,
        "learning_rate": 0.002,
        "model": {"dim": 64, "blocks": 2, "feed_forward": 128, "dropout": 0.2},
    }
    assert shop["model"] == {"dim": 128, "blocks": 1, "feed_forward": 256, "dropout": 0.4}
    assert (shop["look_ahead"], shop["words"], shop["average"]) == (0.2, True, 0.997)


@pytest.mark.parametrize("facts", [FILMS, SHOP, LogFacts(20, 10, 3, 2, 0.0, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize("minutes", [0.1, 1, 30, 600])
def test_every_choice_can_be_trained(facts: LogFacts, minutes: float) -> None:
    """The settings are valid, and each choice has its reason."""
    chosen = choose(facts, minutes, 2)
    config = chosen.applied(TrainingConfig(), frozenset())
    check_model_settings(config)
    assert config.epochs >= 1
    assert all(chosen.reasons)


def test_little_time_makes_a_smaller_network_and_fewer_epochs() -> None:
    """A large log in few minutes: the choice says so."""
    large = LogFacts(20_000_000, 200_000, 50_000, 60, 30.0, 0.0, 0.0, 1.0)
    chosen = choose(large, 10, 1)
    assert (chosen.settings["model"]["dim"], chosen.settings["model"]["blocks"]) == (64, 1)
    assert chosen.settings["epochs"] < 10
    assert any("10 minutes" in reason for reason in chosen.reasons)


def test_what_is_given_wins(tmp_path: Path) -> None:
    """An option beats the choice, and a `[training]` table leaves nothing to choose."""
    config = load_config(None, positions=77)
    assert choose(FILMS, 30, 1).applied(config, frozenset({"positions"})).positions == 77
    plain, own = tmp_path / "plain.toml", tmp_path / "own.toml"
    plain.write_text("[behaviours]\nview = 1.0\n")
    own.write_text("[behaviours]\nview = 1.0\n[training]\nepochs = 3\n")
    assert [names_training(file) for file in (None, plain, own)] == [False, False, True]


def test_repeats_are_counted_by_behaviour() -> None:
    """A purchase of an item that was viewed before is one on a known item."""
    run = [event("ann", "a", 0), event("ann", "a", 1, "buy"), event("ann", "b", 2, "buy"), event("ann", "a", 3)]
    assert counted_repeats([run]) == {"view": 0.5, "buy": 0.5}
    assert "50% of view, 50% of buy): --repeats view,buy lets" in proposed_repeats([run], ())
    assert proposed_repeats([run], ("view", "buy")) == ""
    assert proposed_repeats([[event("ann", "a", 0)]], ()) == ""


def test_repeats_name_behaviours() -> None:
    """A type that the settings do not name is an error in one line."""
    with pytest.raises(ConfigError, match="repeats: 'take' is not among the behaviours"):
        load_config(None, repeats=("take",))
