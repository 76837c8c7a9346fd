"""The text encoder that a version was trained with, beside the text encoder that is served.

A version's item tower places a new item by the vector of the item's text. The vector of another text encoder means
nothing to the tower. A version that names its text encoder is therefore served beside that text encoder alone.
"""

from __future__ import annotations

from pathlib import Path

from freshet.bundle.bundle import Bundle, BundleError, sha256, version_numbers

TEXT_ENCODER = "text_encoder"
"""The model's folder in a model repository."""
GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
FILES = (GRAPH, TOKENIZER)
"""What the folder of a text encoder holds."""


def served_folder(repository: Path) -> Path | None:
    """The folder of the text encoder that Triton serves from a model repository; None where the repository has none.

    Triton answers with the highest version.
    """
    versions = version_numbers(repository / TEXT_ENCODER)
    folder = repository / TEXT_ENCODER / str(versions[-1]) if versions else None
    return folder if folder is not None and all((folder / name).is_file() for name in FILES) else None


def require_served(bundle: Bundle, repository: Path) -> None:
    """See that a version's text encoder is the text encoder of the model repository.

    A version that names none passes, and so does a repository without the files of a text encoder: such a repository
    places no new item. Raises `BundleError`.
    """
    named, folder = bundle.manifest.text_encoder, served_folder(repository)
    if named is None or folder is None:
        return
    for name, digest in ((GRAPH, named.model), (TOKENIZER, named.tokenizer)):
        if sha256(folder / name) != digest:
            raise BundleError(
                f"{bundle.path}: the version was trained with another text encoder than {folder / name}, its sha256 "
                f"begins with {digest[:12]}: train it with `--text-encoder {folder}`, or serve its own text encoder"
            )
