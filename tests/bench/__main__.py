"""`freshet bench`: everything on real parts, each figure beside a baseline timed in the same run.

    python -m tests.bench [--json FILE] [--quick] [--only PART …]

Starts a stack of its own in a scratch folder and stops it. Machines are noisy:
read the ratios, not the rates.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freshet.adapters.feast import apply
from freshet.settings import Settings
from rich.console import Console
from rich.table import Table

from deploy import local
from deploy.demo import movielens
from tests.bench import (
    archiving,
    bytewax_fold,
    faust_per_event,
    freshet_fold,
    harness,
    quix_fold,
    quix_full,
    read_service,
    stream,
    triton_alone,
    whole_path,
)
from tests.bench import living as living_lists
from tests.bench import replay as replay_log

PER_EVENT_EVENTS = 1500
ITEM_IDS = "user_encoder/1/item_ids.json"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    backlog_events: int
    backlog_users: int
    fold_events: int
    fold_users: int
    latency_s: float
    living_users: int
    populations: tuple[int, ...]
    triton_s: float
    replay_events: int
    replay_users: int


FULL = Sizes(60_000, 20_000, 600_000, 10_000, 30.0, 100_000, (10_000, 100_000), 8.0, 100_000, 25_000)
QUICK = Sizes(12_000, 4_000, 150_000, 5_000, 12.0, 5_000, (5_000,), 4.0, 30_000, 6_000)


def whole(stack: local.Stack, sizes: Sizes) -> dict[str, Any]:
    """The whole path on both stores, against Triton alone and the usual ways of writing the job."""
    bundle = str(stack.models / "user_encoder" / "1")
    alone = [triton_alone.run(triton=stack.triton_grpc, bundle=bundle, seconds=sizes.triton_s)]
    figures = {}
    for store, address in (("sqlite", "sqlite"), ("redis", f"redis://{stack.redis}")):
        figures[f"freshet on {store}"] = whole_path.throughput(
            stack,
            f"whole-{store}",
            users=sizes.backlog_users,
            events=sizes.backlog_events,
            online_store=address,
            distribution="cycle",
        )
        alone.append(triton_alone.run(triton=stack.triton_grpc, bundle=bundle, seconds=sizes.triton_s))
    events = {
        "kafka": stack.bootstrap,
        "triton": stack.triton_grpc,
        "events_topic": "usual.events",
        "events": PER_EVENT_EVENTS,
        "bundle": bundle,
    }
    stream.produce(
        kafka=stack.bootstrap,
        topic="usual.events",
        users=PER_EVENT_EVENTS,
        events=PER_EVENT_EVENTS,
        distribution="cycle",
        item_ids=str(stack.models / ITEM_IDS),
    )
    for name, comparator in (("faust per event", faust_per_event), ("quix per event", quix_full)):
        for feast in (False, True):
            repo = str(_feature_repo(stack, f"{name}-{feast}")) if feast else None
            label = f"{name}{'' if feast else ', no Feast'}"
            figures[label] = comparator.run(
                **events, output_topic=f"usual.{name.split()[0]}.{feast}", feature_repo=repo, timeout_s=900
            )
    best_alone = max(run["users_per_s"] for run in alone)
    per_event = figures["faust per event"]["users_per_s"]
    for row in figures.values():
        row["x_faust_per_event"] = round(row["users_per_s"] / per_event, 2)
        row["of_triton_alone"] = round(row["users_per_s"] / best_alone, 3)
    figures["triton alone, batch 64"] = {"users_per_s": best_alone, "runs": [run["users_per_s"] for run in alone]}
    return figures


def fold(stack: local.Stack, sizes: Sizes) -> dict[str, Any]:
    """Fold-only ingest on one core, the broker on the other."""
    figures: dict[str, Any] = {}
    broker = stack.processes["kafka"].pid
    for distribution in ("zipf", "uniform"):
        topic = f"fold.{distribution}"
        stream.produce(
            kafka=stack.bootstrap,
            topic=topic,
            users=sizes.fold_users,
            events=sizes.fold_events,
            distribution=distribution,
        )
        cores = {"pin_core": 0} if os.cpu_count() != 1 else {}
        with harness.pinned(broker, max(os.sched_getaffinity(0))):
            for name, comparator in (
                ("freshet", freshet_fold),
                ("quix", quix_fold),
                ("bytewax, in memory", bytewax_fold),
            ):
                figures[f"{name}, {distribution}"] = comparator.run(
                    kafka=stack.bootstrap, topic=topic, events=sizes.fold_events, timeout_s=900, **cores
                )
        quix = figures[f"quix, {distribution}"]["events_per_s"]
        for name in ("freshet", "quix", "bytewax, in memory"):
            row = figures[f"{name}, {distribution}"]
            row["x_quix"] = round(row["events_per_s"] / quix, 2)
    return figures


def latency(stack: local.Stack, sizes: Sizes) -> dict[str, Any]:
    """Produce to consume at 500 events a second."""
    return {"500 events/s": whole_path.latency(stack, "latency", rate=500, seconds=sizes.latency_s)}


def living(stack: local.Stack, sizes: Sizes) -> dict[str, Any]:
    """Own events beside living lists and without them, and a sold-out item leaving everybody's list."""
    return living_lists.measure(stack, "living", users=sizes.living_users, rate=500, seconds=sizes.latency_s)


