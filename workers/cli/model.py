"""`publish`: a bundle into service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workers.cli.connections import open_producer, require_topics
from workers.cli.errors import UserError
from workers.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, Triton, resolve
from workers.cli.show import emit, say
from workers.cli.stack import steps
from workers.core.rollout import Rollout, encode_rollout


def publish(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="A bundle, as `freshet train` writes it.")],
    version: Annotated[int | None, typer.Option(min=1, help="Version number; the next one without.")] = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    as_json: Json = False,
) -> None:
    """Bring a bundle into service: verify, load, try, promote. When a step fails the old version serves on."""
    from deploy.release import ReleaseError, publish_bundle

    settings = resolve(config, directory, kafka=kafka, triton=triton).settings
    require_topics(settings, settings.models_topic)
    with open_producer(settings) as producer:

        def announce(rollout: Rollout) -> None:
            future = producer.send(settings.models_topic, encode_rollout(rollout), rollout.model.encode())
            future.get(timeout=30)

        try:
            rollout = publish_bundle(
                bundle,
                Path(settings.model_repository),
                settings.triton,
                Path(settings.trusted_keys),
                announce,
                version=version,
                step=steps,
            )
        except ReleaseError as error:
            raise UserError(str(error)) from None
    if as_json:
        emit({"model": rollout.model, "version": rollout.version, "stage": rollout.stage})
    else:
        say(f"version {rollout.version} is promoted")
