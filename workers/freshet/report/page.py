"""Results of evaluations as a self-contained page: HTML with its style and plots, no script, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from freshet.core.evaluation.results import Evaluation, Results
from freshet.report import sections
from freshet.report.svg import SERIES, WIDTH, beside, tag

_STYLES = Path(__file__).parent
GAP = 20
HEIGHT = 300


def page(named: Sequence[tuple[str, Results]]) -> str:
    """The report on results, each with its name."""
    style = "\n".join((_STYLES / name).read_text() for name in ("page.css", "plot.css"))
    contents = "".join(f'<li><a href="#r{number}">{escape(name)}</a></li>' for number, (name, _) in enumerate(named))
    nav = f'<nav aria-label="Results"><ul>{contents}</ul></nav>' if len(named) > 1 else ""
    body = "".join(_results(f"r{number}", name, results) for number, (name, results) in enumerate(named))
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Freshet: {escape(', '.join(name for name, _ in named))}</title>"
        f"<style>{style}</style></head><body><main><h1>Freshet, evaluated</h1>{nav}{body}</main></body></html>\n"
    )


def freshness_figure(named: Sequence[tuple[str, Results]]) -> str:
    """The freshness curves of results that have one, side by side, as one SVG that stands alone."""
    there = [(name, results) for name, results in named if results.freshness]
    style = "\n".join((_variables(), (_STYLES / "plot.css").read_text()))
    plots = [
        sections.freshness(results.freshness, _cutoff(results), name, x=4 + number * (WIDTH + GAP))
        for number, (name, results) in enumerate(there)
    ]
    names = " and ".join(name for name, _ in there)
    return beside(
        "The worth of freshness", f"What lists are worth by how often they are made: {names}", plots, HEIGHT, style
    )


def _variables() -> str:
    """The colours of the page, and a ground, for a picture that stands alone."""
    return (_STYLES / "page.css").read_text().split("* {")[0] + "svg { background: var(--card); }"


def _cutoff(results: Results) -> int:
    return results.evaluations[0].cutoff if results.evaluations else 10


def _results(anchor: str, name: str, results: Results) -> str:
    heading = tag("h2", escape(name), id=anchor)
    made = tag("p", tag("code", escape(results.command)), class_="note")
    return tag("article", heading, _facts(results), made, tag("div", *_sections(results), class_="parts"))


def _facts(results: Results) -> str:
    """The first evaluation in four figures."""
    if not results.evaluations:
        return ""
    first = results.evaluations[0]
    everything = sections.whole(first)
    facts = [
        (sections.title(metric, first.cutoff), f"{estimate.mean:.3f}", f"{estimate.low:.3f} … {estimate.high:.3f}")
        for metric in sections.JUDGED
        if (estimate := everything.metrics.get(metric)) is not None
    ]
    facts.append(("judged", f"{everything.events:,}", f"of at least {everything.users:,} users"))
    items = [
        tag("li", escape(label), tag("b", value), tag("small", escape(beneath))) for label, value, beneath in facts
    ]
    return tag("ul", *items, class_="facts")


def _sections(results: Results) -> list[str]:
    """A section for each part that is there."""
    cutoff = _cutoff(results)
    there = []
    if results.verification is not None:
        there.append(sections.verification_section(results.verification))
    if results.freshness:
        there.append(sections.freshness_section(results.freshness, cutoff))
    if results.comparisons:
        there.append(sections.comparisons_section(results.comparisons, cutoff))
    if results.interleavings:
        there.append(sections.interleavings_section(results.interleavings))
    if results.variants:
        there.append(sections.variants_section(results.variants))
    if results.off_policy:
        there.append(sections.off_policy_section(results.off_policy))
    return there + (_evaluated(results.evaluations) if results.evaluations else [])


def _evaluated(evaluations: Sequence[Evaluation]) -> list[str]:
    there = []
    if len(evaluations) > SERIES:  # other plots leave some of them out
        there.append(sections.policies_section(evaluations))
    if any(len(evaluation.slices.get("day", {})) > 1 for evaluation in evaluations):
        there += [sections.days_section(evaluations, metric) for metric in ("hr", "ndcg")]
    if any("type" in evaluation.slices for evaluation in evaluations):
        sentence = "Recall of each behaviour: how often what the user did was in their list."
        there.append(sections.parts_section(evaluations, "type", "By behaviour", sentence))
    if any("segment" in evaluation.slices for evaluation in evaluations):
        sentence = "New users have fewer than five events behind them; cold items are newer than the model."
        there.append(sections.parts_section(evaluations, "segment", "New users, cold items", sentence))
    if any("coverage" in sections.whole(evaluation).metrics for evaluation in evaluations):
        there.append(sections.lists_section(evaluations))
    if evaluations[0].calibration:
        there.append(sections.calibration_section(evaluations[0]))
    return there
