"""`check`: the effective settings, and whether every part answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import typer
from rich.text import Text

from freshet.bundle.bundle import version_numbers
from freshet.bundle.signature import load_trusted
from freshet.cli.connections import open_consumer
from freshet.cli.console import emit, out, plain, rows
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Effective, Json, Kafka, Triton, resolve
from freshet.core.rollout import MODEL
from freshet.errors import FreshetError
from freshet.settings import Settings, Variant, require_folders

VERSIONED = (MODEL, "item_tower")
TEXT_ENCODER = "text_encoder"


class Failed(FreshetError):
    """A part does not do what it should; the message says what."""


class Verdict(NamedTuple):
    """What became of testing one part."""

    part: str
    ok: bool
    detail: str


def check(
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    as_json: Json = False,
) -> None:
    """Show the effective settings and test every connection; exit 1 when one fails."""
    effective = resolve(config, directory, kafka=kafka, triton=triton)
    if not as_json:
        _show_settings(effective)
    verdicts = []
    for part, test in TESTS.items():
        verdict = judge(part, test, effective.settings)
        verdicts.append(verdict)
        if not as_json:
            _show_verdict(verdict)
    ok = all(verdict.ok for verdict in verdicts)
    if as_json:
        settings = {
            name: {"value": value, "source": effective.sources[name]}
            for name, value in effective.settings.masked().items()
        }
        emit({"ok": ok, "settings": settings, "checks": [verdict._asdict() for verdict in verdicts]})
    if not ok:
        raise typer.Exit(1)


def judge(part: str, test: Callable[[Settings], str], settings: Settings) -> Verdict:
    """Run one test; whatever goes wrong in it is its verdict."""
    try:
        return Verdict(part, ok=True, detail=test(settings))
    except FreshetError as error:
        return Verdict(part, ok=False, detail=str(error))
    except Exception as error:
        return Verdict(part, ok=False, detail=f"{type(error).__name__}: {error}")


def _kafka(settings: Settings) -> str:
    from confluent_kafka.admin import AdminClient

    from freshet.adapters.kafka import client_config
    from freshet.adapters.source import SourceReader, changelog_faults, source_faults
    from freshet.adapters.topics import side_input_faults

    names = [getattr(settings, name) for name in settings.__struct_fields__ if name.endswith("_topic")]
    with open_consumer(settings) as consumer:
        counts = {name: len(consumer.partitions_for_topic(name) or ()) for name in names}
    if missing := [name for name, count in counts.items() if not count]:
        raise Failed(f"{settings.kafka} answers, without the topics {', '.join(missing)}")
    admin, events = AdminClient(client_config(settings)), counts[settings.events_topic]
    source = SourceReader(settings).read()
    faults = side_input_faults(settings, admin) + changelog_faults(settings, admin, events)
    faults += source_faults(settings, source) + source.losses(settings.events_topic)
    if faults:
        raise Failed("; ".join(faults))
    lists = counts[settings.recommendations_topic]
    return f"{settings.kafka}, {len(counts)} topics, {events} partitions of events, {lists} of recommendations"


def _codecs(_settings: Settings) -> str:
    from freshet.adapters.wire_batches import codec_faults

    if faults := codec_faults():
        raise Failed(f"{'; '.join(faults)}: install the locked cramjam again")
    return "batches compressed by gzip, snappy, lz4 and zstd are read"


def _triton(settings: Settings) -> str:
    import tritonclient.grpc as client
    from tritonclient.utils import InferenceServerException

    from freshet.adapters.triton_address import TritonAddress

    server = client.InferenceServerClient(**TritonAddress.of(settings).arguments)
    ready: dict[str, set[int]] = {}
    try:
        if not server.is_server_live(client_timeout=settings.triton_deadline):
            raise Failed(f"{settings.triton} is not live")
        for model in VERSIONED:
            ready[model] = {
                version
                for version in version_numbers(Path(settings.model_repository) / MODEL)
                if server.is_model_ready(model, str(version), client_timeout=settings.triton_deadline)
            }
        reads_texts = server.is_model_ready(TEXT_ENCODER, client_timeout=settings.triton_deadline)
    except InferenceServerException as error:
        raise Failed(f"{settings.triton} does not answer: {error.message()}") from None
    finally:
        server.close()
    missing = [name for name, versions in ready.items() if not versions] + [TEXT_ENCODER] * (not reads_texts)
    if missing:
        raise Failed(f"{settings.triton} is live, yet has no ready version of {', '.join(missing)}")
    if apart := ready[MODEL] - ready["item_tower"]:
        raise Failed(f"version {max(apart)} of {MODEL} is ready, its item tower is not")
    versions = ", ".join(f"{name} {_versions(found)}" for name, found in ready.items())
    return f"{settings.triton}, {versions}, {TEXT_ENCODER} ready"


def _features(settings: Settings) -> str:
    from freshet.adapters.feast import open_feature_store

    async def ping() -> None:
        await store.ping()

    store = open_feature_store(settings)
    try:
        asyncio.run(ping())
    finally:
        store.close()
    return f"{settings.online_store} answers"


def _bundle(settings: Settings) -> str:
    require_folders(settings)
    folder = Path(settings.model_repository) / MODEL
    versions = version_numbers(folder)
    if not versions:
        raise Failed(f"{folder} holds no version")
    arms: list[Settings | Variant] = [settings, *settings.variants.values()]
    for version in versions:
        bundle = load_trusted(folder / str(version), Path(settings.trusted_keys))
        for arm in arms:
            bundle.require_lifts(arm.value_weight, arm.novelty_weight)
    return f"{folder}, {_versions(versions)} signed and sound, {len(bundle.item_ids):,} items in the newest"


TESTS: dict[str, Callable[[Settings], str]] = {
    "kafka": _kafka,
    "codecs": _codecs,
    "triton": _triton,
    "features": _features,
    "bundle": _bundle,
}


def _versions(found: Iterable[int]) -> str:
    return "v" + ", v".join(map(str, sorted(found)))


def _show_settings(effective: Effective) -> None:
    lines = []
    for name, value in effective.settings.masked().items():
        shown = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
        lines.append((name, plain(shown), effective.sources[name]))
    rows(lines, ("", "cyan", "dim"))
    out.print()


def _show_verdict(verdict: Verdict) -> None:
    detail = " ".join(plain(line.strip()) for line in verdict.detail.splitlines())
    mark = Text("✓ ", "green") if verdict.ok else Text("✗ ", "red")
    out.print(mark.append(f"{verdict.part:<9}", "bold").append(detail, ""), soft_wrap=True)
