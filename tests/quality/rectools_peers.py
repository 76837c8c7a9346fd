"""RecTools' SASRec and eSASRec on a split of the harness; run by the peers' own environment.

    .parts/peers-env/bin/python tests/quality/rectools_peers.py < SPLIT.json > FIGURES.json

The split is `{"train": [[item, …], …], "test": [[[item, …], next item], …], "epochs": N, "minutes": M}`,
users in the same order in both; a fit ends after so many epochs or minutes. eSASRec is SASRec with LiGR blocks
and a sampled softmax (RecSys 2025). Two blocks, 64 wide and 50 long, as in the published tables; the other settings
are the library's defaults. It needs RecTools and nothing of Freshet.
"""

import json
import sys
import time
import warnings
from datetime import timedelta

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

CUTOFF = 10
SHAPE = {"n_factors": 64, "n_blocks": 2, "n_heads": 2, "session_max_len": 50}
ESASREC = {"loss": "sampled_softmax", "n_negatives": 256, "transformer_layers_type": LiGRLayers}
KINDS = {"RecTools SASRec": {"loss": "softmax"}, "RecTools eSASRec": ESASREC}


def interactions(users: list[list[int]]) -> Dataset:
    """Users' items in order, as a data set whose times are their places."""
    rows = [(user, item, 1.0, position) for user, items in enumerate(users) for position, item in enumerate(items)]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight, Columns.Datetime])
    frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], unit="s")
    return Dataset.construct(frame)


def figures(model: SASRecModel, histories: list[list[int]], targets: list[int]) -> dict[str, float]:
    """HR@10 and NDCG@10 of what the model recommends to all users."""
    known = {item for items in model.data_preparator.item_id_map.external_ids for item in (items,)}
    readable = [[item for item in items if item in known] for items in histories]
    chosen = [user for user, items in enumerate(readable) if items]
    lists = model.recommend(chosen, interactions(readable), k=CUTOFF, filter_viewed=True)
    ranks = np.full(len(targets), CUTOFF)
    hits = lists[lists[Columns.Item] == lists[Columns.User].map(dict(enumerate(targets)))]
    ranks[hits[Columns.User].to_numpy()] = hits[Columns.Rank].to_numpy() - 1
    hit = ranks < CUTOFF
    return {"hr@10": float(hit.mean()), "ndcg@10": float(np.where(hit, 1 / np.log2(ranks + 2.0), 0).mean())}


def trainer(epochs: int, minutes: float) -> Trainer:
    """Ends after so many epochs, or minutes."""
    return Trainer(
        max_epochs=epochs,
        max_time=timedelta(minutes=minutes),
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )


def main() -> None:
    """Read a split, fit each peer, write its figures."""
    warnings.filterwarnings("ignore")
    split = json.load(sys.stdin)
    torch.set_num_threads(split["threads"])
    histories, targets = [case[0] for case in split["test"]], [case[1] for case in split["test"]]
    train = interactions(split["train"])
    found = {}
    for name, settings in KINDS.items():
        seed_everything(split["seed"])
        started = time.perf_counter()
        limits = {"epochs": split["epochs"], "minutes": split["minutes"]}
        model = SASRecModel(**SHAPE, **settings, get_trainer_func=trainer, get_trainer_func_kwargs=limits)
        model.fit(train)
        seconds = time.perf_counter() - started
        found[name] = {
            **figures(model, histories, targets),
            "seconds": seconds,
            "epoch": model.fit_trainer.current_epoch,
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
