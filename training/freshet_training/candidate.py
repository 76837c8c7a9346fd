"""Steps 6 and 7 of a run: the candidate's bundle, the gate's decision on it, and the move to its folder."""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path

import msgspec
from freshet.bundle.bundle import Data, Decision, Privacy, load_bundle, write_manifest

from freshet_training import gate
from freshet_training.console import say
from freshet_training.evaluate import EvaluationSet
from freshet_training.export import BundleContents, export_bundle
from freshet_training.lifts import item_lifts
from freshet_training.measure import MeasuredEncoder
from freshet_training.model_card import model_card
from freshet_training.regression_set import REGRESSION_FILE
from freshet_training.training_run import TrainingRun, commit


def write_candidate(run: TrainingRun, measured: MeasuredEncoder, privacy: Privacy | None) -> bool:
    """Write the bundle beside its folder, judge it, and move it to its folder whole.

    Returns whether the gate accepted the candidate. Raises `ExportError`, `OSError`.
    """
    out = run.request.out
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    export_bundle(measured.fitted.model, partial, _contents(run, measured, privacy))
    decision = _judge(run, partial)
    if out.exists():
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(out)
    return decision.accepted


def _contents(run: TrainingRun, measured: MeasuredEncoder, privacy: Privacy | None) -> BundleContents:
    config, training_set = run.config, run.training_set
    events = chain.from_iterable(training_set.runs)
    return BundleContents(
        item_ids=training_set.item_ids,
        text_embeddings=training_set.known,
        config=config,
        prior_weight=measured.prior_weight,
        metrics=measured.metrics,
        data=_data(run),
        commit=commit(),
        parent=run.parent.path.name if run.parent is not None else "",
        privacy=privacy,
        lifts=item_lifts(events, training_set.item_ids, config.behaviours) if privacy is None else None,
        model_card=model_card(config, training_set, measured, privacy),
    )


def _data(run: TrainingRun) -> Data:
    training_set = run.training_set
    log = training_set.log
    return Data(
        source=run.request.source,
        digest=log.digest,
        first=log.events[0].ts,
        last=log.events[-1].ts,
        trained_to=training_set.split.validation[0].ts,
        events=len(log.events),
        users=len({event.user_id for event in log.events}),
        cleaning={
            **run.left_out,
            "items without text": training_set.without_text,
            "held back for the regression set": training_set.held_back,
        },
    )


def _judge(run: TrainingRun, folder: Path) -> Decision:
    """The gate's decision on the bundle in `folder`, which the bundle's manifest then holds."""
    candidate, training_set = load_bundle(folder), run.training_set
    log, split = training_set.log, training_set.split
    judged_from = len(split.train) + len(split.validation)
    ground = EvaluationSet(log.events, judged_from, training_set.catalogue, training_set.texts, log.forgotten)
    decision = gate.judge(candidate, run.live, ground, run.config, run.request.files.work / REGRESSION_FILE)
    say(gate.report(decision))
    write_manifest(folder, msgspec.structs.replace(candidate.manifest, gate=decision))
    return decision
