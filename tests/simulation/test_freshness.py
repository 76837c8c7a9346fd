"""A list refreshed at intervals is made of what was known at its boundary, and of nothing later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from freshet.adapters.onnx import OnnxEncoder
from freshet.cli import app
from freshet.core.evaluation.prequential import Judgement
from freshet.core.events import Event, encode_event
from freshet.core.features import featurise
from freshet.core.popularity import Popularity
from freshet.core.snapshots import TICK_MS
from freshet.core.state import Outcome, UserState, empty_state, fold
from freshet.replay.clock import AtBoundary, Clock
from freshet.replay.engine import Replay
from freshet.replay.models import BASELINES, PUBLISHED, ListSchedule, ReplayedModel, encodable
from freshet.replay.pace import run
from freshet.replay.states import MemoryStates
from freshet.report.results_file import read_results
from freshet.serving.list_maker import ListMaker
from freshet.serving.live_versions import LiveVersions
from freshet.settings import Settings
from msgspec.structs import replace
from typer.testing import CliRunner

from deploy import local
from deploy.local.parts import ROOT, TEXT_ENCODER
from tests.simulation.memory_replays import NEW_ITEM, START, Kept, catalogue, records, stream

pytestmark = pytest.mark.skipif(bool(local.missing_parts()), reason="needs the text encoder: run `make setup`")

PERIODS = (60, 600, 3600)
FRESHEST = ListSchedule("at every event", 0)
VIEWS = (FRESHEST, *(ListSchedule(f"every {period} s", period) for period in PERIODS), *BASELINES)
HALF_LIFE = 3600.0
SETTINGS = Settings(exploration=0.3, prior_weight=2.0)
ARRIVAL = START + 3_000_000
"""When the new item comes into the catalogue."""


class Looked:
    """A judge that keeps what each act's user was looking at."""

    def __init__(self) -> None:
        self.acts: list[tuple[str, int, str, list[str]]] = []
        self.interactions: list[str] = []

    def judge(self, judgement: Judgement) -> None:
        """Keep it."""
        self.acts.append((judgement.user_id, judgement.ts, judgement.item_id, list(judgement.items)))

    def shown(self, *_: object) -> None:
        """A list alone is not looked at."""

    def interacted(self, item_id: str) -> None:
        """Keep it."""
        self.interactions.append(item_id)


async def opened(encoder: OnnxEncoder) -> LiveVersions:
    side_inputs = LiveVersions(encoder, Path(ROOT / "triton_models"))
    await side_inputs.start(1)
    return side_inputs


async def looked_at(
    events: Sequence[Event], arrival: int, views: Sequence[ListSchedule] = VIEWS, burn_in: int = 0, batch: int = 64
) -> dict[ListSchedule, Looked]:
    """A replay in which the new item arrives at a time, and what its judges saw."""
    encoder = OnnxEncoder(ROOT / "triton_models", TEXT_ENCODER)
    judges = {view: Looked() for view in views}
    model = ReplayedModel("version 1", await opened(encoder), ListMaker(SETTINGS), judges, PERIODS)  # type: ignore[arg-type]
    clock = Clock(HALF_LIFE, PERIODS, all_time=True)
    replay = Replay(SETTINGS, [model], encoder, MemoryStates(), clock, Kept(), catalogue(arrival))
    replay.judge_after = burn_in
    await replay.start()
    await run(replay, records(events), SETTINGS, batch=batch)
    return judges


