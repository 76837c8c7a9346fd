"""Prometheus alert rules: what somebody must look at, and what to do about it."""

from __future__ import annotations

from typing import Any, NamedTuple

from freshet.process import metrics

from deploy.monitoring.queries import increase, name, quantile, total

LAG = name(metrics.LAG)


class Alert(NamedTuple):
    """A rule: when it fires, after how long, and what the operator reads."""

    name: str
    expression: str
    lasting: str
    severity: str
    summary: str
    remedy: str


ALERTS = (
    Alert(
        "FreshetEventsLost",
        f"{increase(metrics.LOST)} > 0",
        "0m",
        "critical",
        "Retention deleted events before they were folded.",
        "Raise retention.ms of the events topic, or run more workers; `freshet check` names the offsets.",
    ),
    Alert(
        "FreshetLagGrows",
        f"sum(deriv({LAG}[10m])) > 0 and sum({LAG}) > 10000",
        "10m",
        "warning",
        "The workers fall behind.",
        "Start more workers, up to as many as the events topic has partitions.",
    ),
    Alert(
        "FreshetListsAreLate",
        f"{quantile(metrics.EVENT_TO_PUBLISH, 0.99)} > 1",
        "10m",
        "warning",
        "One list in a hundred comes later than a second after its event.",
        "Look at the steps of the dashboard `Freshet worker`: the slowest step says which part is short.",
    ),
    Alert(
        "FreshetNoLists",
        f"sum(rate({total(metrics.LISTS)}[5m])) == 0 and sum({LAG}) > 0",
        "5m",
        "critical",
        "Events wait, and no list is published.",
        "Read the last line of each worker's log, and `/readyz`.",
    ),
    Alert(
        "FreshetDeadLetters",
        f"{increase(metrics.DEAD_LETTERS)} > 0.01 * {increase(metrics.FOLDED)}",
        "10m",
        "warning",
        "More than one record in a hundred is a dead letter.",
        "`freshet dlq list` shows the records and their reasons.",
    ),
    Alert(
        "FreshetEncoderAway",
        f"max({name(metrics.BREAKER_OPEN)}) > 0",
        "1m",
        "critical",
        "Triton does not answer, and lists are degraded.",
        "Look at Triton's log; `freshet check` says whether the version is ready.",
    ),
    Alert(
        "FreshetWorkersDisagree",
        f"count(count_values('version', {name(metrics.MODEL_VERSION)})) > 1",
        "10m",
        "warning",
        "Workers make lists with different versions.",
        "`freshet models` shows what each worker serves, and why one waits.",
    ),
    Alert(
        "FreshetBadSideInputs",
        f"{increase(metrics.BAD_SIDE_INPUTS)} > 0",
        "0m",
        "warning",
        "A record of items, models or popularity cannot be read.",
        "The worker's log names topic and offset.",
    ),
    Alert(
        "FreshetArchiveLost",
        f"{increase(metrics.ARCHIVE_LOST)} > 0",
        "0m",
        "critical",
        "Retention deleted records before they were archived.",
        "Raise the topic's retention.ms, and see that an archiver runs.",
    ),
)


def rules() -> dict[str, Any]:
    """The rules in Prometheus' format."""
    return {
        "groups": [
            {
                "name": "freshet",
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": alert.expression,
                        "for": alert.lasting,
                        "labels": {"severity": alert.severity},
                        "annotations": {"summary": alert.summary, "description": alert.remedy},
                    }
                    for alert in ALERTS
                ],
            }
        ]
    }
