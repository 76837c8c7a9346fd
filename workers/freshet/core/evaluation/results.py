"""What an evaluation found: the one form in which results are stored, compared and drawn.

A results file is the JSON of one `Results`; every part of it is optional, and
`freshet report` draws the parts that are there.
"""

from __future__ import annotations

import msgspec


class Estimate(msgspec.Struct, frozen=True):
    """A mean over `n` observations with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


class Slice(msgspec.Struct, frozen=True):
    """The metrics of a part of the log by name, lists cut at the evaluation's cutoff.

    `hr`, `ndcg` and `mrr` judge lists by what users did next. `coverage`, `gini`,
    `novelty` (bits), `intra_list_diversity` and `personalisation` concern the lists
    alone; slices by what the user did have none of them.
    """

    events: int
    users: int
    metrics: dict[str, Estimate]


class CalibrationBin(msgspec.Struct, frozen=True):
    """Slots whose predicted chance fell into one bin: the mean prediction, and how many came true."""

    predicted: float
    observed: Estimate


class Evaluation(msgspec.Struct, frozen=True):
    """One policy's lists, judged by what users did next.

    `slices` is by dimension (`all`, `day`, `type`, `segment`), then by value.
    `calibration_error` is the expected calibration error.
    """

    name: str
    cutoff: int
    slices: dict[str, dict[str, Slice]]
    calibration: list[CalibrationBin] = []
    calibration_error: Estimate | None = None


class Difference(msgspec.Struct, frozen=True):
    """`candidate` minus `baseline` on the same events, paired.

    `verdict` is `better`, `worse` or `no difference shown`.
    """

    baseline: str
    candidate: str
    metric: str
    estimate: Estimate
    verdict: str


class Interleaving(msgspec.Struct, frozen=True):
    """Team-draft interleaving: whose items the users picked.

    `preference` is the candidate's share of the lists that were decided.
    """

    baseline: str
    candidate: str
    wins: int
    losses: int
    ties: int
    preference: Estimate
    verdict: str


class FreshnessPoint(msgspec.Struct, frozen=True):
    """What lists are worth that are refreshed every `seconds` (0: at every event)."""

    label: str
    seconds: float
    metrics: dict[str, Estimate]
    against_freshest: dict[str, Estimate]
    """The paired difference to the first point."""


class OffPolicyEstimate(msgspec.Struct, frozen=True):
    """The value of a policy that was never live, estimated from logged propensities by one estimator.

    `mean_weight` is 1 where the propensities are right and the lists that were
    shown could have held all that the policy would show.
    """

    policy: str
    estimator: str
    value: Estimate
    effective_sample_size: float
    mean_weight: Estimate | None = None


class VariantReadout(msgspec.Struct, frozen=True):
    """What the users of one variant of an experiment did with their lists."""

    variant: str
    users: int
    lists: int
    metrics: dict[str, Estimate]


class Mismatch(msgspec.Struct, frozen=True):
    """One difference between what was published and what the replay says."""

    kind: str
    user_id: str
    partition: int
    offset: int
    detail: str


class Verification(msgspec.Struct, frozen=True):
    """Live against replayed: how many of each kind were compared and how many differ, with the first examples.

    `unverifiable` counts lists whose side inputs or events are no longer on record.
    """

    compared: dict[str, int]
    mismatches: dict[str, int]
    unverifiable: int
    examples: list[Mismatch]


class Results(msgspec.Struct, frozen=True):
    """Everything one command found; `source` says what was replayed, `command` how."""

    source: str
    command: str
    evaluations: list[Evaluation] = []
    comparisons: list[Difference] = []
    interleavings: list[Interleaving] = []
    freshness: list[FreshnessPoint] = []
    off_policy: list[OffPolicyEstimate] = []
    variants: list[VariantReadout] = []
    verification: Verification | None = None
