"""`freshet quality`: the model on public protocols, full ranking, beside baselines fitted in the same run.

    python -m tests.quality [--data DIR] [--movielens DIR] [--seeds N] [--only PART …] [--json FILE]

Runs in the training environment. Figures are of the test part, which no choice
has looked at; epochs and the baselines' settings are chosen on validation.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from freshet_training.config import TrainingConfig, load_config
from freshet_training.text.encoder import TextEncoder
from rich.console import Console
from rich.table import Table

from tests.quality import (
    baselines,
    before_training,
    cost,
    diversity,
    fine_tuning,
    first_events,
    logs,
    off_policy,
    prequential,
)
from tests.quality.encoder import train_encoder
from tests.quality.ranking import Case, Floats, LeaveOneOut, Ranks, Scorer, judge, leave_one_out, pooled

ROOT = Path(__file__).resolve().parents[2]
PARTS = ROOT / ".parts"
CACHE = PARTS / "quality"
HELD_OUT_USERS = 1536
CURVE_CASES = 4000
FOLDS = 3
NEW_USERS_EVENTS = (1, 2, 5, 10, 20)
STREAM_EPOCHS = 20
"""Of each of the trainings on a stream, of which no part is held back to choose by: about as many as `freshet train`
keeps where it chooses, on MovieLens-100K by time (22 to 26)."""
Figures = dict[str, dict[str, Any]]

DOMAINS = ROOT / "deploy" / "domains"
BEAUTY = load_config(DOMAINS / "beauty.toml")
FILMS = load_config(DOMAINS / "films.toml")
LONG = {"length": 200, "dim": 128, "feed_forward": 256, "dropout": 0.3, "attention_dropout": 0.0}
FILMS_LONG = load_config(
    DOMAINS / "films.toml", history=200, overlap=0.1, positions=2048, negatives=600, average=0.998, model=LONG
)
"""MovieLens-1M is ten times as large, with long histories."""
NEWS = load_config(DOMAINS / "news.toml")


PEER_EPOCHS = {"beauty": 20, "ml-100k": 40}
PEER_MINUTES = 15.0
"""The peers run for as many epochs on these data sets, having no early stopping of their own, or for so long."""


@dataclass(frozen=True)
class Run:
    """What a part is told; `peers` is their interpreter."""

    data: Path
    movielens: Path
    seeds: int
    threads: int
    peers: Path
    embed: Callable[[list[str]], Floats]

    def settings(self, config: TrainingConfig, seed: int) -> TrainingConfig:
        """A domain's settings with a seed, on the threads allowed."""
        return msgspec.structs.replace(config, seed=seed, threads=self.threads)


def beauty(run: Run) -> Figures:
    """Amazon Beauty, leave-one-out."""
    log = logs.beauty(run.data)
    return _leave_one_out(leave_one_out(log.users, log.texts), BEAUTY, run, PEER_EPOCHS["beauty"])


def movielens_100k(run: Run) -> Figures:
    """MovieLens-100K, leave-one-out."""
    log, _ = logs.movielens_100k(run.movielens)
    return _leave_one_out(leave_one_out(log.users, log.texts), FILMS, run, PEER_EPOCHS["ml-100k"])


def new_users(run: Run) -> Figures:
    """MovieLens-100K's next items of users who are in no training row, after so many of their events: three folds."""
    log, _ = logs.movielens_100k(run.movielens)
    texts = run.embed(log.texts)
    fold_of = np.random.default_rng(0).permutation(len(log.users)) % FOLDS
    ranks: dict[str, list[Ranks]] = {}
    for fold in range(FOLDS):
        split = leave_one_out([log.users[user] for user in np.flatnonzero(fold_of != fold)], log.texts)
        new = [log.users[user] for user in np.flatnonzero(fold_of == fold)]
        cases: dict[str, list[Case]] = {
            str(events): [(items[:events], items[events]) for items in new if len(items) > events]
            for events in NEW_USERS_EVENTS
        }
        cases["all but the last"] = [(items[:-1], items[-1]) for items in new]
        scorers = {
            "popularity": baselines.popularity(split),
            "ItemKNN (TF-IDF)": baselines.item_knn(split),
            "Freshet": train_encoder(split, texts, run.settings(FILMS, fold)).score,
        }
        for name, score in scorers.items():
            for after, cases_after in cases.items():
                ranks.setdefault(f"{name}, after {after}", []).append(judge(score, cases_after))
    return {name: pooled(folds) for name, folds in ranks.items()}


def before_the_first_event(run: Run) -> Figures:
    """Users' first events: popularity now, with all or in the visitor's context, on MovieLens-100K and Deskdrop."""
    _, films = logs.movielens_100k(run.movielens)
    people = logs.movielens_people(run.movielens)
    news = logs.deskdrop(run.data)
    figures = {
        "films": first_events.measure(films, people, FILMS.popularity_half_life),
        "news": first_events.measure(news, first_events.times_of_day(news), NEWS.popularity_half_life),
        "news, half-life of films": first_events.measure(news, {}, FILMS.popularity_half_life),
    }
    return {f"{data}: {name}": row for data, rows in figures.items() for name, row in rows.items()}


