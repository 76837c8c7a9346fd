"""PromQL over a worker's and an archiver's metrics, and over no other name."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

WINDOW = "5m"


def name(metric: Counter | Gauge | Histogram) -> str:
    """The name of a metric; a counter's series has `_total` behind it, a histogram's buckets have `_bucket`."""
    [family] = metric.describe()
    return family.name


def total(counter: Counter) -> str:
    """The name of a counter's series."""
    return f"{name(counter)}_total"


def per_second(counter: Counter, by: str = "") -> str:
    """How often a counter goes up, by a label or in all; 0 where nothing was ever counted."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped}(rate({total(counter)}[{WINDOW}])) or vector(0)"


def increase(counter: Counter) -> str:
    """By how much a counter went up within the window, at most twice as much.

    `increase` alone says nothing of a series that begins with its first count, as one with a label does.
    """
    series = total(counter)
    begun = f"sum({series} unless {series} offset {WINDOW}) or vector(0)"
    return f"(({begun}) + (sum(increase({series}[{WINDOW}])) or vector(0)))"


def quantile(histogram: Histogram, share: float, by: str = "") -> str:
    """A quantile within the window, in the histogram's unit."""
    grouped = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({grouped}) (rate({name(histogram)}_bucket[{WINDOW}])))"


def highest(gauge: Gauge, by: str = "") -> str:
    """The highest value of a gauge over all processes, by a label or in all; 0 where nothing was ever set."""
    return _over_processes("max", gauge, by)


def lowest(gauge: Gauge, by: str = "") -> str:
    """The lowest value of a gauge over all processes, by a label or in all; 0 where nothing was ever set."""
    return _over_processes("min", gauge, by)


def summed(gauge: Gauge, by: str = "") -> str:
    """The sum of a gauge over all processes, by a label or in all; 0 where nothing was ever set."""
    return _over_processes("sum", gauge, by)


def _over_processes(function: str, gauge: Gauge, by: str) -> str:
    grouped = f" by ({by})" if by else ""
    return f"{function}{grouped}({name(gauge)}) or vector(0)"
