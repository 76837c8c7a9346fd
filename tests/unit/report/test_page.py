"""The report: what the page and its plots say, read without a browser."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from freshet.cli import app
from freshet.core.evaluation.results import (
    CalibrationBin,
    Difference,
    Estimate,
    Evaluation,
    FreshnessPoint,
    Interleaving,
    Mismatch,
    OffPolicyEstimate,
    Results,
    Slice,
    VariantReadout,
    Verification,
)
from freshet.report import page as pages
from freshet.report.page import freshness_figure, page
from freshet.report.results_file import write_results
from freshet.report.svg import ticks
from typer.testing import CliRunner

from tests.command_line import fails

VOID = {"meta", "br"}
METRICS = ("hr", "ndcg", "mrr", "coverage", "gini", "novelty", "intra_list_diversity", "personalisation")
STYLES = Path(pages.__file__).parent


def estimate(mean: float, n: int = 100) -> Estimate:
    return Estimate(mean, mean * 0.9, mean * 1.1, n)


def evaluation(name: str = "version 1", hr: float = 0.25) -> Evaluation:
    metrics = {metric: estimate(hr / (index + 1)) for index, metric in enumerate(METRICS)}
    days = {f"2026-11-{day:02d}": Slice(10 * day, 9 if day != 3 else 2, metrics) for day in (1, 2, 3, 6)}
    slices = {
        "all": {"all": Slice(100, 40, metrics)},
        "day": days,
        "type": {"view": Slice(80, 30, metrics), "purchase": Slice(20, 10, metrics)},
        "segment": {"new user": Slice(10, 10, metrics)},
    }
    bins = [CalibrationBin(0.002, Estimate(0.0, 0.0, 0.003, 50)), CalibrationBin(0.1, estimate(0.12))]
    return Evaluation(name, 10, slices, bins, estimate(0.01))


def curve(*values: float) -> list[FreshnessPoint]:
    labels = ("at every event", "every minute", "every hour", "every day", "as published (at the user's own events)")
    return [
        FreshnessPoint(label, index * 60.0, {"hr": estimate(value), "ndcg": estimate(value / 2)}, {})
        for index, (label, value) in enumerate(zip(labels, values, strict=True))
    ]


def verification(*mismatches: Mismatch) -> Verification:
    return Verification({"lists": 500, "features": 70}, {"lists": len(mismatches), "features": 0}, 3, list(mismatches))


def everything() -> Results:
    """Results with every part."""
    return Results(
        source="log.jsonl",
        command="freshet replay log.jsonl --out <there>",
        evaluations=[evaluation(), evaluation("recent popularity", 0.1)],
        comparisons=[
            Difference("recent popularity", "version 1", "hr", Estimate(0.15, 0.1, 0.2, 100), "better"),
            Difference("recent popularity", "version 1", "ndcg", Estimate(-0.1, -0.2, -0.05, 100), "worse"),
            Difference("all-time popularity", "version 1", "hr", Estimate(0.0, -0.1, 0.1, 100), "no difference shown"),
        ],
        interleavings=[Interleaving("version 1", "version 2", 60, 40, 900, Estimate(0.6, 0.52, 0.68, 100), "better")],
        freshness=curve(0.4, 0.3, 0.2, 0.1, 0.35),
        variants=[
            VariantReadout("plain", 210, 640, {"click per user": estimate(0.3), "purchase per user": estimate(0.05)}),
            VariantReadout("<diverse>", 190, 610, {"click per user": estimate(0.35)}),
        ],
        off_policy=[OffPolicyEstimate("diverse", "SNIPS", Estimate(0.031, 0.02, 0.042, 5000), 812.0)],
        verification=verification(Mismatch("lists", "ada <b>", 1, 42, "slot 0: published a, made again b")),
    )


class Reader(HTMLParser):
    """Reads a page strictly: elements are closed in order, and what they are is kept."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open it."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close it."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep what a reader sees."""
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def plots(html: str) -> dict[str, ET.Element]:
    """The plots of a page by title, each of which is well-formed."""
    found = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]  # noqa: S314 - our own
    return {elements[0].text or "": elements for elements in found}


def marks(plot: ET.Element, kind: str, series: int) -> list[dict[str, str]]:
    """The markers of a series, without those of the legend."""
    found = [element.attrib for element in plot.iter(kind) if f"s{series} dot" in element.get("class", "")]
    return found[1:]


