"""Which model version a verb works with, where its options name none."""

from __future__ import annotations

from pathlib import Path

from freshet.cli.errors import UserError
from freshet.settings import Settings


def live_version(settings: Settings) -> int:
    """The promoted version, or the newest there is where none was promoted yet. Raises `UserError`."""
    return promoted_version(settings) or newest_version(settings)


def promoted_version(settings: Settings) -> int | None:
    """The version that the models topic says is live. None if the topic names no version, or does not exist.

    Raises `UserError`.
    """
    from freshet.cli.models_topic import ModelsTopic
    from freshet.client.connection import NoTopicError

    try:
        return ModelsTopic(settings).read().live
    except NoTopicError:
        return None


def newest_version(settings: Settings) -> int:
    """The highest version in the model repository. Raises `UserError` where there is none."""
    from freshet.bundle.bundle import version_numbers
    from freshet.core.rollout import MODEL

    folder = Path(settings.model_repository) / MODEL
    versions = version_numbers(folder)
    if not versions:
        raise UserError(f"{folder} holds no version: train one, or name the repository with FRESHET_MODEL_REPOSITORY")
    return versions[-1]


def text_encoder_folder(settings: Settings) -> Path:
    """The folder of the text encoder: the served text encoder, or else the text encoder that set-up fetched."""
    from freshet import resources

    return resources.text_encoder_folder(Path(settings.model_repository))