def before_any_training(run: Run) -> Figures:
    """Last items by the version of a catalogue alone, which has seen no event, on Beauty, Sports and MovieLens-1M."""
    films, _ = logs.movielens_1m(run.data)
    figures = {}
    for name, log in (("Beauty", logs.beauty(run.data)), ("Sports", logs.sports(run.data)), ("films", films)):
        figures |= {
            f"{name}: {ranker}": row for ranker, row in before_training.measure(log, run.embed(log.texts)).items()
        }
    return figures


def movielens_1m(run: Run) -> Figures:
    """MovieLens-1M, gSASRec's 512 validation users; the epoch is chosen on the last items of other users."""
    log, cases = logs.movielens_1m(run.data)
    others = np.random.default_rng(0).permutation(len(log.users))[:HELD_OUT_USERS]
    validation: list[Case] = [(log.users[user][:-1], log.users[user][-1]) for user in others]
    train = [items[:-1] if user in set(others.tolist()) else items for user, items in enumerate(log.users)]
    return _leave_one_out(LeaveOneOut(train, validation, cases, log.texts), FILMS_LONG, run, peer_epochs=0)


def deskdrop_stream(run: Run) -> Figures:
    """Deskdrop, first views as they come: rank, then learn."""
    return _stream(logs.deskdrop(run.data), run, NEWS, kinds={"view"}, window_days=2)


def movielens_100k_stream(run: Run) -> Figures:
    """MovieLens-100K, ratings as they come: rank, then learn."""
    _, stream = logs.movielens_100k(run.movielens)
    return _stream(stream, run, FILMS, kinds=set(stream.types), window_days=7)


def diversity_curve(run: Run) -> Figures:
    """The diversity and novelty knobs on Beauty's validation part: what variety costs."""
    log = logs.beauty(run.data)
    split = leave_one_out(log.users, log.texts)
    trained = train_encoder(split, run.embed(split.texts), run.settings(BEAUTY, 0))
    chosen = np.random.default_rng(0).permutation(len(split.validation))[:CURVE_CASES]  # the first users are odd ones
    cases = [split.validation[case] for case in chosen]
    return dict(diversity.curve(trained.score, trained.table, split.counts(), cases))


def fine_tuned_texts(run: Run) -> Figures:
    """The text encoder as it is packaged and fine-tuned by LoRA, on Beauty's validation part: what each brings."""
    log = logs.beauty(run.data)
    split = leave_one_out(log.users, log.texts)
    counts = split.counts()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(run.seeds):
        texts = fine_tuning.Texts(run.threads)
        for kind in ("packaged", "fine-tuned"):
            started = time.perf_counter()
            if kind == "fine-tuned":
                texts.fine_tune(split, seed)
            vectors = texts.encode(split.texts)
            tuned = time.perf_counter() - started
            alone = judge(fine_tuning.by_text(vectors), split.validation).figures(counts)
            trained = train_encoder(split, vectors, run.settings(BEAUTY, seed))
            under = judge(trained.score, split.validation).figures(counts)
            found.setdefault(f"texts alone, {kind}", []).append(alone | {"seconds": tuned})
            found.setdefault(f"user encoder, {kind}", []).append(under | {"seconds": trained.seconds})
    return {name: _over_seeds(figures) for name, figures in found.items()}


def serving_cost(run: Run) -> Figures:
    """ONNX Runtime, one thread, batch 64, top-K fused: untrained encoders of the shapes above."""
    shapes = {"beauty": (BEAUTY, 12101), "movielens-100k": (FILMS, 1682), "movielens-1m": (FILMS_LONG, 3416)}
    return {name: cost.measure(config.model, items) for name, (config, items) in shapes.items()}


def off_policy_oracle(run: Run) -> Figures:
    """Off-policy estimates beside Open Bandit Pipeline's, on simulated lists whose worth is known."""
    return off_policy.measure(run.peers) if run.peers.exists() else {}


PARTS_BY_NAME: dict[str, Callable[[Run], Figures]] = {
    "beauty": beauty,
    "ml-100k": movielens_100k,
    "new-users": new_users,
    "first-events": before_the_first_event,
    "day-zero": before_any_training,
    "ml-1m": movielens_1m,
    "deskdrop-stream": deskdrop_stream,
    "ml-100k-stream": movielens_100k_stream,
    "diversity": diversity_curve,
    "fine-tuning": fine_tuned_texts,
    "cost": serving_cost,
    "off-policy": off_policy_oracle,
}


