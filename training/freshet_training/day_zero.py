"""A version for the day before the first event: made of a catalogue alone, by its texts.

It is a version without a network (`without_network.py`). No event says how much popularity should weigh, so the weight
is one that suits three public logs; `training/LOG.md` has the figures. No gate judges it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import torch
from freshet.bundle.bundle import Data
from freshet.errors import FreshetError

from freshet_training.config import TrainingConfig, load_config
from freshet_training.console import say
from freshet_training.dataset import DatasetError, read_items
from freshet_training.export import BundleContents, export_bundle, placed_whole, require_free
from freshet_training.model_shape import ModelShape, check_model_settings
from freshet_training.text.encoder import TextEncoder
from freshet_training.training_run import commit
from freshet_training.training_set import TrainingFiles, read_by, text_vectors
from freshet_training.without_network import NearestText

PRIOR_WEIGHT = 0.7
"""Weight of log popularity beside vectors of a network's length."""


def write_day_zero(files: TrainingFiles, out: Path, config: TrainingConfig, source: str) -> int:
    """Write the version of the catalogue `files.items` at `out`; returns the number of its items.

    Items that cannot be had and items without text are left out. Raises `DatasetError`, `TextError`, `ConfigError`,
    `ExportError`, `OSError`.
    """
    require_free(out)
    check_model_settings(config)
    assert files.items is not None
    items = read_items(files.items)
    texts = {item: found.text(config.text_fields) for item, found in sorted(items.items()) if found.available}
    texts = {item: text for item, text in texts.items() if text}
    if not texts:
        fields = ", ".join(config.text_fields)
        raise DatasetError(f"{files.items}: no item has a text to be ranked by: fill one of {fields}")
    encoder = TextEncoder(files.text_encoder)
    vectors = text_vectors(list(texts.values()), encoder, files.work)
    model = NearestText(ModelShape(len(texts), len(config.types), **config.model), torch.from_numpy(vectors))
    contents = BundleContents(
        item_ids=list(texts),
        text_embeddings=vectors,
        config=config,
        prior_weight=PRIOR_WEIGHT,
        metrics={},
        data=Data(source=source, digest=hashlib.sha256(repr(texts).encode()).hexdigest()),
        commit=commit(),
        parent="",
        privacy=None,
        lifts=None,
        model_card=_card(config, len(texts), len(items)),
        text_encoder=read_by(encoder, list(texts.values()), None),
        network=False,
    )
    with placed_whole(out) as partial:
        export_bundle(model, partial, contents)
    return len(texts)


def _card(config: TrainingConfig, ranked: int, items: int) -> str:
    return f"""# {config.name}

A version for the day before the first event. It has learned nothing. A user stands at the faded mean of the whitened
texts of the user's items, and the nearest texts and what is popular are recommended.

## Data

A catalogue of {items:,} items, of which {ranked:,} can be had and have a text. Terms: {config.data_terms}.

## Quality

Not measured: there was no event to measure by. On three public logs such versions are better than popularity; the
figures are in `training/LOG.md`. The served score is `encoder + {PRIOR_WEIGHT:g} · log1p(decayed popularity)`.

## Limits

Titles that say little of what an item is give lists that say little. `freshet train --events LOG` learns from what
users do.
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="freshet_training.day_zero", description=__doc__.split("\n\n")[0])
    parser.add_argument("--items", type=Path, required=True, help="catalogue, JSON lines")
    parser.add_argument("--config", type=Path, help="settings file of the domain")
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundle; must not exist or be empty")
    parser.add_argument("--work", type=Path, required=True, help="folder for text vectors")
    parser.add_argument("--text-encoder", type=Path, required=True, help="folder with model.onnx and tokenizer.json")
    parser.add_argument("--source", default="", help="where the catalogue comes from, for the record")
    parser.add_argument("--name")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data-terms", help="terms of the catalogue")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = parse(arguments)
    files = TrainingFiles(given.items, given.items, given.work, given.text_encoder)
    try:
        config = load_config(given.config, name=given.name, threads=given.threads, data_terms=given.data_terms)
        torch.set_num_threads(config.threads)
        given.work.mkdir(parents=True, exist_ok=True)
        items = write_day_zero(files, given.out, config, given.source or given.items.name)
    except FreshetError as error:
        sys.stderr.write(f"freshet: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"freshet: {error.filename or given.out}: {error.strerror or error}\n")
        return 1
    say(f"{given.out}: {items:,} items by their texts, no event learned")
    return 0


if __name__ == "__main__":
    sys.exit(main())
