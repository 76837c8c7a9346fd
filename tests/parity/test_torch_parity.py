"""Training sees what serving sees, and torch and ONNX agree. Runs in the training environment."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from freshet.core.events import ERASE, OPT_IN, OPT_OUT, Event
from freshet.core.features import FIRST_ITEM, TEXT_DIM, UNKNOWN, USER_ENCODER_INPUTS, featurise
from freshet.core.state import UserState, empty_state, fold
from freshet_training.examples import IGNORE, Examples, histories, look_ahead, shuffle_ties, states_before, windows

from tests.parity.wrong_items import misnumber

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.training

SHIPPED = Path(__file__).parents[2] / "triton_models" / "user_encoder" / "1"
ITEMS = 150
TYPES = ["view", "click", "purchase"]
ITEM_INDEX = {f"i{number}": number + FIRST_ITEM for number in range(ITEMS - 5)}  # the last five are unknown
TYPE_INDEX = {kind: number + 1 for number, kind in enumerate(TYPES)}
LENGTH = 40
"""Other than the fold's own: a version's length is its own too."""
INPUTS = [spec.name for spec in USER_ENCODER_INPUTS]


def log(seed: int, events: int = 400, users: int = 3, control: bool = True) -> list[Event]:
    """A random log: bursts, equal and backward times, repeated ids, unknown items, opt-outs and erasures."""
    dice = random.Random(seed)
    made: list[Event] = []
    ts = 1_700_000_000_000
    for number in range(events):
        ts += dice.choice([0, 0, 5, 900, 60_000, 86_400_000, -500])
        kind = dice.choice([OPT_OUT, OPT_IN, ERASE, OPT_IN]) if control and dice.random() < 0.01 else dice.choice(TYPES)
        event_id = f"e{dice.randrange(number)}" if number and dice.random() < 0.02 else f"e{number}"
        item = None if kind not in TYPES else f"i{dice.randrange(ITEMS)}"
        made.append(Event(event_id, f"u{dice.randrange(users)}", kind, ts, item))
    return made


def small_model(seed: int = 0):  # noqa: ANN201 - torch may be absent here
    from freshet_training.model import UserEncoder  # noqa: PLC0415 - imports torch
    from freshet_training.model_shape import ModelShape  # noqa: PLC0415 - with it

    torch.manual_seed(seed)
    model = UserEncoder(
        ModelShape(ITEMS, len(TYPES), length=LENGTH), torch.nn.functional.normalize(torch.randn(ITEMS, TEXT_DIM))
    )
    for block in model.blocks:
        torch.nn.init.normal_(block.distance_bias)  # it begins at 0
    return model.eval()


def tensors(columns: dict[str, np.ndarray]) -> list:
    return [torch.from_numpy(columns[name]) for name in INPUTS]


@pytest.mark.parametrize("chance", [None, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_the_fold_s(seed: int, chance: int | None) -> None:
    """Row by row and position by position: a training row is `featurise` of the state folded before its target.

    Wherever chance cuts the rows.
    """
    events = log(seed)
    examples = windows(histories(events), ITEM_INDEX, TYPE_INDEX, LENGTH, random=cutting(chance))
    expected: set[tuple[bytes, ...]] = set()
    for user in {event.user_id for event in events}:
        expected |= targets_of(applied(events, user))
    found: set[tuple[bytes, ...]] = set()
    for row in range(len(examples)):
        for position in np.flatnonzero(examples.next_item[row] != IGNORE):
            found.add(prefix(examples, row, int(position)))
    assert found
    assert found <= expected


def applied(events: list[Event], user: str) -> list[Event]:
    """An independent reading of the log: the user's events that count, without those asked to be forgotten."""
    run: list[Event] = []
    ids: list[str] = []
    silent = False
    for event in events:
        if event.user_id != user or event.event_id in ids:
            continue
        if event.type in (OPT_OUT, ERASE):
            run = []
            silent, ids = True, ([event.event_id] if event.type == OPT_OUT else [])
        elif event.type == OPT_IN or not silent:
            silent = False
            ids = [*ids, event.event_id][-32:]
            if event.type in TYPES:
                run.append(event)
    return run


