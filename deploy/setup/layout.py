"""Where the set-up puts its parts, and from which files it makes them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ROOT / ".parts"
REQUIREMENTS = ROOT / "deploy" / "requirements"
POM = ROOT / "deploy" / "setup" / "pom.xml"

SOURCES = (ROOT / "workers", ROOT / "training", ROOT)
"""Where packages are imported from: the product, the training job, and from the checkout itself the local stack."""

WORKER_ENV = ROOT / ".venv"
TRITON_ENV = PARTS / "triton-env"
TRAINING_ENV = PARTS / "training-env"
PEERS_ENV = PARTS / "peers-env"
UV_ENV = PARTS / "uv"
TRITON_SERVER = PARTS / "tritonserver"
MAVEN_REPOSITORY = PARTS / "maven"
KAFKA_LIBS = PARTS / "kafka" / "libs"
TEXT_ENCODER = PARTS / "text_encoder"
MOVIELENS = PARTS / "data" / "ml-100k"
