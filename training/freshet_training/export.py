"""Step 6, the bundle: the trained encoder as ONNX with its item table and top-K inside.

The served graph takes the tensors of `featurise`, computes the last block for
the last position only, multiplies with the item table and keeps the best
`TOP_K`. torch and ONNX Runtime must agree on golden inputs before the manifest,
written last, makes the folder a bundle.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from freshet.bundle import bundle
from freshet.bundle.golden import GOLDEN, GoldenError, check_answers, read_golden
from freshet.bundle.onnx_session import open_session
from freshet.core.features import (
    FIRST_ITEM,
    GAP_BUCKETS,
    ITEM_TOWER_INPUTS,
    ITEM_TOWER_OUTPUTS,
    TOP_K,
    USER_ENCODER_INPUTS,
    USER_ENCODER_OUTPUTS,
    Tensors,
    TensorSpec,
)
from freshet.errors import FreshetError
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from freshet_training.config import TrainingConfig
from freshet_training.model import ItemTower, UserEncoder

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference between torch and ONNX Runtime on one machine."""
NEVER = -6e4
"""Score of the rows for padding and unknown item: below any real score, and finite in half precision too."""
GOLDEN_ROWS = 64
GOLDEN_UNKNOWN = 0.05


class ExportError(FreshetError):
    """The model cannot be exported, or ONNX Runtime disagrees with torch."""


