"""Logs in which nothing can be learned, or too little is seen: no network of them is accepted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from freshet.bundle.bundle import Check, Decision, load_bundle
from freshet.bundle.verify import load_sound
from freshet.core.events import Event
from freshet_training import candidate
from freshet_training.train import REFUSED, main

from tests.training.conftest import arguments
from tests.training.ring_log import ITEMS, NOW, walk, write_config, write_items, write_log


def log(users: list[int], items: list[int]) -> list[Event]:
    """An event a minute."""
    pairs = enumerate(zip(users, items, strict=True))
    return [Event(f"e{n}", f"u{user}", "view", NOW + n * 60_000, f"i{item}") for n, (user, item) in pairs]


def uniform(seed: int) -> list[Event]:
    random = np.random.default_rng(seed)
    return log(random.integers(40, size=900).tolist(), random.integers(60, size=900).tolist())


def skewed() -> list[Event]:
    random = np.random.default_rng(2)
    chance = 1 / np.arange(1, 61)
    return log(random.integers(40, size=900).tolist(), random.choice(60, 900, p=chance / chance.sum()).tolist())


def shuffled() -> list[Event]:
    """The ring, each user's items in random order."""
    random, events = np.random.default_rng(3), walk(steps=20)
    own = {user: [event.item_id for event in events if event.user_id == user] for user in {e.user_id for e in events}}
    for items in map(own.__getitem__, sorted(own)):
        random.shuffle(items)
    return [msgspec.structs.replace(event, item_id=own[event.user_id].pop()) for event in events]


def one_item() -> list[Event]:
    users = [number // 2 for number in range(300)]
    return log(users, [0] * 300)


def six_judged() -> list[Event]:
    return walk(users=10, steps=6)


def one_account() -> list[Event]:
    """An account walks a ring for nineteen events of twenty; the others do anything."""
    random = np.random.default_rng(4)
    busy = np.arange(900) % 20 != 0
    users = np.where(busy, 0, random.integers(1, 30, 900))
    items = np.where(busy, np.arange(900), random.integers(900, size=900))
    return log(users.tolist(), items.tolist())


LOGS = {
    "uniform": uniform(0),
    "uniform, another draw": uniform(1),
    "shuffled": shuffled(),
    "skewed": skewed(),
    "one item": one_item(),
    "six judged events": six_judged(),
    "one account": one_account(),
}


@pytest.mark.parametrize("name", LOGS)
def test_a_network_of_noise_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not better than the best mix without a network, by enough events of enough users."""
    found: list[list[Check]] = []

    def kept(_run: object, _measured: object, _learned: object, checks: list[Check], _privacy: object) -> Decision:
        found.append(checks)
        return Decision(all(check.passed for check in checks), checks)

    monkeypatch.setattr(candidate, "_write", kept)
    write_log(tmp_path / "events.jsonl", LOGS[name])
    write_items(tmp_path / "items.jsonl")
    write_config(tmp_path / "ring.toml", epochs=4, positions=64)
    assert main([*arguments(tmp_path), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == REFUSED
    [network], without = found
    assert not network.passed
    assert "not better than the best mix without a network" in network.detail or "too few to tell" in network.detail
    assert without == []


def test_the_mix_serves_where_the_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the refused candidate stands a sound version without a network, which has learned the whole log."""
    write_log(tmp_path / "events.jsonl", LOGS["skewed"])
    write_items(tmp_path / "items.jsonl")
    write_config(tmp_path / "ring.toml", epochs=2, positions=64)
    assert main([*arguments(tmp_path), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == REFUSED
    assert "FAIL network" in capsys.readouterr().out
    assert load_bundle(tmp_path / "out").manifest.network
    version = load_sound(tmp_path / "out-without-network")
    gate = version.manifest.gate
    assert gate is not None
    assert gate.accepted
    assert not version.manifest.network
    assert version.manifest.data.trained_to == LOGS["skewed"][-1].ts + 1
    assert len(version.item_ids) == len({event.item_id for event in LOGS["skewed"]}) > ITEMS
    assert (version.path / "MODEL_CARD.md").read_text().count("No network") == 1
