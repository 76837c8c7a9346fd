"""`train` and `publish`: a model version from a log to the live stream."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from deploy.demo import movielens
from deploy.local.parts import PARTS, ROOT, TEXT_ENCODER
from workers.cli.connections import open_producer, require_topics
from workers.cli.errors import UserError
from workers.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, Triton, resolve
from workers.cli.show import emit, say
from workers.cli.signing import local_keys, sign_bundle
from workers.cli.stack import steps
from workers.core.rollout import Rollout, encode_rollout

TRAINING_PYTHON = PARTS / "training-env" / "bin" / "python"


def train(context: typer.Context) -> None:
    """Train a version in the training environment; all arguments go to `python -m training.train`.

    Without any, train the version that ships: MovieLens-100K, into .freshet/bundle.
    """
    if not TRAINING_PYTHON.exists():
        raise UserError("the training environment is missing: run `make setup-training`")
    arguments = context.args or _movielens_arguments(DEFAULT_DIRECTORY)
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [str(TRAINING_PYTHON), "-m", "training.train", *arguments]
    status = subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, check=False).returncode
    bundle = _out(arguments)
    if status == 0 and bundle is not None:
        mark = sign_bundle(bundle, local_keys(DEFAULT_DIRECTORY))
        say(f"signed by {mark[:16]}, the key in {DEFAULT_DIRECTORY / 'keys'}")
    raise typer.Exit(status)


def _out(arguments: list[str]) -> Path | None:
    """The folder that training was told to write its bundle to."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--out", type=Path)
    found: Path | None = parser.parse_known_args(arguments)[0].out
    return found


def _movielens_arguments(directory: Path) -> list[str]:
    """Write MovieLens-100K as a log, and say how to train on it. Raises `UserError`."""
    log = directory / "ml-100k"
    try:
        movielens.convert(movielens.FOLDER, log)
    except movielens.MovieLensError as error:
        raise UserError(str(error)) from None
    bundle = directory / "bundle"
    if bundle.exists() and any(bundle.iterdir()):
        raise UserError(f"{bundle} holds a bundle already: move it away, or name another folder with --out")
    files = ["--events", str(log / "events.jsonl"), "--items", str(log / "items.jsonl")]
    files += ["--text-encoder", str(TEXT_ENCODER), "--out", str(bundle)]
    return [*files, "--name", "movielens-100k", "--data-terms", movielens.TERMS]


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
