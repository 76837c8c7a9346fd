"""Train a model version: an event log and an items file in, a bundle out.

    python -m training.train --events log.jsonl --items items.jsonl \
        --text-encoder .parts/text_encoder --out bundle/

The one that runs all the other steps; the fit itself is `training/fit.py`. The epoch, the
prior's weight and the baseline's window are those with the best NDCG@10 on the
untied events of the validation part; the test part is used once, at the end.
"""
# ruff: noqa: T201 - printed lines are its interface

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.card import model_card
from training.dataset import DatasetError, Split, read_events, read_items, split_by_time, vocabulary
from training.evaluate import (
    DAY_MS,
    Batch,
    CoOccurrence,
    Floats,
    Ranker,
    Replay,
    Result,
    difference,
    evaluate,
    popularity,
    recent_popularity,
    user_bootstrap,
    with_prior,
)
from training.examples import Examples, histories, shuffle_ties, windows
from training.export import ExportError, export_bundle
from training.fit import Options, fit
from training.model import Config, UserEncoder
from training.text import TextEncoder
from workers.core.events import DEFAULT_BEHAVIOURS
from workers.core.features import FIRST_ITEM, USER_ENCODER_INPUTS

PRIOR_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
CO_OCCURRENCE_LAST = (1, 5, 10, 50)
ENCODER = "encoder"
SERVED = "encoder + prior"
UNTIED = "untied_"
BASELINES = ("popularity", "recent popularity", "co-occurrence")


def encoder_ranker(model: UserEncoder, other_texts: NDArray[np.float32]) -> Ranker:
    """Rank by the encoder; items outside the vocabulary stand at the item tower's vector of their text."""
    model.eval()
    with torch.no_grad():
        vectors = model.item_vectors()  # [N, D]
        table = torch.cat([vectors, model.tower(torch.from_numpy(other_texts))])  # [M, D]

    def score(batch: Batch) -> Floats:
        with torch.no_grad():
            inputs = (torch.from_numpy(batch.tensors[spec.name]) for spec in USER_ENCODER_INPUTS)
            user = model(*inputs, vectors, last_only=True)[:, 0]  # [B, D]
            scores: Floats = (user @ table.T).numpy()
        return scores

    return score


def _best(results: dict[str, Result]) -> str:
    return max(results, key=lambda name: results[name].only_untied().ndcg)


