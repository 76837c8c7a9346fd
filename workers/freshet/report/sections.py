"""The sections of a page: each has a heading, a sentence, a plot, and a table with the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from html import escape

from freshet.core.evaluation.results import (
    Difference,
    Estimate,
    Evaluation,
    FreshnessPoint,
    Interleaving,
    OffPolicyEstimate,
    Slice,
    VariantReadout,
    Verification,
)
from freshet.report.markup import as_cell, as_details, as_note, as_section, as_table, as_verdict
from freshet.report.svg import SERIES, PlotPoint, PlotRow, Series, calibration_plot, dot_plot, line_plot, number, tag

JUDGED = ("hr", "ndcg", "mrr")
LISTS = ("coverage", "gini", "personalisation", "intra_list_diversity", "novelty")
NAMES = {
    "mrr": "MRR",
    "coverage": "Catalogue coverage",
    "gini": "Gini of exposure",
    "personalisation": "Personalisation",
    "intra_list_diversity": "Diversity in a list",
    "novelty": "Novelty (bits)",
}
ALL = "all"


def title(metric: str, cutoff: int) -> str:
    """A metric as people write it."""
    return NAMES.get(metric, f"{metric.upper()}@{cutoff}")


def freshness(points: Sequence[FreshnessPoint], cutoff: int, name: str = "", x: float | None = None) -> str:
    """The freshness curve: two metrics by how often lists are made. The live lists stand apart.

    If `name` and `x` are given, the curve is drawn at `x` in a picture of several curves.
    """
    metrics = [metric for metric in ("hr", "ndcg") if all(metric in point.metrics for point in points)]
    curve = [point for point in points if not point.label.startswith("as published")]
    apart = [point for point in points if point.label.startswith("as published")]
    xs = [*range(len(curve)), *(len(curve) + 0.4 for _ in apart)]
    ordered = [*curve, *apart]
    series = [
        Series(
            title(metric, cutoff),
            [PlotPoint(x_of_point, point.metrics[metric]) for x_of_point, point in zip(xs, ordered, strict=True)],
        )
        for metric in metrics
    ]
    said = "; ".join(
        f"{point.label}: " + ", ".join(f"{title(m, cutoff)} {number(point.metrics[m].mean)}" for m in metrics)
        for point in ordered
    )
    return line_plot(
        name or "What lists are worth by how often they are made",
        said,
        series,
        [(x_of_point, _short(point.label)) for x_of_point, point in zip(xs, ordered, strict=True)],
        labelled=True,
        x=x,
    )


def _short(label: str) -> str:
    return "own events\n(published)" if label.startswith("as published") else "\n".join(label.rsplit(" ", 1))


def freshness_section(points: Sequence[FreshnessPoint], cutoff: int) -> str:
    """What freshness is worth."""
    rows = [
        [
            point.label,
            *(as_cell(point.metrics.get(m)) for m in JUDGED),
            as_cell(point.against_freshest.get("ndcg"), sign=True),
        ]
        for point in points
    ]
    head = ["Lists made", *(title(metric, cutoff) for metric in JUDGED), "NDCG against freshest"]
    return as_section(
        "The worth of freshness",
        "The same model on the same events; only how old a list may be differs. "
        "A list is made of what was known at its time: profile, popularity and items.",
        freshness(points, cutoff),
        as_table("Means with 95 % intervals; differences are paired over users", head, rows),
        open_=True,
    )


def days_section(evaluations: Sequence[Evaluation], metric: str) -> str:
    """One metric day by day."""
    cutoff = evaluations[0].cutoff
    shown = evaluations[:SERIES]
    days = sorted({day for evaluation in shown for day in evaluation.slices.get("day", {})})
    first = date.fromisoformat(days[0]).toordinal()
    series = [
        Series(
            evaluation.name,
            [
                PlotPoint(date.fromisoformat(day).toordinal() - first, part.metrics[metric], part.users)
                for day, part in evaluation.slices.get("day", {}).items()
                if metric in part.metrics
            ],
        )
        for evaluation in shown
    ]
    last = date.fromisoformat(days[-1]).toordinal() - first
    marks = sorted({0, round(last / 2), last})
    labels = [(float(mark), date.fromordinal(first + mark).strftime("%d %b\n%Y")) for mark in marks]
    rows = [
        [day, *(as_cell(_metric(evaluation, "day", day, metric)) for evaluation in shown), f"{_events(shown, day):,}"]
        for day in days
    ]
    name = title(metric, cutoff)
    return as_section(
        f"{name} over time",
        f"By day (UTC), with the 95 % interval of {shown[0].name}; those of the others are in the table. "
        "Hollow: fewer than five users, no interval.",
        line_plot(f"{name} by day", f"{name} from {days[0]} to {days[-1]}", series, labels, bands=True),
        as_table(f"{name} by day", ["Day", *(evaluation.name for evaluation in shown), "Events"], rows),
    )


def parts_section(evaluations: Sequence[Evaluation], dimension: str, heading: str, sentence: str) -> str:
    """One metric for each value of a dimension: behaviour types, or segments."""
    shown = evaluations[:SERIES]
    cutoff = shown[0].cutoff
    names = [evaluation.name for evaluation in shown]
    values = list(dict.fromkeys(value for evaluation in shown for value in evaluation.slices.get(dimension, {})))
    rows = [PlotRow(value, [_metric(evaluation, dimension, value, "hr") for evaluation in shown]) for value in values]
    table = []
    for value in values:
        for evaluation in shown:
            part = evaluation.slices.get(dimension, {}).get(value)
            if part is not None:
                cells = [as_cell(part.metrics.get(metric)) for metric in JUDGED]
                table.append([f"{value}, {evaluation.name}" if len(shown) > 1 else value, *cells, f"{part.events:,}"])
    head = [dimension.capitalize(), *(title(metric, cutoff) for metric in JUDGED), "Events"]
    return as_section(
        heading,
        sentence,
        dot_plot(f"HR@{cutoff} by {dimension}", _said(rows, names), names, rows),
        as_table(f"By {dimension}", head, table),
    )


def lists_section(evaluations: Sequence[Evaluation]) -> str:
    """What is shown, whatever users do with it."""
    shown = [evaluation for evaluation in evaluations if "coverage" in whole(evaluation).metrics][:SERIES]
    names = [evaluation.name for evaluation in shown]
    rows = [
        PlotRow(NAMES[metric], [whole(evaluation).metrics.get(metric) for evaluation in shown])
        for metric in LISTS
        if metric != "novelty" and any(metric in whole(evaluation).metrics for evaluation in shown)
    ]
    table = [
        [NAMES[metric], *(as_cell(whole(evaluation).metrics.get(metric)) for evaluation in shown)]
        for metric in LISTS
        if any(metric in whole(evaluation).metrics for evaluation in shown)
    ]
    return as_section(
        "What is shown",
        "Coverage: share of the catalogue shown to somebody. Gini: 0 where all items are shown alike, 1 where one has "
        "it all. Personalisation: distance between two users' lists. Diversity: distance between a list's items. "
        "Novelty: surprise of an item, in bits.",
        dot_plot("Lists", _said(rows, names), names, rows),
        as_table("Means with 95 % intervals", ["", *names], table),
    )


def policies_section(evaluations: Sequence[Evaluation]) -> str:
    """Many policies beside one another: what each gives up in accuracy, and what it buys."""
    cutoff = evaluations[0].cutoff
    parts = [(evaluation.name, whole(evaluation).metrics) for evaluation in evaluations]
    metrics = [metric for metric in (*JUDGED[:2], *LISTS) if any(metric in found for _, found in parts)]
    names = [title(metric, cutoff) for metric in metrics]
    drawn = [metric for metric in ("ndcg", "coverage") if metric in metrics]
    rows = [PlotRow(name, [found.get(metric) for metric in drawn]) for name, found in parts]
    table = [[name, *(as_cell(found.get(metric)) for metric in metrics)] for name, found in parts]
    shown = [title(metric, cutoff) for metric in drawn]
    return as_section(
        "Accuracy against variety",
        "Every policy that was judged, on the same events: a knob of the ranking pays where one gains more than the "
        "other loses.",
        dot_plot("Policies", _said(rows, shown), shown, rows),
        as_table("Means with 95 % intervals", ["Policy", *names], table),
        open_=True,
    )


def calibration_section(evaluation: Evaluation) -> str:
    """Whether predicted chances come true."""
    points = [(bin_.predicted, bin_.observed) for bin_ in evaluation.calibration]
    error = evaluation.calibration_error
    sentence = f"{evaluation.name}: the chance that a slot comes next, predicted before its label was known."
    if error is not None:
        sentence += f" Expected calibration error {error.mean:.4f} [{error.low:.4f}, {error.high:.4f}]."
    rows = [[f"{predicted:.4f}", as_cell(observed, digits=4), f"{observed.n:,}"] for predicted, observed in points]
    said = "; ".join(f"predicted {predicted:.4f}, observed {observed.mean:.4f}" for predicted, observed in points)
    return as_section(
        "Calibration of scores",
        sentence + " On the dashed line predictions are right.",
        calibration_plot("Calibration", said, points),
        as_table("Slots by predicted chance", ["Predicted", "Observed", "Slots"], rows),
    )


def comparisons_section(differences: Sequence[Difference], cutoff: int) -> str:
    """Paired differences, with verdicts."""
    metrics = list(dict.fromkeys(difference.metric for difference in differences))
    pairs: dict[tuple[str, str], dict[str, Difference]] = {}
    for difference in differences:
        pairs.setdefault((difference.candidate, difference.baseline), {})[difference.metric] = difference
    names = [title(metric, cutoff) for metric in metrics]
    rows = [
        PlotRow(
            f"{candidate} − {baseline}", [found[metric].estimate if metric in found else None for metric in metrics]
        )
        for (candidate, baseline), found in pairs.items()
    ]
    table = [
        [
            f"{candidate} against {baseline}",
            *(
                as_cell(found[metric].estimate, sign=True) + as_verdict(found[metric].verdict)
                if metric in found
                else ""
                for metric in metrics
            ),
        ]
        for (candidate, baseline), found in pairs.items()
    ]
    return as_section(
        "Compared on the same events",
        "The difference of each pair, over resampled users. Left of the dashed line is worse, right is better.",
        dot_plot("Paired differences", _said(rows, names), names, rows, neutral=0.0),
        as_table("Paired differences with 95 % intervals, and what they say", ["Pair", *names], table),
    )


def interleavings_section(interleavings: Sequence[Interleaving]) -> str:
    """Whose items the users picked."""
    rows = [
        PlotRow(f"{interleaving.candidate} over {interleaving.baseline}", [interleaving.preference])
        for interleaving in interleavings
    ]
    table = [
        [
            f"{interleaving.candidate} over {interleaving.baseline}",
            as_cell(interleaving.preference),
            f"{interleaving.wins:,} / {interleaving.losses:,} / {interleaving.ties:,}",
            as_verdict(interleaving.verdict),
        ]
        for interleaving in interleavings
    ]
    return as_section(
        "Interleaved",
        "Two policies' items in one list (team draft): the share of picks that the second one brought in. "
        "At the dashed line neither is preferred.",
        dot_plot("Interleaving", _said(rows, []), [], rows, neutral=0.5),
        as_table("Preference with 95 % intervals", ["Pair", "Preference", "Won / lost / undecided", "Verdict"], table),
        open_=True,
    )


def variants_section(variants: Sequence[VariantReadout]) -> str:
    """What the users of each variant of an experiment did with their lists."""
    metrics = list(dict.fromkeys(metric for variant in variants for metric in variant.metrics))
    shown = variants[:SERIES]
    names = [variant.variant for variant in shown]
    rows = [PlotRow(metric, [variant.metrics.get(metric) for variant in shown]) for metric in metrics]
    table = [
        [
            variant.variant,
            f"{variant.users:,}",
            f"{variant.lists:,}",
            *(as_cell(variant.metrics.get(metric)) for metric in metrics),
        ]
        for variant in variants
    ]
    return as_section(
        "Variants",
        "What users did with the lists of each variant of an experiment; a user has one variant for good.",
        dot_plot("Variants", _said(rows, names), names, rows),
        as_table("Means with 95 % intervals", ["Variant", "Users", "Lists", *metrics], table),
        open_=True,
    )


def off_policy_section(estimates: Sequence[OffPolicyEstimate]) -> str:
    """What policies that were never live would have been worth."""
    rows = [PlotRow(f"{estimate.policy}, {estimate.estimator}", [estimate.value]) for estimate in estimates]
    table = [
        [
            estimate.policy,
            escape(estimate.estimator),
            as_cell(estimate.value),
            f"{estimate.effective_sample_size:,.0f} of {estimate.value.n:,}",
        ]
        for estimate in estimates
    ]
    return as_section(
        "Off policy",
        "The value of policies that were not live, from logged propensities. Trust an estimate as far as its "
        "effective sample size goes.",
        dot_plot("Off-policy estimates", _said(rows, []), [], rows),
        as_table("Values with 95 % intervals", ["Policy", "Estimator", "Value", "Effective sample"], table),
        open_=True,
    )


def verification_section(verification: Verification) -> str:
    """Live against replayed."""
    differ = sum(verification.mismatches.values())
    compared = sum(verification.compared.values())
    says = f"{differ:,} of {compared:,} differ" if differ else f"✓ All {compared:,} are equal"
    rows = [
        [kind, f"{count:,}", f"{verification.mismatches.get(kind, 0):,}"]
        for kind, count in verification.compared.items()
    ]
    body = as_table("What was compared, and how many differ", ["", "Compared", "Differ"], rows)
    if verification.examples:
        examples = [
            [
                mismatch.kind,
                escape(mismatch.user_id),
                f"{mismatch.partition}:{mismatch.offset}",
                escape(mismatch.detail),
            ]
            for mismatch in verification.examples
        ]
        body += as_details("First differences", as_table("", ["Kind", "User", "At", "What"], examples), open_=True)
    if verification.unverifiable:
        body += as_note(
            f"{verification.unverifiable:,} lists were not verified: compaction has taken their side inputs, "
            "or an erasure their events."
        )
    said = tag("p", tag("strong", says, class_="worse" if differ else "better"))
    sentence = "What was published, made again from the log: features, embeddings and lists, without a tolerance."
    return tag("section", tag("h3", "Live against replay"), as_note(sentence), said, body)


def whole(evaluation: Evaluation) -> Slice:
    """All that was judged."""
    return evaluation.slices[ALL][ALL]


def _metric(evaluation: Evaluation, dimension: str, value: str, metric: str) -> Estimate | None:
    part = evaluation.slices.get(dimension, {}).get(value)
    return part.metrics.get(metric) if part is not None and part.events else None


def _events(evaluations: Sequence[Evaluation], day: str) -> int:
    return max(
        evaluation.slices["day"][day].events for evaluation in evaluations if day in evaluation.slices.get("day", {})
    )


def _said(rows: Sequence[PlotRow], names: Sequence[str]) -> str:
    """The rows in words."""
    said = []
    for row in rows:
        series = [f" ({name})" for name in names] or [""] * len(row.estimates)
        said += [
            f"{row.name}{name}: {number(estimate.mean)} from {number(estimate.low)} to {number(estimate.high)}"
            for name, estimate in zip(series, row.estimates, strict=True)
            if estimate is not None
        ]
    return "; ".join(said)
