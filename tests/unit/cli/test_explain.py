"""`freshet explain`: the versions that it refuses."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from freshet.bundle.bundle import SIGNATURE
from freshet.bundle.signature import SignatureError
from freshet.cli import explain
from freshet.core.rollout import MODEL
from freshet.core.state import empty_state
from freshet.logs import source
from freshet.replay import job
from freshet.settings import Settings

from deploy.local.parts import SHIPPED_KEYS, TRITON_MODELS
from tests.simulation.memory_world import FakeEncoder, make_bundle


class ReadError(Exception):
    """The catalogue is asked for: the version was loaded."""


async def test_a_version_that_nobody_signed_explains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain` refuses a version that the trusted keys did not sign."""

    @asynccontextmanager
    async def encoder(*_: Any, **__: Any) -> AsyncIterator[FakeEncoder]:
        yield FakeEncoder(make_bundle())

    def read(*_: Any) -> Any:
        raise ReadError

    monkeypatch.setattr(job, "open_encoder", encoder)
    monkeypatch.setattr(source, "read_topic", read)
    version = Path(shutil.copytree(TRITON_MODELS / MODEL / "1", tmp_path / MODEL / "1"))
    settings = Settings(model_repository=str(tmp_path), trusted_keys=str(SHIPPED_KEYS))
    with pytest.raises(ReadError):
        await explain._explained(settings, 1, empty_state(0), ["1"], 3)
    (version / SIGNATURE).unlink()
    with pytest.raises(SignatureError, match="is not signed"):
        await explain._explained(settings, 1, empty_state(0), ["1"], 3)
