"""The model card that travels in a bundle."""

from __future__ import annotations

from datetime import UTC, datetime

from freshet.bundle.bundle import Privacy, TextEncoderFacts
from freshet.core.events import Event

from freshet_training.config import TrainingConfig
from freshet_training.defaults import Choice
from freshet_training.measure import UNTIED, VALIDATED, MeasuredEncoder, table
from freshet_training.model import UserEncoder
from freshet_training.training_set import TrainingSet
from freshet_training.without_network import NearestText


def model_card(
    config: TrainingConfig,
    training_set: TrainingSet,
    learned: TrainingSet,
    measured: MeasuredEncoder,
    privacy: Privacy | None,
    chosen: Choice | None = None,
) -> str:
    """Markdown: what the version is, its data and their terms, how it was measured, how to make it again.

    The version was chosen and judged by the parts of `training_set`, and has learned the runs of `learned`.
    """
    split = training_set.split
    cold = int(learned.unseen.any(axis=1).sum())
    parts = "\n".join(
        f"| {part} | {len(events):,} | {len({event.user_id for event in events}):,} | {_period(events)} |"
        for part, events in (
            ("train", split.train),
            ("validation", split.validation),
            ("test", split.test),
        )
    )
    return f"""# {config.name}

{_what(measured.fitted.model)}
{_text_encoder(learned.text_encoder)}
## Data

Terms: {config.data_terms}. The bundle holds item ids and weights{_facts(privacy)}; no event and no text of the data.

| part | events | users | period (UTC) |
| --- | --- | --- | --- |
{parts}

{_learned(training_set, learned)}
The vocabulary is the {len(learned.item_ids):,} items of what was learned; {cold:,} more of the catalogue are ranked by
text alone.

## Quality

Test part, next item, full ranking over the whole catalogue, seen items filtered, each event ranked from the state
before it. The weights that were measured had seen the training part only; histories and popularity counts run up to
the event. 95 % intervals are a bootstrap over users. Every choice (epoch, prior weight, the mix without a network) was
made on validation, by {VALIDATED:,} events at most. The mix is {measured.mix}.
{config.note}

{table(measured.metrics)}

The same without events that are not later than the user's previous one, whose order in the log is no behaviour:

{table(measured.metrics, UNTIED)}

The served score is `encoder + {measured.prior_weight:g} · log1p(decayed popularity)`.

{_chosen(chosen)}## Reproduce

`freshet train --config SETTINGS --events EVENTS --items ITEMS --out BUNDLE` with the same log, and with the commit, the
versions and the settings in `manifest.json`.

## Limits

Trained on one data set; its ranking says little about another catalogue. Users who opted out are not in it.
{_private(privacy)}"""


def _what(model: UserEncoder) -> str:
    shape = model.config
    if isinstance(model, NearestText):
        return (
            "No network: a user stands at the faded mean of the texts of the user's items, and the nearest texts and\n"
            "what is popular are recommended. A network was trained, and was not better than the best mix without it."
        )
    return f"""A causal transformer ({shape.dim} wide, {shape.blocks} blocks) over a user's last {shape.length} events.
It ranks the next item. An item stands at its projected text embedding plus a learned residual,
so an unseen item stands at its text alone."""


def _text_encoder(facts: TextEncoderFacts | None) -> str:
    """Which text encoder the version stands on, and how much of the texts it knows."""
    if facts is None:
        return ""
    return f"""
## Text encoder

A model of {facts.width} numbers a text, sha256 {facts.model}, with the tokenizer {facts.tokenizer}.
Its vocabulary lacks {facts.unknown_tokens:.1%} of the texts' tokens. The version is served beside that text encoder
alone.
"""


def _chosen(chosen: Choice | None) -> str:
    """How the settings were chosen, where the log chose them."""
    if chosen is None:
        return ""
    return f"## Settings\n\nChosen for the log: {chosen}.\n{'. '.join(chosen.reasons)}.\n\n"


def _learned(training_set: TrainingSet, learned: TrainingSet) -> str:
    if learned is training_set:
        return "The weights have learned the training part alone."
    return "The gate judged before the version was fitted anew on all three parts, which it has learned now."


def _facts(privacy: Privacy | None) -> str:
    """What else the bundle tells of the data: a private version tells nothing else."""
    return ", and of each item how frequent it was and what its events were worth" if privacy is None else ""


def _private(privacy: Privacy | None) -> str:
    if privacy is None:
        return ""
    return f"""
## Privacy

The weights are ({privacy.epsilon:.3g}, {privacy.delta:g})-differentially private by {privacy.unit}: logs that differ by
one whole {privacy.unit} give nearly the same weights (DP-SGD, noise {privacy.noise:g}, clip {privacy.clip:g}, each
{privacy.unit} drawn with chance {privacy.chance:.3g} in each of {privacy.steps:,} steps). Not covered: the list of
items, the metrics and the prior's weight.
"""


def _period(events: list[Event]) -> str:
    if not events:
        return "none"
    first, last = (datetime.fromtimestamp(event.ts / 1000, UTC) for event in (events[0], events[-1]))
    return f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
