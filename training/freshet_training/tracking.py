"""Runs on record: parameters, curves and where they came from, in MLflow.

The default store is an SQLite file beside the checkpoints; any tracking URI of
MLflow's will do. A store that fails while a run is under way loses the rest of
its record, never the run. MLflow is imported where a run is tracked, for that takes
seconds, and its telemetry is off.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from freshet.errors import FreshetError
from freshet.files import write_whole

from freshet_training.console import say

PLACE_TAG = "freshet.place"
RUN_TAG = "freshet.run"
MAX_PARAMETER = 500
"""MLflow's own limit on a parameter's length."""


class TrackingError(FreshetError):
    """MLflow's store cannot be used; the message is its first line."""


@contextmanager
def _plainly() -> Iterator[None]:
    """MLflow's errors, and those of the database under it, as `TrackingError`."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - takes seconds
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - as above

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise TrackingError(f"tracking: {str(error).splitlines()[0]}") from None


class MlflowTracker:
    """One run of an MLflow experiment; where the store fails it says so once and records no more."""

    def __init__(self, uri: str, experiment: str, run: str, work: Path) -> None:
        """Go on with the run of digest `run` that was killed in the folder `work`, or begin one.

        Others that were killed there are ended: only one at a time is at work in a folder. Raises `TrackingError`.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)

        work_place = _place(work)
        with _plainly():
            self._client: Any = MlflowClient(uri)
            found = self._client.get_experiment_by_name(experiment)
            folder = found.experiment_id if found else self._client.create_experiment(experiment)
            of_this_place = f"tags.`{PLACE_TAG}` = '{work_place}' and attributes.status = 'RUNNING'"
            killed = self._client.search_runs([folder], of_this_place)
            same = [attempt for attempt in killed if attempt.data.tags[RUN_TAG] == run][:1]
            for abandoned in killed:
                if abandoned not in same:
                    self._client.set_terminated(abandoned.info.run_id, "KILLED")
            tags = {RUN_TAG: run, PLACE_TAG: work_place}
            self._run: str = (same[0] if same else self._client.create_run(folder, tags=tags)).info.run_id
        self._lost = False

    def note(self, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """What the run was told, and where its data and code come from."""
        from mlflow.entities import Param, RunTag  # noqa: PLC0415 - as above

        told = [Param(name, str(value)[:MAX_PARAMETER]) for name, value in parameters.items()]
        noted = [RunTag(name, text) for name, text in tags.items()]
        self._record(lambda: self._client.log_batch(self._run, params=told, tags=noted))

    def log(self, values: Mapping[str, float], step: int = 0) -> None:
        """Points of curves, all at once."""
        from mlflow.entities import Metric  # noqa: PLC0415 - as above

        now = int(time.time() * 1000)
        points = [Metric(_name(name), value, now, step) for name, value in values.items()]
        self._record(lambda: self._client.log_batch(self._run, metrics=points))

    def end(self, *, failed: bool = False) -> None:
        """The run is over."""
        self._record(lambda: self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED"))

    def _record(self, write: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            with _plainly():
                write()
        except TrackingError as error:
            self._lost = True
            say(f"{error}; the run goes on without its record")


def _place(work: Path) -> str:
    """What tells a folder's runs from those of others in a store that they share."""
    file = work / "tracking.id"
    if not file.exists():
        write_whole(file, uuid4().hex.encode())
    return file.read_text()


def _name(text: str) -> str:
    """A metric's name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", text)