def train(
    split: Split,
    item_texts: dict[str, str],
    text_encoder: TextEncoder,
    out: Path,
    *,
    types: list[str],
    options: Options,
    name: str,
    half_life_s: float,
    data_terms: str,
) -> dict[str, dict[str, float]]:
    """Run every step after reading; returns the test metrics by ranker."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    runs = histories(split.train)
    item_ids = vocabulary(event for run in runs for event in run)
    others = sorted(set(item_texts) - set(item_ids))
    print(f"{len(item_ids)} items in the vocabulary, {len(others)} more in the catalogue; embedding their texts")
    texts = text_encoder.encode(item_texts.get(item, "") for item in [*item_ids, *others])
    known, unseen = texts[: len(item_ids)], texts[len(item_ids) :]
    item_index = {item: row + FIRST_ITEM for row, item in enumerate(item_ids)}
    type_index = {kind: row + 1 for row, kind in enumerate(types)}
    print(f"{sum(map(len, runs))} events to learn from, {len(runs)} histories")

    events = [*split.train, *split.validation, *split.test]
    validation, test = len(split.train), len(split.train) + len(split.validation)
    config = Config(len(item_ids), len(types))
    replay = Replay(events, [*item_ids, *others], item_index, type_index, half_life_s, config.length)
    model = UserEncoder(config, torch.from_numpy(known))
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")

    def rows(random: np.random.Generator) -> Examples:
        return windows(shuffle_ties(runs, random), item_index, type_index, config.length)

    def validate(candidate: UserEncoder) -> float:
        rankers: dict[str, Ranker] = {ENCODER: encoder_ranker(candidate, unseen)}
        return evaluate(replay.batches(validation, test, every=2), rankers)[ENCODER].only_untied().ndcg

    model, best_epoch = fit(model, rows, validate, options)
    encoder = encoder_ranker(model, unseen)
    priors: dict[str, Ranker] = {f"{weight:g}": with_prior(encoder, weight) for weight in PRIOR_WEIGHTS}
    prior_weight = float(_best(evaluate(replay.batches(validation, test), priors)))
    counts: dict[str, Ranker] = {str(last): CoOccurrence(split.train, replay.row, last) for last in CO_OCCURRENCE_LAST}
    last = _best(evaluate(replay.batches(validation, test), counts))
    rankers: dict[str, Ranker] = {
        **dict(zip(BASELINES, (popularity, recent_popularity, counts[last]), strict=True)),
        ENCODER: encoder,
        SERVED: with_prior(encoder, prior_weight),
    }
    print(f"best epoch {best_epoch}, prior weight {prior_weight:g}, co-occurrence over the last {last} items; testing")
    results = evaluate(replay.batches(test, len(events)), rankers)
    best_baseline = max(BASELINES, key=lambda name: results[name].ndcg)
    results[f"{SERVED} over {best_baseline}"] = difference(results[SERVED], results[best_baseline])
    metrics = {ranker: _metrics(result) for ranker, result in results.items()}
    print(table(metrics))
    print(f"events later than the user's previous one alone:\n{table(metrics, UNTIED)}")
    export_bundle(
        model,
        out,
        item_ids,
        types,
        known,
        name=name,
        prior_weight=prior_weight,
        half_life_s=half_life_s,
        metrics=metrics,
        licence=data_terms,
        model_card=model_card(
            name,
            split,
            table(metrics),
            table(metrics, UNTIED),
            config=config,
            cold=len(others),
            prior_weight=prior_weight,
            data_terms=data_terms,
        ),
    )
    return metrics


def _metrics(result: Result) -> dict[str, float]:
    metrics = {"events": float(len(result.users)), "users": float(len(np.unique(result.users)))}
    for prefix, part in (("", result), (UNTIED, result.only_untied())):
        for name, values in (("hr@10", part.hit), ("ndcg@10", part.gain)):
            low, high = user_bootstrap(part.users, values) if len(values) else (0.0, 0.0)
            mean = float(values.mean()) if len(values) else 0.0
            metrics |= {prefix + name: mean, f"{prefix}{name}_low": low, f"{prefix}{name}_high": high}
    return metrics


def table(metrics: dict[str, dict[str, float]], prefix: str = "") -> str:
    """A Markdown table of the test metrics with their 95 % user-bootstrap intervals."""
    lines = ["| ranker | HR@10 | NDCG@10 |", "| --- | --- | --- |"]
    for name, values in metrics.items():
        cells = (
            f"{values[key]:.4f} [{values[key + '_low']:.4f}, {values[key + '_high']:.4f}]"
            for key in (f"{prefix}hr@10", f"{prefix}ndcg@10")
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _check_folders(text_encoder: Path, out: Path) -> None:
    for needed in ("model.onnx", "tokenizer.json"):
        if not (text_encoder / needed).is_file():
            raise DatasetError(f"no text encoder: {text_encoder / needed} does not exist")
    if out.exists() and any(out.iterdir()):
        raise DatasetError(f"{out} is not empty")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="training.train", description=__doc__.split("\n\n")[0])
    parser.add_argument("--events", type=Path, required=True, help="event log, JSON lines in time order")
    parser.add_argument("--items", type=Path, required=True, help="catalogue, JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundle; must not exist or be empty")
    parser.add_argument(
        "--text-encoder",
        type=Path,
        default=Path(".parts/text_encoder"),
        help="folder with model.onnx and tokenizer.json (default: %(default)s)",
    )
    parser.add_argument("--name", default="freshet", help="name in the manifest (default: %(default)s)")
    parser.add_argument(
        "--types",
        default=",".join(DEFAULT_BEHAVIOURS),
        help="behaviour types, comma-separated (default: %(default)s)",
    )
    parser.add_argument("--data-terms", default="unstated", help="terms of the training data, for the model card")
    parser.add_argument("--half-life-days", type=float, default=7.0, help="popularity prior (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=Options.epochs, help="at most (default: %(default)s)")
    parser.add_argument(
        "--positions", type=int, default=Options.positions, help="targets a step (default: %(default)s)"
    )
    parser.add_argument("--learning-rate", type=float, default=Options.learning_rate, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Options.seed, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=Options.threads, help="torch threads (default: %(default)s)")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the command line; returns the exit status."""
    given = parse()
    types = [kind for kind in given.types.split(",") if kind]
    options = Options(
        epochs=given.epochs,
        positions=given.positions,
        learning_rate=given.learning_rate,
        seed=given.seed,
        threads=given.threads,
    )
    started = time.perf_counter()
    try:
        _check_folders(given.text_encoder, given.out)
        split = split_by_time(read_events(given.events, types))
        train(
            split,
            {item.item_id: item.text for item in read_items(given.items).values()},
            TextEncoder(given.text_encoder),
            given.out,
            types=types,
            options=options,
            name=given.name,
            half_life_s=given.half_life_days * DAY_MS / 1000,
            data_terms=given.data_terms,
        )
    except (DatasetError, ExportError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.out} in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
