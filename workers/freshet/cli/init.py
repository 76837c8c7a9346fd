"""`init`: a folder to run Freshet from, beside a Kafka, a Triton and an online store of one's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from freshet import resources
from freshet.cli.console import say
from freshet.cli.errors import UserError
from freshet.files import aside, written_whole

SETTINGS = "freshet.toml"
TEMPLATE = Path(__file__).with_name("init.toml")
ENCODER_FILES = ("model.onnx", "tokenizer.json")


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to lay out: a new one, or an empty one.")],
    text_encoder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the text encoder's model.onnx and tokenizer.json, to copy."),
    ] = None,
) -> None:
    """Lay out a folder with settings, feature repository, model repository and trusted keys."""
    encoder = text_encoder or resources.text_encoder_folder(resources.MODELS)
    missing = [name for name in ENCODER_FILES if not (encoder / name).is_file()]
    if text_encoder is not None and missing:
        raise UserError(f"{text_encoder / missing[0]} does not exist: --text-encoder names the folder of both files")
    try:
        if directory.exists() and any(directory.iterdir()):
            raise UserError(f"{directory} is not empty: nothing was written; name a new folder")
        _lay_out(directory, encoder if not missing else None)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    say(_next_steps(directory, with_encoder=not missing))


def _lay_out(directory: Path, encoder: Path | None) -> None:
    """Write the folder whole or not at all. Raises `OSError`."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside(directory), ignore_errors=True)  # of a run that was killed
    ignore = shutil.ignore_patterns("__pycache__")
    with written_whole(directory) as folder:
        shutil.copytree(resources.MODELS, folder / "models", ignore=ignore)
        shutil.copytree(resources.FEATURE_REPO, folder / "feature_repo", ignore=ignore)
        shutil.copytree(resources.KEYS, folder / "keys", ignore=shutil.ignore_patterns("*.key"))
        served = folder / "models" / "text_encoder" / "1"
        served.mkdir(exist_ok=True)
        if encoder is not None:
            for name in ENCODER_FILES:
                shutil.copy(encoder / name, served)
        shutil.copy(TEMPLATE, folder / SETTINGS)


def _next_steps(directory: Path, *, with_encoder: bool) -> str:
    settings, models = directory / SETTINGS, directory / "models"
    bring = f"  put all-MiniLM-L6-v2's {' and '.join(ENCODER_FILES)} into {models / 'text_encoder' / '1'}\n"
    return (
        f"{directory} is laid out. Next:\n"
        f"  edit {settings}: where Kafka, Triton and the online store are\n"
        f"{'' if with_encoder else bring}"
        f"  PYTHONDONTWRITEBYTECODE=1 tritonserver --model-repository={models} --model-control-mode=explicit"
        " --load-model=item_tower --load-model=text_encoder --load-model=user_encoder --allow-http=false\n"
        f"  freshet topics create --config {settings}\n"
        f"  freshet check --config {settings}\n"
        f"  freshet worker --config {settings}"
    )