def test_a_page_stands_alone() -> None:
    """The page has no script and no link, and fetches nothing."""
    html = page([("shop", everything()), ("films", everything())])
    read = Reader(html)
    names = {name for name, _ in read.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "base"}
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert {attributes["href"] for attributes in read.all("a")} == {"#r0", "#r1"}
    assert {"r0", "r1"} <= {attributes.get("id") for attributes in read.all("h2")}
    assert {attributes["content"] for attributes in read.all("meta") if "name" in attributes} == {
        "width=device-width, initial-scale=1"
    }


def test_what_comes_from_a_log_is_text() -> None:
    """Markup in names, commands and details is escaped."""
    html = page([("<script>alert(1)</script>", everything())])
    words = "".join(Reader(html).words)
    assert "<script>alert(1)</script>" in words
    assert "--out <there>" in words
    assert "ada <b>" in words


def test_every_plot_is_told_in_words_and_in_numbers() -> None:
    """Each plot has a title, a description with its values and a table whose cells name their column."""
    html = page([("shop", everything())])
    read = Reader(html)
    drawn = plots(html)
    assert len(drawn) == len(re.findall("<svg", html)) == 11
    for name, plot in drawn.items():
        assert plot.get("role") == "img", name
        assert len(plot[1].text or "") > 20, name
    assert len(read.all("table")) == len(drawn) + 2  # the verification's own, and its examples
    assert all(attributes.get("data-head") is not None for attributes in read.all("td"))
    words = " ".join(read.words)
    for said in ("0.400", "0.225 … 0.275", "+0.150", "▲ better", "▼ worse", "＝ no difference shown", "812 of 5,000"):
        assert said in words, said
    assert "60 / 40 / 900" in words
    assert "1 of 570 differ" in words
    assert "3 lists were not verified: compaction has taken" in words


def test_only_what_is_there_is_drawn() -> None:
    """Results of a verification alone have no plot and say that all is equal."""
    html = page([("live", Results("kafka", "freshet verify kafka", verification=verification()))])
    assert plots(html) == {}
    assert "✓ All 570 are equal" in "".join(Reader(html).words)
    assert plots(page([("none", Results("x", "y"))])) == {}


def test_the_axis_of_a_curve_begins_at_zero() -> None:
    """The axis starts at 0, and heights are in proportion to values."""
    curve_plot = plots(page([("shop", everything())]))["What lists are worth by how often they are made"]
    texts = {element.text: element.attrib for element in curve_plot.iter("text")}
    zero = float(texts["0"]["y"]) - 4
    heights = [zero - float(mark["cy"]) for mark in marks(curve_plot, "circle", 0)]
    assert heights == pytest.approx([heights[0] * share for share in (1, 3 / 4, 1 / 2, 1 / 4, 7 / 8)], abs=0.2)
    assert {"at every", "own events", "(published)"} <= set(texts)
    joined = [element.get("points", "") for element in curve_plot.iter("polyline")]
    assert [len(points.split()) for points in joined] == [
        4,
        4,
    ]  # what is published at the user's own events stands apart


def test_differences_stand_on_their_side_of_the_line() -> None:
    """A better policy is right of the line, a worse one left, and an unclear interval crosses the line."""
    plot = plots(page([("shop", everything())]))["Paired differences"]
    [line] = [float(element.get("x1", "")) for element in plot.iter("line") if element.get("class") == "neutral"]
    better, unclear = (float(element["cx"]) for element in marks(plot, "circle", 0))
    [worse] = (float(element["x"]) + 3.5 for element in marks(plot, "rect", 1))
    assert worse < line < better
    assert unclear == pytest.approx(line, abs=0.1)


def test_series_differ_in_more_than_colour() -> None:
    """Each series has its own marker shape and dashes."""
    plot = plots(page([("shop", everything())]))["HR@10 by day"]
    assert marks(plot, "circle", 0)
    assert marks(plot, "rect", 1)
    dashes = re.findall(r"\.s(\d)\.line \{ stroke-dasharray: ([\d ]+); \}", (STYLES / "plot.css").read_text())
    assert len({dash for _, dash in dashes}) == 3