def targets_of(run: list[Event]) -> set[tuple[bytes, ...]]:
    """Every (state tensors, next item, next type) that is true of a run, for every point a row may start from."""
    true: set[tuple[bytes, ...]] = set()
    for start in range(len(run)):
        state = empty_state(0)
        for offset, event in enumerate(run[start : start + LENGTH + 1]):
            row = featurise([state], ITEM_INDEX, TYPE_INDEX, LENGTH)
            item = ITEM_INDEX.get(event.item_id or "", UNKNOWN)
            true.add((*(row[name].tobytes() for name in INPUTS), bytes([item % 256]), bytes([TYPE_INDEX[event.type]])))
            fold(state, event, 0, offset)
    return true


def prefix(examples: Examples, row: int, position: int) -> tuple[bytes, ...]:
    """A row up to a position, shifted to the right as `featurise` lays a history out."""
    columns = []
    for name in INPUTS:
        column = np.zeros(LENGTH, np.int32)
        column[LENGTH - 1 - position :] = getattr(examples, name)[row, : position + 1]
        columns.append(column.tobytes())
    item, kind = examples.next_item[row, position], examples.next_type[row, position]
    return (*columns, bytes([int(item) % 256]), bytes([int(kind)]))


def cutting(chance: int | None) -> np.random.Generator | None:
    return None if chance is None else np.random.default_rng(chance)


@pytest.mark.parametrize("chance", [None, 1, 2])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 0.9])
def test_every_event_is_a_target_once(overlap: float, chance: int | None) -> None:
    """Rows train each event exactly once, however their overlap is cut."""
    events = log(0, control=False)
    examples = windows(histories(events), ITEM_INDEX, TYPE_INDEX, LENGTH, overlap=overlap, random=cutting(chance))
    known = [
        ITEM_INDEX[event.item_id or ""]
        for user in {event.user_id for event in events}
        for event in applied(events, user)
        if event.item_id in ITEM_INDEX
    ]
    assert sorted(examples.next_item[examples.next_item != IGNORE].tolist()) == sorted(known)


def test_long_histories_alone_are_cut_by_chance() -> None:
    """Only users with more events than a row get other rows from epoch to epoch."""
    run = applied(log(0, control=False, users=1), "u0")
    chance = np.random.default_rng(0)

    def ways(size: int) -> int:
        epochs = [windows([run[:size]], ITEM_INDEX, TYPE_INDEX, LENGTH, random=chance) for _ in range(12)]
        return len({epoch.item_index.tobytes() for epoch in epochs})

    assert ways(LENGTH) == 1
    assert ways(3 * LENGTH) >= 5


@pytest.mark.parametrize("seed", range(3))
def test_a_training_row_means_what_the_live_row_means(seed: int) -> None:
    """The encoder's output at a position is its output for the state that ends there, whatever the padding."""
    model = small_model(seed)
    examples = windows(histories(log(seed)), ITEM_INDEX, TYPE_INDEX, LENGTH)
    with torch.no_grad():
        vectors = model.item_vectors()
        columns = {name: getattr(examples, name) for name in INPUTS}
        whole = model(*tensors(columns), vectors)  # [rows, L, D]
        for row in range(0, len(examples), 5):
            for position in np.flatnonzero(examples.next_item[row] != IGNORE)[::7]:
                live = {name: np.zeros((1, LENGTH), np.int32) for name in INPUTS}
                for name in INPUTS:
                    live[name][0, LENGTH - 1 - position :] = columns[name][row, : position + 1]
                alone = model(*tensors(live), vectors, last_only=True)[0, 0]
                torch.testing.assert_close(alone, whole[row, position], atol=1e-4, rtol=0)


def test_shuffled_ties_keep_everything_but_the_order_of_equals() -> None:
    """Shuffling moves only events of equal time, and moves at least an event."""
    runs = histories(log(5, control=False))
    shuffled = shuffle_ties(runs, np.random.default_rng(0))
    moved = 0
    for before, after in zip(runs, shuffled, strict=True):
        assert sorted(event.event_id for event in before) == sorted(event.event_id for event in after)
        newest = 0
        for old, new in zip(before, after, strict=True):
            newest = max(newest, old.ts)
            moved += old is not new
            assert old is new or max(old.ts, new.ts) <= newest
    assert moved


