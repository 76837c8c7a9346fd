"""Dashboards and alerts: the files are what the code makes, and ask for metrics that there are, by their own labels."""

import json
import re

import pytest
import yaml
from freshet.process import metrics
from prometheus_client.metrics import MetricWrapperBase

from deploy.monitoring.__main__ import HERE, files
from deploy.monitoring.dashboards import DASHBOARDS, dashboard

METRICS = {
    family.name: metric
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
    for family in metric.describe()
}
NAME = re.compile(r"\bfreshet_\w+")
GROUPED = re.compile(r"by \(([^)]*)\)")


def queries() -> list[str]:
    """Every query of every dashboard and rule, as the files have it."""
    shown = [
        target["expr"] for title in DASHBOARDS for panel in dashboard(title)["panels"] for target in panel["targets"]
    ]
    rules = yaml.safe_load((HERE / "alerts.yaml").read_text())["groups"][0]["rules"]
    return shown + [rule["expr"] for rule in rules]


def family(series: str) -> str:
    """The metric of a series."""
    return next(
        name for name in (series, series.removesuffix("_total"), series.removesuffix("_bucket")) if name in METRICS
    )


@pytest.mark.parametrize("name", sorted(files()))
def test_the_files_are_what_the_code_makes(name: str) -> None:
    """A checked-in file differs from what `python -m deploy.monitoring` writes in no byte."""
    assert (HERE / name).read_text() == files()[name]


def test_queries_ask_for_metrics_that_there_are() -> None:
    """Each query names metrics of the code alone, and groups by labels that the metrics have."""
    for query in queries():
        series = NAME.findall(query)
        assert series
        labels = {"le"}.union(*(METRICS[family(each)]._labelnames for each in series))
        for grouped in GROUPED.findall(query):
            assert {label.strip() for label in grouped.split(",")} <= labels


def test_every_metric_is_shown() -> None:
    """A metric that no dashboard shows is one that nobody sees."""
    shown = {family(series) for query in queries() for series in NAME.findall(query)}
    assert shown == set(METRICS)


def test_every_panel_has_its_own_place() -> None:
    """Panels neither overlap nor share an id, and the dashboard is plain JSON."""
    for title in DASHBOARDS:
        made = json.loads(files()[f"{dashboard(title)['uid']}.json"])
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in made["panels"]]
        assert len(set(places)) == len(places) == len({panel["id"] for panel in made["panels"]})
