"""A candidate on trial: its lists beside the live version's, what workers say of it, and its end when it goes wrong.

A sample of the users who have just had their list, a degraded one too, is ranked once
more with both versions, beside the stream and at most so often; in shadow nothing of it
is published. So what a canary does on the stream is seen here at the rate at which it
happens there, with the live version's answer for the same users beside it: a server that
is away is no fault of the canary's. Every worker judges by what it measured itself. Two
that roll the same canary back write the same record; one that does so after an operator's
next step changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshet.core.comparison import Comparison, ComparisonWindow, Thresholds, out_of_band
from freshet.core.features import featurise
from freshet.core.rollout import MODEL, Report, Rollout, encode_record
from freshet.core.state import UserState
from freshet.ports import Encoded, Encoder, Message, Publisher, Unavailable
from freshet.process import metrics
from freshet.serving.list_maker import ListMaker, MadeList
from freshet.serving.live_versions import LiveVersions
from freshet.serving.servable_version import Candidate, ServableVersion
from freshet.settings import Settings

TRIAL_SHARE = 0.2
"""Most of the time that comparing may take."""
SAMPLE_USERS = 16
"""Most users that a sample counts for."""
TICK_SECONDS = 0.25
REPORT_SECONDS = 5.0
"""How often a comparison that goes on is reported; a change of versions is reported at once."""

Users = Sequence[tuple[str, UserState]]

log = logging.getLogger(__name__)


class _Answer(NamedTuple):
    """The encoder's input and outputs for some users, and how long it took."""

    history: NDArray[np.int32]
    encoded: Encoded
    ms: float