def leaks(model, columns: dict[str, np.ndarray]) -> bool:  # noqa: ANN001 - torch may be absent here
    """Whether any position's output moves when everything after it is replaced."""
    with torch.no_grad():
        vectors = model.item_vectors()
        before = model(*tensors(columns), vectors)
        for cut in range(LENGTH - 1):
            changed = {name: column.copy() for name, column in columns.items()}
            changed["item_index"][:, cut + 1 :] = FIRST_ITEM
            changed["event_type"][:, cut + 1 :] = 1
            changed["time_gap"][:, cut + 1 :] = 30
            after = model(*tensors(changed), vectors)
            if not torch.allclose(before[:, : cut + 1], after[:, : cut + 1], atol=1e-5):
                return True
    return False


def full_rows() -> dict[str, np.ndarray]:
    examples = windows(histories(log(1, events=400, users=2, control=False)), ITEM_INDEX, TYPE_INDEX, LENGTH)
    return {name: getattr(examples, name) for name in INPUTS}


def test_no_position_sees_its_future() -> None:
    """Replacing all later events changes no earlier output."""
    assert not leaks(small_model(), full_rows())


def test_a_planted_leak_is_found() -> None:
    """Failing control: an encoder that looks an event ahead fails the check above."""
    model = small_model()
    model.causal += torch.diag(torch.full((LENGTH - 1,), -model.causal.min().item()), diagonal=1)
    assert leaks(model, full_rows())


def test_the_state_before_an_event_is_its_past() -> None:
    """Evaluation ranks an event from exactly the user's earlier events."""
    events = log(3)
    row_of_event = {id(event): number for number, event in enumerate(events)}
    seen = 0
    for event, state, _ in states_before(events, {}, LENGTH):
        past = applied(events[: row_of_event[id(event)]], event.user_id)
        assert state.items == [earlier.item_id for earlier in past][-LENGTH:]
        seen += 1
    assert seen > len(events) // 2


def test_states_before_continue_a_log() -> None:
    """A log read in two parts gives the states of the log read whole."""
    events = log(4)
    whole = [(event.event_id, list(state.items)) for event, state, _ in states_before(events, {}, LENGTH)]
    table: dict[str, UserState] = {}
    halves = [(event.event_id, list(state.items)) for event, state, _ in states_before(events[:300], table, LENGTH)]
    halves += [
        (event.event_id, list(state.items)) for event, state, _ in states_before(events[300:], table, LENGTH, 300)
    ]
    assert halves == whole


def test_onnx_is_torch_on_fresh_inputs(tmp_path: Path) -> None:
    """An exported bundle gives torch's scores and vectors for inputs that the export never saw, at any batch size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from freshet.bundle.bundle import Data, load_bundle  # noqa: PLC0415
    from freshet_training.config import TrainingConfig  # noqa: PLC0415 - with the others
    from freshet_training.export import BundleContents, ServedEncoder, export_bundle, golden_inputs  # noqa: PLC0415 - imports torch

    model = small_model(7)
    item_ids = [f"i{number}" for number in range(ITEMS)]
    contents = BundleContents(
        item_ids=item_ids,
        text_embeddings=model.text.numpy(),
        config=TrainingConfig(behaviours=dict.fromkeys(TYPES, 1.0), text_fields=("title",)),
        prior_weight=0.5,
        privacy=None,
        lifts=None,
        metrics={},
        data=Data(digest="of the log"),
        commit="",
        parent="3",
        model_card="test\n",
    )
    export_bundle(model, tmp_path / "bundle", contents)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.item_ids == item_ids
    manifest = bundle.manifest
    assert (manifest.length, manifest.text_fields, manifest.parent) == (LENGTH, ["title"], "3")
    assert manifest.data.digest == "of the log"
    torch.testing.assert_close(torch.from_numpy(bundle.item_vectors), model.item_vectors().detach())
    session = onnxruntime.InferenceSession(str(bundle.path / "model.onnx"), providers=["CPUExecutionProvider"])
    served = ServedEncoder(model).eval()
    for batch in (1, 5, 64, 256):
        fresh = golden_inputs(ITEMS, len(TYPES), LENGTH, batch, seed=batch)
        _, score, embedding = session.run(None, fresh)
        with torch.no_grad():
            _, expected_score, expected_embedding = served(*tensors(fresh))
        np.testing.assert_allclose(score, expected_score.numpy(), atol=1e-4)
        np.testing.assert_allclose(embedding, expected_embedding.numpy(), atol=1e-4)


def test_a_graph_that_gives_other_items_is_not_exported(tmp_path: Path) -> None:
    """A graph with right scores for wrong items is not exported."""
    pytest.importorskip("onnxruntime")
    from freshet_training.export import ExportError, check_parity  # noqa: PLC0415 - imports torch

    folder = Path(shutil.copytree(SHIPPED, tmp_path / "other"))
    check_parity(folder)
    misnumber(folder)
    with pytest.raises(ExportError, match=r"model.onnx leaves what torch gave: topk_index is off"):
        check_parity(folder)


def test_an_unseen_item_stands_at_its_text() -> None:
    """With a residual of 0 an item's vector is the item tower's."""
    model = small_model()
    with torch.no_grad():
        model.residual.weight[3] = 0
        torch.testing.assert_close(model.item_vectors()[3], model.tower(model.text[3:4])[0])


def test_item_dropout_leaves_the_text() -> None:
    """With full item dropout every item's training vector is that of its text."""
    from freshet_training.model import UserEncoder  # noqa: PLC0415 - imports torch
    from freshet_training.model_shape import ModelShape  # noqa: PLC0415 - with it

    model = UserEncoder(ModelShape(ITEMS, len(TYPES), item_dropout=1.0), torch.randn(ITEMS, TEXT_DIM)).train()
    torch.testing.assert_close(model.item_vectors(), model.tower(model.text))