class Oracle:
    """What was known at a time, by reading the log again from its start."""

    def __init__(
        self, events: Sequence[Event], encoder: OnnxEncoder, before: LiveVersions, after: LiveVersions
    ) -> None:
        self._events = events
        self._encoder = encoder
        self._before, self._after = before, after

    def state(self, user: str, ts: int) -> UserState:
        """The user's state of everything before `ts`."""
        state = empty_state(0)
        for offset, event in enumerate(self._events):
            if event.user_id == user and event.ts < ts:
                fold(state, event, 0, offset)
        return state

    def counts(self, tick: int, half_life: float) -> dict[str, float]:
        """Distinct users per item in the minutes before `tick`, decayed to it."""
        states: dict[str, UserState] = {}
        counts: dict[str, float] = {}
        for offset, event in enumerate(self._events):
            state = states.setdefault(event.user_id, empty_state(0))
            touch = fold(state, event, 0, offset) is Outcome.FIRST_TOUCH
            if touch and event.ts // TICK_MS < tick:
                weight = 0.5 ** ((tick - event.ts // TICK_MS) * TICK_MS / 1000 / half_life)
                counts[event.item_id or ""] = counts.get(event.item_id or "", 0.0) + weight
        return counts

    def has_left(self, user: str, start: int, end: int) -> bool:
        """Whether the user opted out or was erased in between."""
        return any(
            event.user_id == user and start <= event.ts < end and event.type in {"user.opt_out", "user.erase"}
            for event in self._events
        )

    async def list(self, view: ListSchedule, user: str, ts: int) -> list[str]:
        """The list of a view, made in one go of what was known at its boundary."""
        boundary = ts - ts % (view.period * 1000) if view.period else ts
        model = self._after if boundary > ARRIVAL or (not view.period and ts >= ARRIVAL) else self._before
        live = model.current
        state = self.state(user, boundary)
        half_life = 1e15 if view.name == "all-time popularity" else HALF_LIFE
        counts = self.counts(boundary // TICK_MS, half_life)
        live.space.set_popularity(Popularity.of(counts))
        maker = ListMaker(SETTINGS)
        known = encodable(state) and not self.has_left(user, boundary, ts)
        if view in BASELINES:
            seen = {*state.items, *state.seen} if known else set()
            prior = live.space.prior.values
            ranked = sorted(live.space.index.items(), key=lambda pair: (-prior[pair[1]], pair[1]))
            return [item for item, row in ranked if item not in seen and live.space.available[row]][:10]
        if not known:
            return [item.item_id for item in maker.make_popular(live, user, None).items]
        tensors = featurise([state], live.item_index, live.type_index, live.length)
        encoded = await self._encoder.encode(tensors, 1)
        [made] = maker.make(live, [user], [state], tensors["item_index"], encoded)
        return [item.item_id for item in made.items]


def busy_stream() -> list[Event]:
    """Users come back to what they touched before, and some touch the new item once it is there."""
    last: dict[str, str] = {}
    events = []
    for number, event in enumerate(stream(count=300)):
        item = event.item_id
        if item and number % 3 == 0:
            item = last.get(event.user_id, item)
        if item and event.ts > ARRIVAL and number % 11 == 0:
            item = NEW_ITEM.item_id
        last[event.user_id] = item or last.get(event.user_id, "1")
        events.append(replace(event, item_id=item))
    return events


async def differences(events: Sequence[Event], views: Sequence[ListSchedule]) -> tuple[dict[str, int], dict[str, int]]:
    """Per view, of every second list those that the oracle makes otherwise, and in how many lists the new item is."""
    encoder = OnnxEncoder(ROOT / "triton_models", TEXT_ENCODER)
    before, after = await opened(encoder), await opened(encoder)
    after.apply_items(catalogue())
    await after.settle()
    oracle = Oracle(events, encoder, before, after)
    differ, new = {}, {}
    for view, judge in (await looked_at(events, ARRIVAL, views)).items():
        made = [await oracle.list(view, user, ts) for user, ts, _, _ in judge.acts[::2]]
        differ[view.name] = sum(expected != items for expected, (*_, items) in zip(made, judge.acts[::2], strict=True))
        new[view.name] = sum(NEW_ITEM.item_id in items for *_, items in judge.acts)
        assert len(made) > 80
    return differ, new


async def test_lists_are_made_of_what_was_known_at_their_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each list is made of profile, popularity and items at its boundary, and a planted leak is found."""
    events = busy_stream()
    differ, new = await differences(events, VIEWS)
    assert differ == dict.fromkeys((view.name for view in VIEWS), 0)
    assert new["at every event"] > 10

    monkeypatch.setattr(AtBoundary, "at", lambda self, _boundary: self.now)  # the profile and the items of later
    leaky, _ = await differences(events, VIEWS[2:4])
    assert min(leaky.values()) > 10


def world() -> list[Event]:
    """Every hour a new item is all the rage: thirty users touch it one after the other, a minute apart."""
    return [
        Event(
            f"e{hour}-{user}",
            f"user-{user}",
            "view",
            START - START % 3_600_000 + hour * 3_600_000 + user * 60_000,
            item,
        )
        for hour, item in enumerate(("11", "22", "33", "44", "55"))
        for user in range(30)
    ]


@pytest.mark.parametrize("batch", [1, 512])
async def test_the_worth_of_freshness_in_a_world_where_it_is_known(batch: int) -> None:
    """Lists of the minute miss each item's first user alone, and lists of the hour miss everyone."""
    views = (FRESHEST, ListSchedule("every minute", 60), ListSchedule("every hour", 3600), BASELINES[0])
    judges = await looked_at(world(), START * 2, views, batch=batch)
    missed = {view.name: sum(item not in items for _, _, item, items in judges[view].acts) for view in views}
    assert missed["recent popularity"] == 5
    assert missed["at every event"] < missed["every hour"]
    popular = await looked_at(world(), START * 2, (ListSchedule("hourly", 3600, BASELINES[0].policy),), batch=batch)
    [hourly] = popular.values()
    assert sum(item not in items for _, _, item, items in hourly.acts) == len(hourly.acts) == 150


async def test_the_burn_in_happens_and_is_not_judged() -> None:
    """Acts before the burn-in's end are folded and not judged, and later lists do not change."""
    events = stream()
    views = (PUBLISHED, *VIEWS)
    whole, part = await looked_at(events, START), await looked_at(events, START, burn_in=300)
    late = await looked_at(events, START, views, burn_in=300)
    for view in VIEWS:
        judged = part[view].acts
        assert 50 < len(judged) < 100
        assert judged == whole[view].acts[-len(judged) :] == late[view].acts
        assert part[view].interactions == whole[view].interactions


def test_the_verb_finds_the_curve_and_the_report_draws_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`replay --freshness` judges every period and baseline on the same events, and the report draws the curve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRESHET_MODEL_REPOSITORY", str(ROOT / "triton_models"))
    log, found = tmp_path / "log.jsonl", tmp_path / "replay" / "results.json"
    log.write_bytes(b"".join(encode_event(event) + b"\n" for event in world()))
    replayed = [
        "replay",
        str(log),
        "--freshness",
        "--burn-in",
        "0.2",
        "--label-delay",
        "60",
        "--out",
        str(found.parent),
    ]
    done = CliRunner().invoke(app, replayed)
    assert done.exit_code == 0, done.output
    results = read_results(found)
    labels = ["at every event", "every minute", "every hour", "every day", "as published (at the user's own events)"]
    assert [point.label for point in results.freshness] == labels
    assert [point.seconds for point in results.freshness] == [0, 60, 3600, 86_400, 0]
    assert [evaluation.name for evaluation in results.evaluations] == [
        "version 1",
        "recent popularity",
        "all-time popularity",
    ]
    assert {evaluation.slices["all"]["all"].events for evaluation in results.evaluations} == {120}
    popular = results.evaluations[1].slices["all"]["all"].metrics["hr"]
    assert popular.mean == 116 / 120  # each of the four items is new to its first user
    pairs = {
        (comparison.candidate, comparison.baseline) for comparison in results.comparisons if comparison.metric == "ndcg"
    }
    assert pairs == {
        (name, baseline)
        for name in ("version 1", "version 1, at every event")
        for baseline in ("recent popularity", "all-time popularity")
    }
    picture = tmp_path / "curve.svg"
    drawn = CliRunner().invoke(app, ["report", str(found), "--out", str(picture)])
    assert drawn.exit_code == 0, drawn.output
    assert "own events" in picture.read_text()