def _leave_one_out(split: LeaveOneOut, config: TrainingConfig, run: Run, peer_epochs: int) -> Figures:
    counts = split.counts()
    figures: Figures = {}
    makers: dict[str, Callable[[LeaveOneOut], Scorer]] = {
        "popularity": baselines.popularity,
        "ItemKNN (TF-IDF)": baselines.item_knn,
        "EASE": baselines.best_ease,
    }
    for name, make in makers.items():
        started = time.perf_counter()
        scorer = make(split)
        figures[name] = judge(scorer, split.test).figures(counts) | {"seconds": time.perf_counter() - started}
    if peer_epochs and not run.peers.exists():
        print(f"without RecTools' peers: {run.peers} is not there, `make quality` fetches it")  # noqa: T201
    elif peer_epochs:
        figures |= _peers(split, run, peer_epochs)
    texts = run.embed(split.texts)
    runs = []
    for seed in range(run.seeds):
        trained = train_encoder(split, texts, run.settings(config, seed))
        ranks = judge(trained.score, split.test)
        runs.append(ranks.figures(counts) | {"seconds": trained.seconds, "epoch": trained.epoch})
    figures["Freshet"] = _over_seeds(runs)
    return figures


def _peers(split: LeaveOneOut, run: Run, epochs: int) -> Figures:
    """RecTools' SASRec and eSASRec on the same split, in their own environment, as often as Freshet."""
    script = Path(__file__).with_name("rectools_peers.py")
    runs: list[Figures] = []
    for seed in range(run.seeds):
        request = {
            "train": split.train,
            "test": split.test,
            "epochs": epochs,
            "minutes": PEER_MINUTES,
            "threads": run.threads,
            "seed": seed,
        }
        done = subprocess.run(
            [str(run.peers), str(script)], input=json.dumps(request), stdout=subprocess.PIPE, text=True, check=True
        )
        runs.append(json.loads(done.stdout))
    return {name: _over_seeds([figures[name] for figures in runs]) for name in runs[0]}


def _stream(stream: logs.Stream, run: Run, config: TrainingConfig, *, kinds: set[str], window_days: float) -> Figures:
    texts = run.embed(stream.texts)
    short = msgspec.structs.replace(config, epochs=STREAM_EPOCHS, validate_every=STREAM_EPOCHS)
    runs = []
    for seed in range(run.seeds):
        own = run.settings(short, seed)
        runs.append(prequential.run(stream, texts, own, kinds=kinds, window_days=window_days))
    return {name: _over_seeds([figures[name] for figures in runs]) for name in runs[0]}


def _over_seeds(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Means, the spread (standard deviation) of the two headline figures, and each run."""
    means: dict[str, Any] = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    if len(runs) > 1:
        means |= {f"{name} spread": float(np.std([run[name] for run in runs], ddof=1)) for name in ("hr@10", "ndcg@10")}
        means["runs"] = runs
    return means


def _embed(texts: list[str]) -> Floats:
    """Text embeddings, kept under `.parts/quality` by the digest of the texts."""
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    file = CACHE / f"{digest}.npy"
    if not file.exists():
        vectors = TextEncoder(PARTS / "text_encoder").encode(texts)
        CACHE.mkdir(parents=True, exist_ok=True)
        np.save(file.with_suffix(".part.npy"), vectors)
        file.with_suffix(".part.npy").rename(file)
    vectors: Floats = np.load(file)
    return vectors


def main() -> int:
    """Run the parts asked for and print their tables."""
    parser = argparse.ArgumentParser(prog="freshet quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="(default: %(default)s)")
    parser.add_argument("--movielens", type=Path, default=PARTS / "data" / "ml-100k", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=_positive, default=3, help="trainings per figure (default: %(default)s)")
    parser.add_argument(
        "--threads", type=_positive, default=2, help="of a training, a peer's too (default: %(default)s)"
    )
    parser.add_argument(
        "--peers",
        type=Path,
        default=PARTS / "peers-env" / "bin" / "python",
        metavar="PYTHON",
        help="interpreter with RecTools and obp; without it the peers are left out (default: %(default)s)",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS_BY_NAME, default=list(PARTS_BY_NAME), help="parts to run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    results: dict[str, Any] = {"machine": f"{os.cpu_count()} cores, {platform.platform()}"}
    for part in given.only:
        started = time.perf_counter()
        try:
            run = Run(given.data, given.movielens, given.seeds, given.threads, given.peers, _embed)
            results[part] = PARTS_BY_NAME[part](run)
        except (logs.DataError, off_policy.Disagreement) as error:
            sys.stderr.write(f"freshet quality: {error}\n")
            return 1
        console.print(_table(part, results[part]))
        console.print(f"{part} in {time.perf_counter() - started:.0f} s")
        if given.json is not None:
            given.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _table(part: str, rows: Figures) -> Table:
    table = Table(title=f"{part}: {inspect.getdoc(PARTS_BY_NAME[part])}", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row if name != "runs"))
    shown = [name for name in columns if not name.endswith((" low", " high", " spread"))]
    for column in shown:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(_cell(row, column) for column in shown))
    return table


def _cell(row: dict[str, Any], column: str) -> str:
    if column not in row:
        return ""
    value = f"{row[column]:.0f}" if column in {"seconds", "epoch", "items", "length"} else f"{row[column]:.4f}"
    if f"{column} spread" in row:
        value += f" ± {row[f'{column} spread']:.4f}"
    if f"{column} low" in row:
        value += f" [{row[f'{column} low']:.3f}, {row[f'{column} high']:.3f}]"
    return value


if __name__ == "__main__":
    sys.exit(main())