def population(stack: local.Stack, sizes: Sizes) -> dict[str, Any]:
    """Memory, disk and restarts by number of users."""
    return {
        f"{users:,} users": whole_path.restarts(stack, f"users-{users}", users=users) for users in sizes.populations
    }


def replay(stack: local.Stack, sizes: Sizes) -> dict[str, Any]:
    """A log through the serving code on one core (inference on both), the live path beside it."""
    models = str(stack.models)
    log = stack.directory / "movielens"
    movielens.convert(movielens.FOLDER, log)
    figures: dict[str, Any] = {}
    for times in (1, 10):
        stream.produce(
            kafka=stack.bootstrap,
            topic=f"replay.{times}",
            users=sizes.replay_users * times,
            events=sizes.replay_events * times,
        )
    log_of = {"kafka": stack.bootstrap, "timeout_s": 900, "pin_core": 0}
    with harness.pinned(stack.processes["kafka"].pid, max(os.sched_getaffinity(0))):
        figures["fold only"] = replay_log.run(topic="replay.1", **log_of)
        figures["fold only, RocksDB"] = replay_log.run(topic="replay.1", state="rocksdb", **log_of)
        figures["fold only, RocksDB, ten times the log"] = replay_log.run(topic="replay.10", state="rocksdb", **log_of)
        live = freshet_fold.run(topic="replay.1", events=sizes.replay_events, **log_of)
    figures["live, fold only"] = live
    figures["lists, MovieLens-100K"] = replay_log.run(file=str(log / "events.jsonl"), models=models)
    figures["lists, MovieLens-100K, one core"] = replay_log.run(
        file=str(log / "events.jsonl"), models=models, pin_core=0
    )
    whole = whole_path.throughput(
        stack,
        "replay-live",
        users=sizes.backlog_users,
        events=sizes.backlog_events,
        online_store="sqlite",
        distribution="cycle",
    )
    figures["live, whole path"] = whole | {"lists_per_s": whole["users_per_s"]}
    for name, row in figures.items():
        if name.startswith("fold"):
            row["x_live"] = round(row["events_per_s"] / live["events_per_s"], 2)
        elif name.startswith("lists"):
            row["x_live"] = round(row["lists_per_s"] / whole["users_per_s"], 2)
    return figures


