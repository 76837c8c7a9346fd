"""Where `make setup` puts what the stack is made of."""

import shutil
from pathlib import Path

from deploy.local.errors import MissingPart

ROOT = Path(__file__).resolve().parents[2]
PARTS = ROOT / ".parts"
KAFKA_LIBS = PARTS / "kafka" / "libs"
TEXT_ENCODER = PARTS / "text_encoder"
TRITON_ENV = PARTS / "triton-env"
TRITON_SERVER = PARTS / "tritonserver"
TRITON_MODELS = ROOT / "triton_models"
SHIPPED_KEYS = ROOT / "deploy" / "keys"


def executable(name: str) -> Path:
    """The path of a system command.

    Raises:
        MissingPart: It is not on PATH.
    """
    found = shutil.which(name)
    if found is None:
        raise MissingPart(name)
    return Path(found)


def present(path: Path, name: str) -> Path:
    """The path of the part that is called `name`.

    Raises:
        MissingPart: Nothing is there.
    """
    if not path.exists():
        raise MissingPart(name)
    return path


def missing_parts() -> list[str]:
    """What `make setup` would have to fetch before a whole stack can start; empty when ready."""
    have = {
        "java": shutil.which("java") is not None,
        "redis-server": shutil.which("redis-server") is not None,
        "Kafka's jars": KAFKA_LIBS.exists(),
        "Triton": TRITON_SERVER.exists() and TRITON_ENV.exists(),
        "the text encoder": TEXT_ENCODER.exists(),
    }
    return [part for part, there in have.items() if not there]