class CanaryAnalysis:
    """Compares, reports and judges; one for a worker, which `worker` names."""

    def __init__(
        self,
        settings: Settings,
        model: LiveVersions,
        encoder: Encoder,
        publisher: Publisher,
        worker: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`encoder` asks once a call: with a breaker what it says of one batch would be held against the next."""
        self._settings = settings
        self._model = model
        self._encoder = encoder
        self._publisher = publisher
        self._worker = worker
        self._clock = clock
        self._lists = ListMaker(settings)
        self._bands = bands(settings)
        self._step: Rollout | None = None
        self._comparing = ComparisonWindow(self._bands.lists)
        self._sample: list[tuple[str, UserState]] = []
        self._sampled = asyncio.Event()
        self._live_first = False
        self._said: tuple[int, int] = (0, 0)
        self._said_at = 0.0
        self._ended = 0

    def offer(self, users: Users, *, answered: bool = True) -> None:
        """A batch of users who have just had their lists; a sample is kept while there is a candidate and none waits.

        A batch that the encoder has not `answered` is kept whole, to be asked for as it was.
        """
        candidate = self._model.candidate
        if candidate is None or self._sample:
            return
        own = [(user, state) for user, state in users if candidate.has(user)]
        self._sample = own[:SAMPLE_USERS] if answered else own
        if self._sample:
            self._sampled.set()

    async def run(self) -> None:
        """Compare, report and judge, for ever."""
        comparing = asyncio.create_task(self._compare_samples())
        try:
            while not comparing.done():
                await self.report()
                await self.judge()
                await asyncio.sleep(TICK_SECONDS)
            await comparing
        finally:
            comparing.cancel()

    async def _compare_samples(self) -> None:
        while True:
            await self._sampled.wait()
            self._sampled.clear()
            sample, self._sample = self._sample, []
            await asyncio.sleep(await self.compare(sample) * (1 / TRIAL_SHARE - 1))

    async def compare(self, users: Users) -> float:
        """Make both lists of some users now; nothing is published.

        Returns the seconds of work in it: waiting for a version that does not answer is none.
        """
        began = time.monotonic()
        live, candidate = self._model.live, self._model.candidate
        if live is None or candidate is None:
            return 0.0
        self._follow(candidate)
        # the one that is asked second finds the caches warm, so they take turns
        pair = (live, candidate.ready) if self._live_first else (candidate.ready, live)
        self._live_first = not self._live_first
        encoded = {version.version: await self._encode(version, users) for version in pair}
        ours, theirs = encoded[live.version], encoded[candidate.ready.version]
        if ours is not None and theirs is None:
            # a server that goes or comes back between two calls fails one of them alone: the fault is the
            # candidate's where it has no answer on either side of the live version's
            ours, theirs = await self._encode(live, users), await self._encode(candidate.ready, users)
        if ours is None or self._model.candidate is not candidate or self._model.live is not live:
            return 0.0
        if theirs is None:
            failed = min(len(users), SAMPLE_USERS)
            self._comparing.add_failed(failed)
            metrics.CANDIDATE_LISTS.labels("failed").inc(failed)
            work = ours.ms / 1000
        else:
            self._comparing.add_times(ours.ms, theirs.ms)
            # both in one go, so that catalogue and popularity are the same for both
            for ours_made, theirs_made in zip(
                self._rank(live, users, ours), self._rank(candidate.ready, users, theirs), strict=True
            ):
                self._comparing.add(ours_made.items, theirs_made.items)
            metrics.CANDIDATE_LISTS.labels("compared").inc(len(users))
            work = time.monotonic() - began
        so_far = self._comparing.so_far()
        for figure in ("overlap", "score_gap", "live_ms", "candidate_ms"):
            metrics.CANDIDATE.labels(figure).set(getattr(so_far, figure))
        return work

    async def _encode(self, live: ServableVersion, users: Users) -> _Answer | None:
        """What the version's encoder answers; None where it does not."""
        tensors = featurise([state for _, state in users], live.item_index, live.type_index, live.length)
        began = time.perf_counter()
        try:
            encoded = await self._encoder.encode(tensors, live.version)
        except Unavailable:
            return None
        return _Answer(tensors["item_index"], encoded, (time.perf_counter() - began) * 1000)

    def _rank(self, live: ServableVersion, users: Users, answer: _Answer) -> list[MadeList]:
        names, states = [user for user, _ in users], [state for _, state in users]
        return self._lists.make(live, names, states, answer.history, answer.encoded)

    @property
    def comparison(self) -> Comparison:
        """What was measured of the candidate's stage so far."""
        return self._comparing.so_far()

    async def report(self) -> None:
        """Say which versions lists are made with, where that has changed or a comparison goes on."""
        live, candidate = self._model.live, self._model.candidate
        if live is None:
            return
        if candidate is not None:
            self._follow(candidate)
        versions = (live.version, candidate.step.version if candidate is not None else 0)
        now = time.monotonic()
        if versions == self._said and (candidate is None or now - self._said_at < REPORT_SECONDS):
            return
        comparison = self.comparison if candidate is not None else Comparison()
        report = Report(MODEL, self._worker, self._now_ms(), *versions, comparison)
        await self._publish(report)
        self._said, self._said_at = versions, now

    async def judge(self) -> None:
        """Roll the canary back when it leaves its bands."""
        candidate = self._model.candidate
        if candidate is None or candidate.step.stage != "canary" or candidate.step is not self._step:
            return
        step, why = candidate.step, out_of_band(self.comparison, self._bands)
        if why and step.version != self._ended:
            self._ended = step.version
            log.error("canary rolled back", extra={"version": step.version, "why": why})
            reason = f"{self._worker}: {why}"
            await self._publish(
                Rollout(MODEL, step.version, "rolled_back", self._now_ms(), reason=reason, judged=step.ts)
            )

    async def leave(self) -> None:
        """Take the report back: this worker makes no more lists."""
        key = Report(MODEL, self._worker, 0, 0).key
        await self._publisher.publish([Message(self._settings.models_topic, key, None)])

    def _follow(self, candidate: Candidate) -> None:
        """A new step of a candidate is measured anew."""
        if candidate.step is not self._step:
            self._step, self._comparing, self._ended = candidate.step, ComparisonWindow(self._bands.lists), 0

    async def _publish(self, record: Rollout | Report) -> None:
        await self._publisher.publish([Message(self._settings.models_topic, record.key, encode_record(record))])

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def bands(settings: Settings) -> Thresholds:
    """Within what a canary must stay."""
    return Thresholds(
        settings.canary_lists, settings.canary_error_rate, settings.canary_latency_ratio, settings.canary_overlap
    )