def archive(stack: local.Stack, sizes: Sizes) -> dict[str, Any]:
    """Archiving a topic to Parquet on one core, against consuming it with the same client; the broker on the other."""
    topic = {"kafka": stack.bootstrap, "topic": "archive.events", "events": sizes.fold_events}
    stream.produce(**topic, users=sizes.fold_users)
    beside = {"items_topic": "archive.items", "popularity_topic": "archive.popularity"}
    for name in beside.values():
        stream.ensure_topic(stack.bootstrap, name, 1)
    cores = {"pin_core": 0} if os.cpu_count() != 1 else {}
    with harness.pinned(stack.processes["kafka"].pid, max(os.sched_getaffinity(0))):
        figures = {
            name: archiving.run(**topic, **beside, how=how, timeout_s=600, **cores)
            for name, how in (("consumed alone", "consume"), ("freshet archive", "archive"))
        }
    alone = figures["consumed alone"]["events_per_s"]
    for row in figures.values():
        row["of_consumed_alone"] = round(row["events_per_s"] / alone, 3)
    return figures


def serve(stack: local.Stack, sizes: Sizes) -> dict[str, Any]:
    """Lists over HTTP beside 200 events a second, and what `feast serve` with a Triton client does."""
    return read_service.measure(stack, "serve", rate=200, seconds=sizes.latency_s)


PARTS: dict[str, Callable[[local.Stack, Sizes], dict[str, Any]]] = {
    "whole": whole,
    "fold": fold,
    "latency": latency,
    "living": living,
    "population": population,
    "replay": replay,
    "archive": archive,
    "serve": serve,
}


SHOWN = {
    "whole": ("users_per_s", "x_faust_per_event", "of_triton_alone", "cpu_us_per_user", "degraded", "rss_mb"),
    "fold": ("events_per_s", "x_quix", "cpu_us_per_event", "peak_rss_mb"),
    "latency": ("lists", "p50_ms", "p90_ms", "p99_ms"),
    "living": (
        *("lists", "left", "p50_ms", "p99_ms", "p50_x_off", "p99_x_off", "again_per_s", "p50_s", "p99_s"),
        *("lists_per_s", "bytes_per_user"),
    ),
    "population": ("rss_mb", "state_disk_bytes_per_user", "restart_warm_s", "restart_wiped_s"),
    "replay": ("events_per_s", "lists_per_s", "x_live", "cpu_us_per_event", "peak_rss_mb"),
    "archive": ("events_per_s", "of_consumed_alone", "cpu_us_per_event", "bytes_per_event", "peak_rss_mb"),
    "serve": ("p50_ms", "p90_ms", "p99_ms", "requests_per_s", "x_usual"),
}
"""Columns of the tables; the JSON has everything."""


def main() -> None:
    """Run the parts asked for and print their tables."""
    parser = argparse.ArgumentParser(prog="freshet bench", description="Measure on real parts, beside baselines.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    parser.add_argument("--quick", action="store_true", help="small sizes: a look, not a result")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    results: dict[str, Any] = {"machine": f"{os.cpu_count()} cores, {platform.platform()}"}
    with ExitStack() as at_the_end:
        folder = Path(at_the_end.enter_context(tempfile.TemporaryDirectory(prefix="freshet-bench-")))
        stack = local.start(folder, redis=True)
        at_the_end.callback(local.stop, stack)
        for part in arguments.only:
            results[part] = PARTS[part](stack, QUICK if arguments.quick else FULL)
            console.print(_table(part, results[part]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _table(part: str, rows: dict[str, Any]) -> Table:
    table = Table(title=f"{part}: {inspect.getdoc(PARTS[part])}", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    columns = [name for name in SHOWN[part] if any(name in row for row in rows.values())]
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:,}" if column in row else "" for column in columns))
    return table


def _feature_repo(stack: local.Stack, name: str) -> Path:
    """A freshly applied feature repository of its own, on SQLite."""
    folder = stack.directory / "feast" / name.replace(" ", "-")
    apply(Settings(feature_repo=str(harness.ROOT / "feature_repo"), feast_dir=str(folder)))
    shutil.copy(harness.ROOT / "feature_repo" / "definitions.py", folder)
    return folder


if __name__ == "__main__":
    try:
        main()
    except (local.StackError, harness.ComparatorError) as error:
        sys.exit(f"freshet bench: {error}")
