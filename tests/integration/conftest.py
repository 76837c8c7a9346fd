"""The real broker, Triton and Redis, started once for all integration tests and stopped after."""

import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy import local


@pytest.fixture(scope="session")
def parts() -> None:
    """Everything `make setup` fetches: its absence skips on a laptop, and fails in CI."""
    missing = local.missing_parts()
    if missing:
        why = f"missing: {', '.join(missing)}; run `make setup`"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


@pytest.fixture(scope="session")
def start_stack(parts: None) -> Iterator[Callable[..., local.Stack]]:
    """`deploy.local.start`, with every stack it started stopped after the last test."""
    with ExitStack() as at_the_end:

        def start(directory: Path, **options: object) -> local.Stack:
            stack = local.start(directory, **options)
            at_the_end.callback(local.stop, stack)
            return stack

        yield start


@pytest.fixture(scope="session")
def stack(start_stack: Callable[..., local.Stack], tmp_path_factory: pytest.TempPathFactory) -> local.Stack:
    """A broker and a Triton with the shipped models, shared by the whole session."""
    return start_stack(tmp_path_factory.mktemp("stack"))


@pytest.fixture(scope="session")
def redis(start_stack: Callable[..., local.Stack], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address, ``host:port``, of a Redis that nobody else uses."""
    directory = tmp_path_factory.mktemp("redis")
    return start_stack(directory, redis=True, kafka=False, triton=False).redis


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes topic, group and user names that no other test and no earlier run has used."""
    run = uuid.uuid4().hex[:8]
    numbers = itertools.count()
    return lambda prefix: f"{prefix}-{run}-{next(numbers)}"


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser: its absence skips on a laptop, and fails in CI."""
    found = shutil.which("chromium")
    if found is None:
        why = "chromium is missing: run `make setup-test`"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found