def test_next_item_loss_counts_valid_positions_alone() -> None:
    """The loss is the mean cross entropy over valid positions alone."""
    from freshet_training.losses import next_item_loss, next_item_scores  # noqa: PLC0415 - imports torch

    torch.manual_seed(0)
    hidden, vectors = torch.randn(2, 3, 4), torch.randn(6, 4)
    target = torch.tensor([[IGNORE, FIRST_ITEM, IGNORE], [IGNORE, IGNORE, FIRST_ITEM + 5]])
    logits = torch.stack([hidden[0, 1] @ vectors.T, hidden[1, 2] @ vectors.T])
    expected = -(torch.log_softmax(logits, 1)[0, 0] + torch.log_softmax(logits, 1)[1, 5]) / 2
    torch.testing.assert_close(next_item_loss(*next_item_scores(hidden, target, vectors)), expected)
    hidden[0, 0] = 1e6
    torch.testing.assert_close(next_item_loss(*next_item_scores(hidden, target, vectors)), expected)


def test_next_type_loss_counts_from_one() -> None:
    """Type index 1 is the first class of the loss."""
    from freshet_training.losses import next_type_loss  # noqa: PLC0415 - imports torch

    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 0] = 50
    certain = next_type_loss(logits, torch.tensor([[1, IGNORE]]))
    assert certain.item() == pytest.approx(0, abs=1e-6)


def test_a_sample_of_every_item_is_the_full_softmax() -> None:
    """With each item drawn once and expected once, the sampled loss is the full loss."""
    from freshet_training.losses import next_item_loss, next_item_scores  # noqa: PLC0415 - imports torch

    torch.manual_seed(0)
    hidden, vectors = torch.randn(2, 3, 4), torch.randn(6, 4)
    target = torch.tensor([[IGNORE, FIRST_ITEM, IGNORE], [IGNORE, FIRST_ITEM + 2, FIRST_ITEM + 5]])
    everything = torch.arange(6), torch.zeros(6)
    torch.testing.assert_close(
        next_item_loss(*next_item_scores(hidden, target, vectors, everything)),
        next_item_loss(*next_item_scores(hidden, target, vectors)),
    )


def test_what_teachers_say_weighs_beside_what_came() -> None:
    """A student with its teachers' scores has the least loss, and without teachers the log's loss alone counts."""
    from freshet_training.losses import TEACHING, next_item_loss  # noqa: PLC0415 - imports torch

    torch.manual_seed(0)
    scores, own = torch.randn(3, 5), torch.tensor([0, 4, 2])
    alone = next_item_loss(scores, own)
    sure = torch.full((3, 5), -1e4).scatter(1, own[:, None], 1e4)
    torch.testing.assert_close(next_item_loss(scores, own, sure), alone)
    taught = torch.randn(3, 5)
    entropy = -(taught.softmax(1) * taught.log_softmax(1)).sum(1).mean()
    expected = (1 - TEACHING) * next_item_loss(taught, own) + TEACHING * entropy
    torch.testing.assert_close(next_item_loss(taught, own, taught), expected)


