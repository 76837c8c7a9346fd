"""Runs on record: parameters, curves and where they came from, in MLflow.

The default store is an SQLite file beside the checkpoints; any tracking URI of
MLflow's will do. MLflow is imported where a run is tracked, for that takes
seconds, and its telemetry is off.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any

RUN_TAG = "freshet.run"
MAX_PARAMETER = 500
"""MLflow's own limit on a parameter's length."""


class Tracker:
    """One run of an MLflow experiment; a run that was killed is gone on with."""

    def __init__(self, uri: str, experiment: str, run: str) -> None:
        """`run` is the digest that a resumed run is found by."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)

        self._client: Any = MlflowClient(uri)
        found = self._client.get_experiment_by_name(experiment)
        folder = found.experiment_id if found else self._client.create_experiment(experiment)
        killed = self._client.search_runs(
            [folder], f"tags.`{RUN_TAG}` = '{run}' and attributes.status = 'RUNNING'", max_results=1
        )
        made = killed[0] if killed else self._client.create_run(folder, tags={RUN_TAG: run})
        self._run: str = made.info.run_id

    def note(self, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """What the run was told, and where its data and code come from."""
        from mlflow.entities import Param, RunTag  # noqa: PLC0415 - as above

        told = [Param(name, str(value)[:MAX_PARAMETER]) for name, value in parameters.items()]
        self._client.log_batch(self._run, params=told, tags=[RunTag(name, text) for name, text in tags.items()])

    def log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Points of curves, all at once."""
        from mlflow.entities import Metric  # noqa: PLC0415 - as above

        now = int(time.time() * 1000)
        points = [Metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=points)

    def end(self, *, failed: bool = False) -> None:
        """The run is over."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def _name(text: str) -> str:
    """A metric's name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", text)
