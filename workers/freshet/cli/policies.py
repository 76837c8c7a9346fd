"""`freshet ope` and `freshet compare`: policies judged by what users did with the lists they were shown."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from freshet.cli.console import command_line, emit, rows, say
from freshet.cli.errors import UserError
from freshet.cli.evaluations import show_differences, shown
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, read_seconds, resolve, see_free
from freshet.cli.versions import text_encoder_folder
from freshet.settings import Settings

if TYPE_CHECKING:  # a verb imports what it needs when it runs
    from freshet.core.evaluation.results import OffPolicyEstimate, Results
    from freshet.replay.policies import RecordedRun

DIGITS = 4
"""Digits of a value per list or per user."""

Source = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="The events: `kafka`, `kafka:TOPIC`, an archive's folder, or a file."),
]
Lists = Annotated[
    str,
    typer.Option(metavar="kafka|FILE.jsonl", help="The lists that were shown; a file is one of `freshet tail --raw`."),
]
WindowOption = Annotated[
    str, typer.Option("--window", metavar="30m", help="How long after a list's event an act counts for it.")
]
To = Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write the results; `report` draws them.")]


def ope(
    source: Source = "kafka",
    lists: Lists = "kafka",
    model: Annotated[int | None, typer.Option("--model", metavar="VERSION", help="Judge this version.")] = None,
    diversity: Annotated[float | None, typer.Option(min=0, max=1, help="Judge lists of this diversity.")] = None,
    prior_weight: Annotated[float | None, typer.Option(help="Judge lists with this weight of the prior.")] = None,
    value_weight: Annotated[float | None, typer.Option(min=0, help="Judge lists with this weight of value.")] = None,
    novelty_weight: Annotated[float | None, typer.Option(min=0, help="Judge lists with this weight of rarity.")] = None,
    reward: Annotated[
        str, typer.Option(metavar="TYPE", help="The behaviour that a policy is to bring about.")
    ] = "click",
    window: WindowOption = "30m",
    to: To = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    as_json: Json = False,
) -> None:
    """Estimate what another policy would have earned, from lists that explored (setting `exploration`).

    Each list is made again at its moment with another model version or other settings. Clicks on the lists that were
    shown are weighted by the logged propensities. An act names its list by `context.recommendation_id`. If an act
    names no list, it counts for the user's newest list before it. An archive with a file of lists needs no broker.
    """
    settings = resolve(config, directory, kafka=kafka).settings
    _behaviour("--reward", reward, settings)
    from freshet.core.evaluation.off_policy import against_served, off_policy, served
    from freshet.core.evaluation.results import Results
    from freshet.replay import policies

    target = policies.Target(model, diversity, prior_weight, value_weight, novelty_weight)
    see_free(to)
    found = asyncio.run(
        policies.off_policy(_record(settings, source, lists, window), target, reward, text_encoder_folder(settings))
    )
    estimates = [served(found.slots), *off_policy(target.name, found.slots)]
    difference = against_served(target.name, found.slots, f"{reward} per list")
    results = Results(source=source, command=command_line(), off_policy=estimates, comparisons=[difference])
    _write(to, results)
    if as_json:
        emit(msgspec.to_builtins(results) | {"counts": found.counts})
        return
    table = [("", "estimator", f"{reward} per list", "effective lists")]
    table += [
        (each.policy, each.estimator, shown(each.value, DIGITS), f"{each.effective_sample_size:,.0f}")
        for each in estimates
    ]
    rows(table, ("", "", "bold", ""))
    show_differences([difference], DIGITS)
    _show_counts(found.counts)
    _warn(estimates[-1])


def compare(
    source: Source = "kafka",
    lists: Lists = "kafka",
    baseline: Annotated[
        str | None, typer.Option(metavar="VARIANT", help="Compare the others with it; the first by name if left out.")
    ] = None,
    window: WindowOption = "30m",
    to: To = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    as_json: Json = False,
) -> None:
    """Read an experiment out: what users did with the lists of each variant (setting `variants`).

    An act names its list by `context.recommendation_id`. If an act names no list, it counts for the user's newest
    list before it.
    """
    settings = resolve(config, directory, kafka=kafka).settings
    from freshet.core.evaluation.readout import sample_ratio_mismatch
    from freshet.core.evaluation.results import Results
    from freshet.replay import policies

    kinds = list(settings.behaviours)
    see_free(to)
    found, counts = asyncio.run(policies.readout(_record(settings, source, lists, window), kinds))
    variants = found.variants()
    names = [variant.variant for variant in variants]
    if baseline is not None and baseline not in names:
        raise UserError(
            f"--baseline {baseline!r} is none of the variants that lists were made under: {', '.join(names)}"
        )
    differences = found.differences(baseline or names[0]) if names else []
    results = Results(source=source, command=command_line(), variants=variants, comparisons=differences)
    _write(to, results)
    if as_json:
        emit(msgspec.to_builtins(results) | {"counts": counts})
        return
    metrics = list(variants[0].metrics) if variants else []
    table = [("", *names), ("users", *(f"{variant.users:,}" for variant in variants))]
    table += [("lists", *(f"{variant.lists:,}" for variant in variants))]
    table += [(metric, *(shown(variant.metrics[metric], DIGITS) for variant in variants)) for metric in metrics]
    rows(table, ("", *["bold"] * len(names)))
    show_differences(differences, DIGITS)
    _show_counts(counts)
    if found.crossed:
        say(f"{len(found.crossed):,} users had lists of two variants and are left out: was the experiment changed?")
    shares = {name: arm.share for name, arm in settings.variants.items()}
    odd = (
        sample_ratio_mismatch({variant.variant: variant.users for variant in variants}, shares)
        if set(names) == set(shares)
        else None
    )
    if odd is not None:
        say(f"variant {odd} has a number of users that its share does not explain: do not trust the differences")


def _record(settings: Settings, source: str, lists: str, window: str) -> RecordedRun:
    from freshet.replay.policies import RecordedRun

    window_ms = round(read_seconds("--window", window) * 1000)
    return RecordedRun(settings=settings, source=source, lists=lists, window_ms=window_ms)


def _behaviour(option: str, kind: str, settings: Settings) -> None:
    if kind not in settings.behaviours:
        raise UserError(f"{option} is one of {', '.join(settings.behaviours)}, not {kind!r}")


def _write(to: Path | None, results: Results) -> None:
    from freshet.report.results_file import write_results

    if to is not None:
        write_results(to, results)


def _warn(estimate: OffPolicyEstimate) -> None:
    """Say why an estimate is not to be trusted, where it is not."""
    from freshet.core.evaluation.off_policy import TRUSTED

    if estimate.effective_sample_size < TRUSTED:
        say(f"fewer than {TRUSTED} effective lists: the intervals are not to be trusted; explore more, or longer")
    weight = estimate.mean_weight
    if weight is not None and weight.high < 1:
        say(
            f"the mean weight is {shown(weight, DIGITS)}: part of the target's lists could not have been shown; "
            "its value is that of the rest, for which only dr has an estimate"
        )
    if weight is not None and weight.low > 1:
        say(f"the mean weight is {shown(weight, DIGITS)} where it should be 1: the logged propensities are wrong")


def _show_counts(counts: Mapping[str, int]) -> None:
    say(", ".join(f"{count:,} {counted}" for counted, count in counts.items()))