class ServedEncoder(nn.Module):
    """`USER_ENCODER_INPUTS` → `USER_ENCODER_OUTPUTS`, in order."""

    vectors: Tensor
    table: Tensor
    never: Tensor

    def __init__(self, encoder: UserEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        vectors = encoder.item_vectors().detach()  # [N, D]
        self.candidates = min(TOP_K, len(vectors))
        self.register_buffer("vectors", vectors)
        self.register_buffer("table", torch.cat([torch.zeros(FIRST_ITEM, vectors.shape[1]), vectors]).T.contiguous())
        never = torch.zeros(FIRST_ITEM + len(vectors))
        never[:FIRST_ITEM] = NEVER
        self.register_buffer("never", never)

    def forward(self, item_index: Tensor, event_type: Tensor, time_gap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices [B, L] → (top-K rows [B, K] int32, their scores [B, K], user vector [B, D])."""
        embedding = self.encoder(item_index, event_type, time_gap, self.vectors, last_only=True)[:, 0]  # [B, D]
        scores = embedding @ self.table + self.never  # [B, 2 + N]
        best = torch.topk(scores, self.candidates, dim=-1)
        return best.indices.to(torch.int32), best.values, embedding


def golden_inputs(items: int, types: int, length: int, rows: int = GOLDEN_ROWS, seed: int = 0) -> Tensors:
    """Random encoder inputs `[rows, L]` with every history length, the empty one first, and unknown items and types."""
    random = np.random.default_rng(seed)
    shape = (rows, length)
    filled = np.arange(length) >= length - (np.arange(rows) % (length + 1))[:, None]
    known = random.integers(FIRST_ITEM, items + FIRST_ITEM, shape)
    item_index = np.where(random.random(shape) < GOLDEN_UNKNOWN, FIRST_ITEM - 1, known)
    event_type = random.integers(0, types + 1, shape)
    time_gap = random.integers(1, GAP_BUCKETS, shape)
    columns = (item_index, event_type, time_gap)
    return {
        spec.name: np.where(filled, column, 0).astype(np.int32)
        for spec, column in zip(USER_ENCODER_INPUTS, columns, strict=True)
    }


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """What a bundle holds beside the encoder's graphs and weights.

    `item_ids` are the vocabulary in index order, `text_embeddings` `[N, TEXT_DIM]` their texts' vectors. `lifts`
    `[N + 1, 2]` are each item's value and novelty; a private version has none. `parent` names the version whose
    weights were the start, and is empty where training started anew. A version without a `network` has learned nothing.
    """

    item_ids: list[str]
    text_embeddings: NDArray[np.float32]
    config: TrainingConfig
    prior_weight: float
    metrics: dict[str, dict[str, float]]
    data: bundle.Data
    commit: str
    parent: str
    privacy: bundle.Privacy | None
    lifts: NDArray[np.float32] | None
    model_card: str
    text_encoder: bundle.TextEncoderFacts | None = None
    network: bool = True


def require_free(out: Path) -> None:
    """See that a bundle may be written at `out`. Raises `ExportError`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} is taken: move it away, or name another folder with --out")


@contextmanager
def placed_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write a bundle in. It becomes `out` when the block ends without an error."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    if out.exists():
        out.rmdir()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(out)


def export_bundle(encoder: UserEncoder, out: Path, contents: BundleContents) -> None:
    """Write the bundle at `out`, which must not exist or be empty. Raises `ExportError`."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ExportError(f"{out} is not empty")
    encoder = encoder.cpu().eval()
    served = ServedEncoder(encoder).eval()
    _write_graphs(encoder, served, out, contents)
    np.save(out / bundle.ITEM_VECTORS, served.vectors.numpy().astype(np.float32), allow_pickle=False)
    if contents.lifts is not None:
        np.save(out / bundle.LIFTS, contents.lifts, allow_pickle=False)
    (out / "item_ids.json").write_text(json.dumps(contents.item_ids) + "\n")
    weights = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    (out / bundle.WEIGHTS).write_bytes(save(weights))  # `save_file` would let nobody else read it
    (out / "MODEL_CARD.md").write_text(contents.model_card)
    bundle.write_manifest(out, _manifest(encoder, out, contents))


def _write_graphs(encoder: UserEncoder, served: ServedEncoder, out: Path, contents: BundleContents) -> None:
    """Write both ONNX graphs, and the golden inputs with the outputs that torch gives for them."""
    golden = golden_inputs(len(contents.item_ids), len(contents.config.types), encoder.config.length)
    export_graph(served, golden, USER_ENCODER_OUTPUTS, out / "model.onnx")
    tower: ItemTower = encoder.tower
    tower_input, tower_output = ITEM_TOWER_INPUTS[0].name, ITEM_TOWER_OUTPUTS[0].name
    export_graph(tower, {tower_input: contents.text_embeddings[:2]}, ITEM_TOWER_OUTPUTS, out / "item_tower.onnx")
    with torch.no_grad():
        outputs = served(*(torch.from_numpy(golden[spec.name]) for spec in USER_ENCODER_INPUTS))
        text = torch.from_numpy(contents.text_embeddings[:GOLDEN_ROWS])
        golden |= {spec.name: value.numpy() for spec, value in zip(USER_ENCODER_OUTPUTS, outputs, strict=True)}
        golden |= {tower_input: text.numpy(), tower_output: tower(text).numpy()}
    np.savez_compressed(out / GOLDEN, **golden)  # type: ignore[arg-type]


def _manifest(encoder: UserEncoder, out: Path, contents: BundleContents) -> bundle.Manifest:
    """The manifest of the files in `out`."""
    config = contents.config
    return bundle.Manifest(
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dim=encoder.config.dim,
        length=encoder.config.length,
        types=config.types,
        prior_weight=contents.prior_weight,
        popularity_half_life_s=config.popularity_half_life,
        metrics=contents.metrics,
        environment={
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "onnx", "onnxruntime", "numpy")},
            "opset": str(OPSET),
        },
        licence=config.data_terms,
        files={file.name: bundle.sha256(file) for file in sorted(out.iterdir())},
        text_fields=list(config.text_fields),
        data=contents.data,
        commit=contents.commit,
        parent=contents.parent,
        privacy=contents.privacy,
        network=contents.network,
        text_encoder=contents.text_encoder,
        repeats=list(config.repeats),
        scale=encoder.log_scale.detach().exp().item(),
        settings=msgspec.to_builtins(config),
    )


def check_parity(folder: Path) -> float:
    """Run both ONNX files on the golden inputs; returns how far they leave torch's outputs at most.

    Raises `ExportError` where that is too far.
    """
    worst = 0.0
    item_vectors = bundle.read_table(folder / bundle.ITEM_VECTORS)
    try:
        golden = read_golden(folder)
    except GoldenError as error:
        raise ExportError(str(error)) from None
    for file, inputs, outputs in (
        ("model.onnx", USER_ENCODER_INPUTS, USER_ENCODER_OUTPUTS),
        ("item_tower.onnx", ITEM_TOWER_INPUTS, ITEM_TOWER_OUTPUTS),
    ):
        session = open_session(folder / file, threads=torch.get_num_threads())
        names = [spec.name for spec in outputs]
        try:
            values = session.run(names, {spec.name: golden[spec.name] for spec in inputs})
            off = check_answers(dict(zip(names, values, strict=True)), golden, outputs, item_vectors, TOLERANCE)
        except GoldenError as error:
            raise ExportError(f"{file} leaves what torch gave: {error}") from None
        worst = max(worst, off)
    return worst


def export_graph(module: nn.Module, example: Tensors, outputs: tuple[TensorSpec, ...], path: Path) -> None:
    """Trace `module` to ONNX: batch dynamic, everything else fixed, weights inside the one file."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: torchvision is absent, an axis has one name
        program = torch.onnx.export(
            module.eval(),
            tuple(torch.from_numpy(value) for value in example.values()),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in example),
            input_names=list(example),
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"torch exported nothing for {path.name}")
    # `output_names` would clash with the exporter's own name for the result of an embedding look-up.
    for number, node in enumerate(program.model.graph):
        for index, value in enumerate(node.outputs):
            value.name = f"v{number}_{index}"
        node.metadata_props.clear()  # source lines of this machine
        node.doc_string = None
    for value, spec in zip(program.model.graph.outputs, outputs, strict=True):
        value.name = spec.name
    model = program.model_proto
    onnx.checker.check_model(model)
    onnx.save(model, path)
