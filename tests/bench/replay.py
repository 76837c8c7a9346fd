"""`freshet replay` of a log: events folded, lists made, memory held.

The log is a topic (`kafka`, `topic`) or a file of JSON lines (`file`); with
`models` (a model repository) lists are made by its first version, in process,
else it only folds. States are in memory, or in RocksDB (`state`).
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from freshet.ports import WHOLE
from freshet.replay.job import ReplayJob, run_job
from freshet.settings import Settings

from deploy.local.parts import TEXT_ENCODER
from tests.bench import harness


def measure(
    *,
    kafka: str | None = None,
    topic: str | None = None,
    file: str | None = None,
    models: str | None = None,
    state: str = "memory",
) -> harness.Figures:
    """Replay the whole log at full speed."""
    settings = Settings(kafka=kafka or "", model_repository=models or "")
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder:
        job = ReplayJob(
            settings=settings,
            source=file or f"kafka:{topic}",
            folder=Path(folder) / "out",
            versions=[1] if models else [],
            window=WHOLE,
            text_encoder=TEXT_ENCODER,
            states_on_disk=state == "rocksdb",
        )
        began: list[float] = []
        summary = asyncio.run(
            run_job(
                job,
                "freshet bench",
                started=lambda _total: began.append(time.process_time()),
                advanced=lambda _count: None,
            )
        )
    return {
        "system": "freshet replay",
        "events": summary.records,
        "seconds": summary.seconds,
        "events_per_s": summary.events_per_second,
        "lists_per_s": round(summary.counts.get("lists", 0) / summary.seconds, 1),
        "cpu_us_per_event": round((time.process_time() - began[0]) / summary.records * 1e6, 2),
        "peak_rss_mb": round(harness.peak_rss_mb(), 1),
    }


run = harness.launcher(measure)

if __name__ == "__main__":
    harness.command_line(measure)