def test_days_with_few_users_have_no_interval() -> None:
    """Days with few users are hollow and without interval, and the line breaks where days are missing."""
    plot = plots(page([("shop", everything())]))["HR@10 by day"]
    assert [("few" in element["class"]) for element in marks(plot, "circle", 0)] == [False, False, True, False]
    lines = [element.get("points", "") for element in plot.iter("polyline") if "s0" in element.get("class", "")]
    assert [len(points.split()) for points in lines] == [3]
    [alone] = [element for element in plot.iter("path") if element.get("class") == "s0 bar"]
    assert alone.get("d", "").startswith(f"M{marks(plot, 'circle', 0)[-1]['cx']}")
    [band] = list(plot.iter("polygon"))
    assert len(band.get("points", "").split()) == 2 * 2


def test_round_numbers_on_the_axes() -> None:
    """Axis ticks are few, round and cover all values."""
    assert ticks(0, 0.24) == [0, 0.1, 0.2, 0.3]
    assert ticks(-0.02, 0.19) == [-0.1, 0, 0.1, 0.2]
    assert ticks(0, 0) == [0]
    for high in (0.001, 0.013, 0.37, 1, 7, 42.0):
        found = ticks(0, high)
        assert found[0] == 0
        assert high <= found[-1] < 2 * high
        assert 3 <= len(found) <= 7


def luminance(colour: str) -> float:
    digits = colour * 2 if len(colour) == 3 else colour
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_read_in_both_themes() -> None:
    """Text has a contrast of 4.5 (WCAG AA) and marks of 3, in light and in dark."""
    themes = (STYLES / "page.css").read_text().split("@media (prefers-color-scheme: dark)")
    for theme in themes[0], themes[1].split("* {")[0]:
        colours = {
            name: value * 2 if len(value) == 3 else value for name, value in re.findall(r"--(\w+): #(\w+)", theme)
        }
        for ground in ("paper", "card"):
            for ink in ("ink", "soft", "good", "bad", "s0", "s1"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
            for mark in ("s2", "s3"):
                assert contrast(colours[mark], colours[ground]) >= 3, (mark, ground)


def test_the_curve_alone_is_a_picture_with_its_own_style() -> None:
    """Curves of several results stand side by side under their names, and results without a curve are left out."""
    figure = freshness_figure([("Shop", everything()), ("none", Results("x", "y")), ("Films", everything())])
    root = ET.fromstring(figure)  # noqa: S314 - our own
    assert root.get("viewBox") == "0 0 760 300"
    assert "--s0" in figure
    assert "prefers-color-scheme: dark" in figure
    titles = [
        element.text for element in root.iter("{http://www.w3.org/2000/svg}text") if element.get("class") == "title"
    ]
    assert titles == ["Shop", "Films"]


def test_the_verb_writes_a_page_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`report` writes a page and a picture from results files, and prints their paths, as JSON where asked."""
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "one.json", everything())
    done = CliRunner().invoke(app, ["report", "one.json", "--name", "The shop", "--json"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == '{"report": "report.html", "results": 1}'
    assert "The shop" in (tmp_path / "report.html").read_text()
    assert CliRunner().invoke(app, ["report", "one.json", "--out", "curve.svg"]).exit_code == 0
    assert (tmp_path / "curve.svg").read_text().startswith("<svg")


def test_what_can_go_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing or wrong file, names that do not match and an existing output are one line each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text('{"source": 1}')
    write_results(tmp_path / "one.json", Results("log", "replay"))
    assert "gone.json does not exist" in fails("report", "gone.json")
    assert "broken.json holds no results" in fails("report", "broken.json")
    assert "give --name once for each file" in fails("report", "one.json", "--name", "a", "--name", "b")
    assert "--out is FILE.html or FILE.svg" in fails("report", "one.json", "--out", "report.pdf")
    assert "no file has a freshness curve" in fails("report", "one.json", "--out", "curve.svg")
    assert "No such file or directory" in fails("report", "one.json", "--out", "no/such/folder/report.html")
    (tmp_path / "report.html").write_text("mine")
    assert "report.html exists" in fails("report", "one.json")
    assert (tmp_path / "report.html").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"broken.json", "one.json", "report.html"}


def test_many_policies_are_drawn_together() -> None:
    """More policies than series stand in a plot of their own with a row each, and a few policies need none."""
    found = [evaluation(f"version 1, diversity 0.{number}", 0.25 - number / 100) for number in range(6)]
    html = page([("shop", Results("log", "freshet replay", evaluations=found))])
    drawn = plots(html)["Policies"]
    assert len(marks(drawn, "circle", 0)) == len(found)
    words = drawn[1].text or ""
    assert all(policy.name in words for policy in found)
    assert "Policies" not in plots(page([("shop", everything())]))
