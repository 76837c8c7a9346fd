"""A real broker for the contracts that need one, started once and stopped after."""

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import local


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker's address; without the parts it skips on a laptop, and fails in CI."""
    if missing := local.missing_parts():
        why = f"missing: {', '.join(missing)}; run `make setup`"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    stack = local.start(tmp_path_factory.mktemp("broker"), triton=False)
    yield stack.bootstrap
    local.stop(stack)


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes topic and group names that no other test and no earlier run has used."""
    run = uuid.uuid4().hex[:8]
    numbers = itertools.count()
    return lambda prefix: f"{prefix}-{run}-{next(numbers)}"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A worker's data directory."""
    return tmp_path / "worker"
