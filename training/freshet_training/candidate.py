"""Steps 6 and 7 of a run: the gate's decision on the candidate, its bundle, and the move to its folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import msgspec
import torch
from freshet.bundle.bundle import WITHOUT_NETWORK, Check, Data, Decision, Privacy, load_bundle, write_manifest

from freshet_training import gate
from freshet_training.console import say
from freshet_training.evaluate import EvaluationSet
from freshet_training.export import BundleContents, export_bundle, placed_whole
from freshet_training.fit import FittedEncoder
from freshet_training.lifts import item_lifts
from freshet_training.measure import EncoderRanker, MeasuredEncoder, ValidationPart, measure
from freshet_training.model import UserEncoder
from freshet_training.model_card import model_card
from freshet_training.regression_set import REGRESSION_FILE
from freshet_training.training_run import TrainingRun, commit
from freshet_training.training_set import TrainingSet, model_shape, with_held_back
from freshet_training.without_network import NearestText

Refit = Callable[[], tuple[UserEncoder, TrainingSet]]
"""Fits an encoder on the whole log; returns it with the set that it learned."""


def write_candidate(run: TrainingRun, measured: MeasuredEncoder, privacy: Privacy | None, refit: Refit) -> Decision:
    """Judge the candidate, write its bundle beside its folder, and move the bundle to its folder whole.

    A candidate that is accepted is fitted anew on the whole log first, unless it is private: its users would be told
    of twice. Returns the gate's decision, which the bundle's manifest holds. Raises `ExportError`, `OSError`.
    """
    checks = _judge(run, measured, network=True)
    if all(check.passed for check in checks) and privacy is None:
        model, learned = refit()
        return _write(run, replace(measured, fitted=replace(measured.fitted, model=model)), learned, checks, None)
    return _write(run, measured, run.training_set, checks, privacy)


def write_without_network(run: TrainingRun, validation: ValidationPart) -> Decision:
    """Write the version that serves without a network, beside the candidate's folder. Raises as `write_candidate`."""
    config, training_set = run.config, run.training_set
    say("a version without a network: popularity and the nearness of texts")

    def model(learned: TrainingSet) -> NearestText:
        return NearestText(model_shape(config, learned), torch.from_numpy(learned.known))

    whole = with_held_back(training_set)
    fitted = FittedEncoder(model(training_set), 0, 0.0, 0)
    measured = measure(fitted, training_set, run.replay, validation)
    checks = _judge(run, measured, network=False)
    measured = replace(measured, fitted=replace(fitted, model=model(whole)))
    out = run.request.out.with_name(run.request.out.name + WITHOUT_NETWORK)
    shutil.rmtree(out, ignore_errors=True)
    run = replace(run, request=replace(run.request, out=out))
    return _write(run, measured, whole, checks, None)


def _judge(run: TrainingRun, measured: MeasuredEncoder, *, network: bool) -> list[Check]:
    """What the candidate's lists are worth on the test part, before it has learned that part."""
    config, training_set, model = run.config, run.training_set, measured.fitted.model
    log, split = training_set.log, training_set.split
    judged_from = len(split.train) + len(split.validation)
    candidate = gate.Judged(
        EncoderRanker(model, training_set.unseen),
        training_set.item_ids,
        config.types,
        model.config.length,
        measured.prior_weight,
        config.popularity_half_life,
    )
    return gate.judge(
        candidate,
        run.live,
        EvaluationSet(log.events, judged_from, training_set.catalogue, training_set.texts, log.forgotten),
        config,
        run.request.files.work / REGRESSION_FILE,
        mix=measured.mix if network else None,
        from_live=run.parent is not None,
    )


def _write(
    run: TrainingRun,
    measured: MeasuredEncoder,
    learned: TrainingSet,
    checks: list[Check],
    privacy: Privacy | None,
) -> Decision:
    """Write the bundle of an encoder that has learned the runs of `learned`, with the decision on it."""
    with placed_whole(run.request.out) as partial:
        export_bundle(measured.fitted.model, partial, _contents(run, measured, learned, privacy))
        candidate = load_bundle(partial)
        checks = [*gate.check_files(candidate, run.config.gate), *checks]
        decision = Decision(all(check.passed for check in checks), checks)
        say(gate.report(decision))
        write_manifest(partial, msgspec.structs.replace(candidate.manifest, gate=decision))
    return decision


def _contents(
    run: TrainingRun, measured: MeasuredEncoder, learned: TrainingSet, privacy: Privacy | None
) -> BundleContents:
    config = run.config
    events = chain.from_iterable(learned.runs)
    return BundleContents(
        item_ids=learned.item_ids,
        text_embeddings=learned.known,
        config=config,
        prior_weight=measured.prior_weight,
        metrics=measured.metrics,
        data=_data(run, learned),
        commit=commit(),
        parent=run.parent.path.name if run.parent is not None else "",
        privacy=privacy,
        lifts=item_lifts(events, learned.item_ids, config.behaviours) if privacy is None else None,
        model_card=model_card(config, run.training_set, learned, measured, privacy, run.chosen),
        text_encoder=learned.text_encoder,
        network=not isinstance(measured.fitted.model, NearestText),
    )


def _data(run: TrainingRun, learned: TrainingSet) -> Data:
    log = learned.log
    whole = learned is not run.training_set
    return Data(
        source=run.request.source,
        digest=log.digest,
        first=log.events[0].ts,
        last=log.events[-1].ts,
        trained_to=log.events[-1].ts + 1 if whole else learned.split.validation[0].ts,
        events=len(log.events),
        users=len({event.user_id for event in log.events}),
        cleaning={
            **run.left_out,
            "items without text": learned.without_text,
            "held back for the regression set": learned.held_back,
        },
    )
