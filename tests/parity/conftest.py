"""Where the shipped bundle lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from freshet.bundle.bundle import Bundle, load_bundle

REPOSITORY = Path(__file__).parents[2] / "triton_models"


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of the tests that need torch."""
    config.addinivalue_line("markers", "training: needs the training environment (torch)")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shipped() -> Bundle:
    """The bundle in the model repository, verified."""
    return load_bundle(REPOSITORY / "user_encoder" / "1")
