"""What ships beside the code: package data in an installed wheel, the folders of the checkout elsewhere."""

from pathlib import Path

_PACKAGED = Path(__file__).with_name("data")
_ROOT = Path(__file__).resolve().parents[2]

CHECKOUT = None if _PACKAGED.is_dir() else _ROOT
"""The checkout that Freshet runs from; None in an installed wheel."""

FEATURE_REPO = _PACKAGED / "feature_repo" if CHECKOUT is None else CHECKOUT / "feature_repo"
"""The Feast repository: `feature_store.yaml` and `definitions.py`."""
MODELS = _PACKAGED / "triton_models" if CHECKOUT is None else CHECKOUT / "triton_models"
"""The model repository with the shipped version; its text encoder has no files here."""
KEYS = _PACKAGED / "keys" if CHECKOUT is None else CHECKOUT / "deploy" / "keys"
"""The public key of the shipped version."""
DOMAINS = _PACKAGED / "domains" if CHECKOUT is None else CHECKOUT / "deploy" / "domains"
"""Settings files of three domains, as they were trained."""
FETCHED = None if CHECKOUT is None else CHECKOUT / ".parts"
"""Where `make setup` puts what it fetches; None without a checkout."""


def text_encoder_folder(repository: Path) -> Path:
    """The folder of the text encoder's `model.onnx` and `tokenizer.json`.

    It is the one in the model repository, or the one that `make setup` fetched where the repository has no file of it.
    """
    served = repository / "text_encoder" / "1"
    fetched = FETCHED / "text_encoder" if FETCHED is not None else served
    return served if (served / "model.onnx").is_file() else fetched
