"""Whether a bundle's parts are those of one sound version: asked before one is signed, served or built a plan from."""

from __future__ import annotations

from pathlib import Path

from workers.core.bundle import Bundle, load_bundle
from workers.core.golden import check_golden
from workers.core.graphs import check_graphs
from workers.core.weights import check_weights


def load_sound(folder: Path) -> Bundle:
    """Read the bundle at `folder`, and see that graphs, weights and golden tensors are sound. Raises `BundleError`."""
    bundle = load_bundle(folder)
    check_graphs(bundle)
    check_weights(bundle)
    check_golden(bundle)
    return bundle
