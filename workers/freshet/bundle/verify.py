"""Whether a bundle's parts are those of one sound version: asked before one is signed, served or built a plan from."""

from __future__ import annotations

from pathlib import Path

from freshet.bundle.bundle import Bundle, load_bundle
from freshet.bundle.golden import check_golden
from freshet.bundle.onnx_graph import check_graphs
from freshet.bundle.weights import check_weights


def load_sound(folder: Path) -> Bundle:
    """Read the bundle at `folder`, and see that graphs, weights and golden tensors are sound. Raises `BundleError`."""
    bundle = load_bundle(folder)
    check_graphs(bundle)
    check_weights(bundle)
    check_golden(bundle)
    return bundle