def test_a_sampled_softmax_is_right_on_average() -> None:
    """The corrected sum over drawn items estimates the sum over all trained items."""
    from freshet_training.losses import ItemSampler  # noqa: PLC0415 - imports torch

    torch.manual_seed(0)
    counts, scores = torch.tensor([0, 1, 4, 100]), torch.tensor([9.0, 0.5, 1.0, -1.0])
    drawn, expected = ItemSampler(counts, 200_000).draw()
    assert 0 not in drawn
    estimate = torch.logsumexp(scores[drawn] - expected, 0)
    torch.testing.assert_close(estimate, torch.logsumexp(scores[1:], 0), atol=0.01, rtol=0)


def test_looking_ahead_takes_later_targets_of_the_row_alone() -> None:
    """Each target stands at its position or later in its row, and a position without a target gets none."""
    random = np.random.default_rng(0)
    target = np.where(np.arange(12) >= random.integers(0, 9, (500, 1)), np.arange(12) + 100, IGNORE).astype(np.int32)
    examples = Examples(target, target, target, target, target)
    ahead = look_ahead(examples, 0.3, random)
    changed = ahead.next_item != target
    assert (ahead.next_item[changed] > target[changed]).all()
    assert (ahead.next_item.max(axis=1) <= target.max(axis=1)).all()
    assert ((ahead.next_item == IGNORE) == (target == IGNORE)).all()
    movable = (target != IGNORE) & (np.arange(12) < 9)
    assert changed[movable].mean() == pytest.approx(0.3, abs=0.03)
    assert (ahead.next_item - target == 2)[movable].mean() == pytest.approx(0.3**2 * 0.7, abs=0.02)
    assert ahead.item_index is target
    assert (look_ahead(examples, 0.0, random).next_item == target).all()


def test_steps_hold_every_row_once_and_cut_padding_alone() -> None:
    """Steps hold the rows of the examples once, and cut off only padding without a target."""
    from freshet_training.fit import batches  # noqa: PLC0415 - imports torch

    random = np.random.default_rng(0)
    item_index = np.zeros((40, 12), np.int32)
    for row in item_index:
        row[12 - random.integers(0, 12) :] = random.integers(1, 9, 12)[: int((row == 0).sum())][-1]
    next_item = np.where(item_index > 0, item_index, IGNORE)
    next_item[:, -1] = 5
    examples = Examples(item_index, item_index, item_index, next_item, next_item)
    found = []
    for step in batches(examples, 30, random):
        cut = 12 - step.item_index.shape[1]
        found += [tuple([0] * cut + row) for row in step.item_index.tolist()]
        assert (step.next_item[:, -1] == 5).all()
    assert sorted(found) == sorted(map(tuple, item_index.tolist()))


def test_a_cut_row_means_what_the_whole_row_means() -> None:
    """Cutting padding off the left changes no user vector."""
    model = small_model()
    item_index = torch.tensor([[0] * 6 + [FIRST_ITEM, FIRST_ITEM + 2, 1, FIRST_ITEM + 1]])
    mask = (item_index > 0).long()
    with torch.no_grad():
        vectors = model.item_vectors()
        whole = model(item_index, mask, mask, vectors)[:, -4:]
        cut = model(item_index[:, -4:], mask[:, -4:], mask[:, -4:], vectors)
    torch.testing.assert_close(whole, cut)


def test_a_step_of_few_items_has_the_loss_of_the_whole_table() -> None:
    """A step that computes only its own items' vectors has the loss of the whole table."""
    from freshet_training.fit import step_loss  # noqa: PLC0415 - imports torch

    class Everything:
        def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.arange(ITEMS), torch.zeros(ITEMS)

    model = small_model()
    row = np.array([[0, FIRST_ITEM + 3, 1, FIRST_ITEM]], np.int32)
    kinds = (row > 0).astype(np.int32)
    target = np.array([[FIRST_ITEM + 1, IGNORE, FIRST_ITEM, FIRST_ITEM + 2]], np.int32)
    batch = Examples(row, kinds, kinds, target, np.ones_like(target))
    with torch.no_grad():
        torch.testing.assert_close(step_loss(model, batch, Everything()), step_loss(model, batch, None))
