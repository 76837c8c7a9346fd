"""A stack for all quick faults."""

from collections.abc import Iterator

import pytest

from deploy import local
from tests.faults import broker
from tests.integration.conftest import parts

__all__ = ["parts"]


@pytest.fixture(scope="session")
def stack(parts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.Stack]:
    """The parts, with a broker that is reached through a proxy too."""
    stack = broker.start_stack(tmp_path_factory.mktemp("faults"))
    yield stack
    local.stop(stack)
