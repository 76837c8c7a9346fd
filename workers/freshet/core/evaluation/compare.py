"""Two policies on the same events: the paired difference and what it says."""

from __future__ import annotations

from freshet.core.evaluation.buckets import paired, verdict
from freshet.core.evaluation.prequential import METRICS, Prequential
from freshet.core.evaluation.results import Difference


def difference(baseline: Prequential, candidate: Prequential, metric: str) -> Difference:
    """`candidate` minus `baseline` in one of `METRICS`, paired over users.

    Raises `ValueError` where the two have not judged the same events.
    """
    estimate = paired(baseline.sums(), candidate.sums(), seed=0)[METRICS.index(metric)]
    return Difference(baseline.name, candidate.name, metric, estimate, verdict(estimate))
