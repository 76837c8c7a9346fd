"""The version that a process begins with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container
from pathlib import Path

from freshet.adapters.triton import TritonEncoder
from freshet.bundle.bundle import BundleError, version_numbers
from freshet.core.rollout import MODEL
from freshet.errors import FreshetError
from freshet.ports import Unavailable
from freshet.serving.live_versions import LiveVersions
from freshet.settings import Settings

FIRST_TRIES = 20
"""Times that Triton is asked for a version to begin with."""
PAUSE_SECONDS = 1.0

log = logging.getLogger(__name__)


class StartError(FreshetError):
    """The process cannot start; the message says what to do."""


async def make_live(settings: Settings, model: LiveVersions, encoder: TritonEncoder) -> None:
    """Make the promoted version live, or where that cannot be, the one to begin with.

    Raises `StartError` and `BundleError`.
    """
    try:
        await model.start()
    except BundleError as error:
        log.info("the newest version begins", extra={"why": str(error)})
        await model.start(await _first_version(settings, encoder, model.steps))


async def _first_version(settings: Settings, encoder: TritonEncoder, known: Container[int]) -> int:
    """The version to begin with where no promoted one can: the newest that Triton has ready and nobody tries.

    Where there is no such version, the newest that is ready: a record of a rollout stops no worker. Raises
    `StartError`.
    """
    why = ""
    folder = Path(settings.model_repository) / MODEL
    for _ in range(FIRST_TRIES):
        versions = version_numbers(folder)
        try:
            found = await encoder.newest([version for version in versions if version not in known])
            found = found or await encoder.newest(versions)
        except Unavailable as error:
            why = str(error)
        else:
            if found is not None:
                return found
            why = f"Triton at {settings.triton} has no version of {MODEL} ready"
        await asyncio.sleep(PAUSE_SECONDS)
    raise StartError(f"no version that topic {settings.models_topic} promotes can be served, and {why}")
