"""Grafana dashboards: what a first look, a worker, a version, the archive and the read service show."""

from __future__ import annotations

from typing import Any, NamedTuple

from freshet.process import metrics

from deploy.monitoring.queries import highest, lowest, per_second, quantile, summed

WIDTH, HEIGHT, COLUMNS = 8, 8, 3
SCHEMA = 39
"""Grafana's version of the dashboard format, that of Grafana 10."""


class Panel(NamedTuple):
    """A graph: its title, its unit in Grafana's words, and its curves by legend."""

    title: str
    unit: str
    curves: dict[str, str]
    about: str = ""


DASHBOARDS: dict[str, list[Panel]] = {
    "Freshet overview": [
        Panel("Events folded", "ops", {"events/s": per_second(metrics.FOLDED)}),
        Panel("Lists published", "ops", {"{{kind}}": per_second(metrics.LISTS, "kind")}),
        Panel(
            "From event to list",
            "s",
            {
                "p50": quantile(metrics.EVENT_TO_PUBLISH, 0.5),
                "p99": quantile(metrics.EVENT_TO_PUBLISH, 0.99),
            },
            "From the broker's timestamp of an event to the acknowledgement of its list.",
        ),
        Panel(
            "Lag",
            "short",
            {"partition {{partition}}": summed(metrics.LAG, "partition")},
            "Records behind the end.",
        ),
        Panel("Dead letters", "ops", {"{{reason}}": per_second(metrics.DEAD_LETTERS, "reason")}),
        Panel(
            "Lost to retention",
            "ops",
            {"partition {{partition}}": per_second(metrics.LOST, "partition")},
            "Records that were deleted before they were folded.",
        ),
    ],
    "Freshet worker": [
        Panel("Time of a step", "s", {"{{step}} p99": quantile(metrics.STEP, 0.99, "step")}),
        Panel("Events in a micro-batch", "short", {"p50": quantile(metrics.BATCH_EVENTS, 0.5)}),
        Panel("Events that changed no state", "ops", {"{{reason}}": per_second(metrics.SKIPPED, "reason")}),
        Panel("Feature writes tried again", "ops", {"tries/s": per_second(metrics.FEATURE_RETRIES)}),
        Panel(
            "Features restored",
            "ops",
            {"users/s": per_second(metrics.FEATURES_RESTORED)},
            "Users whose features were written again after the online store had lost some.",
        ),
        Panel(
            "States without room",
            "ops",
            {"written/s": per_second(metrics.STATES_FULL), "left out/s": per_second(metrics.REFUSED_STATES)},
        ),
        Panel("Outputs refused as too large", "ops", {"{{topic}}": per_second(metrics.REFUSED, "topic")}),
    ],
    "Freshet living lists": [
        Panel(
            "Made again",
            "ops",
            {
                "{{cause}}": per_second(metrics.LIVING_LISTS, "cause"),
                "as it stood": per_second(metrics.LIVING_UNCHANGED),
            },
            "Lists made again without their user, by cause; those that came out as they stood are not published.",
        ),
        Panel("Waiting", "short", {"lists": summed(metrics.LIVING_WAITING)}),
        Panel("Behind", "s", {"longest wait": highest(metrics.LIVING_BEHIND)}),
        Panel(
            "Of the live version",
            "percentunit",
            {"lowest share": lowest(metrics.LIVING_SHARE)},
            "Share of the lists of users within the horizon, of the worker that is furthest behind.",
        ),
        Panel("Memory of the record", "bytes", {"all workers": summed(metrics.LIVING_BYTES)}),
    ],
    "Freshet model and canary": [
        Panel(
            "Versions",
            "short",
            {
                "live": highest(metrics.MODEL_VERSION),
                "candidate": highest(metrics.CANDIDATE_VERSION),
            },
        ),
        Panel("How the candidate compares", "short", {"{{figure}}": highest(metrics.CANDIDATE, "figure")}),
        Panel("Users compared", "ops", {"{{outcome}}": per_second(metrics.CANDIDATE_LISTS, "outcome")}),
        Panel(
            "Encoder's breaker",
            "short",
            {"version {{version}}": highest(metrics.BREAKER_OPEN, "version")},
        ),
        Panel(
            "New items",
            "short",
            {
                "rankable": highest(metrics.COLD_ITEMS),
                "texts skipped/s": per_second(metrics.SKIPPED_TEXTS),
            },
        ),
        Panel("Unreadable side inputs", "ops", {"{{topic}}": per_second(metrics.BAD_SIDE_INPUTS, "topic")}),
    ],
    "Freshet archive": [
        Panel("Archived", "ops", {"{{topic}}": per_second(metrics.ARCHIVED, "topic")}),
        Panel("Behind", "short", {"{{topic}}": summed(metrics.ARCHIVE_LAG, "topic")}),
        Panel("Files", "ops", {"{{change}}": per_second(metrics.ARCHIVE_FILES, "change")}),
        Panel("Lost to retention", "ops", {"{{topic}}": per_second(metrics.ARCHIVE_LOST, "topic")}),
    ],
    "Freshet read service": [
        Panel("Slowest requests", "s", {"{{route}} p99": f"{quantile(metrics.REQUESTS, 0.99, 'route')} or vector(0)"}),
        Panel("Lists read", "ops", {"{{kind}}": per_second(metrics.READ_LISTS, "kind")}),
        Panel("Open streams", "short", {"streams": summed(metrics.STREAMS)}),
        Panel("Slow readers dropped", "ops", {"dropped": per_second(metrics.STREAMS_DROPPED)}),
    ],
}
"""Each dashboard's panels, in the order in which they are read."""


def dashboard(title: str) -> dict[str, Any]:
    """A dashboard in Grafana's format, for whichever Prometheus the reader picks."""
    source = {"type": "prometheus", "uid": "${prometheus}"}
    picker = {"name": "prometheus", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    panels = [_panel(number, panel, source) for number, panel in enumerate(DASHBOARDS[title])]
    return {
        "uid": slug(title),
        "title": title,
        "tags": ["freshet"],
        "schemaVersion": SCHEMA,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [picker]},
        "panels": panels,
    }


def slug(title: str) -> str:
    """A title as a file name."""
    return title.lower().replace(" ", "-")


def _panel(number: int, panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": source,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + curve), "expr": query, "legendFormat": legend, "datasource": source}
            for curve, (legend, query) in enumerate(panel.curves.items())
        ],
    }
