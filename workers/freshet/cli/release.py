"""`publish`, `promote`, `rollback`, `models`: the life of a version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from freshet.cli.console import emit, moment, out, plain, rows, say
from freshet.cli.errors import UserError
from freshet.cli.models_topic import ModelsTopic, obeys
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, Kafka, Triton, resolve
from freshet.cli.stack import steps
from freshet.core.rollout import Report, Rollout, Versions
from freshet.settings import Settings

if TYPE_CHECKING:
    from freshet.bundle.bundle import Manifest

SHARE = 0.1
HOUR = 3600.0

Stage = Annotated[
    Literal["shadow", "canary", "promoted"],
    typer.Option(help="shadow: compared, never shown; canary: for a share of the users; promoted: for all."),
]
Share = Annotated[
    float | None,
    typer.Option(min=0.001, max=1, help=f"Of the users, by hash: all in shadow, {SHARE:g} in canary unless told."),
]


def publish(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="A bundle, as `freshet train` writes it.")],
    stage: Stage = "promoted",
    share: Share = None,
    version: Annotated[int | None, typer.Option(min=1, help="Version number; the next one without.")] = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    as_json: Json = False,
) -> None:
    """Bring a bundle in: verify, load, try, promote (or begin with a shadow or a canary).

    When a step fails the old version serves on.
    """
    from freshet.bundle.bundle import read_manifest
    from freshet.release.publish import publish_bundle

    settings = resolve(config, directory, kafka=kafka, triton=triton).settings
    taken = publish_bundle(
        bundle,
        _service(settings),
        ModelsTopic(settings),
        stage=stage,
        share=_share(stage, share),
        version=version,
        step=steps,
    )
    _tell(taken, taken.version if stage == "promoted" else None, as_json=as_json)
    for difference in _differences(read_manifest(bundle), settings):
        say(f"{difference}: workers need the settings file that it was trained by")


def _differences(manifest: Manifest, settings: Settings) -> list[str]:
    """How a version was trained for other settings than workers have, as far as it makes its lists worse."""
    unnamed = [kind for kind in manifest.types if kind not in settings.behaviours]
    found = []
    if unnamed:
        found.append(
            f"it was trained on {', '.join(unnamed)} too, dead letters where settings do not name them, as these do not"
        )
    if manifest.length > settings.history:
        found.append(f"it reads {manifest.length} events of a user, and these settings keep {settings.history}")
    if manifest.popularity_half_life_s != settings.popularity_half_life:
        theirs, ours = manifest.popularity_half_life_s / HOUR, settings.popularity_half_life / HOUR
        found.append(f"its popularity halves every {theirs:g} h, and these settings' every {ours:g} h")
    return found


def promote(
    version: Annotated[int | None, typer.Argument(help="The candidate, unless told.", show_default=False)] = None,
    stage: Stage = "promoted",
    share: Share = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    as_json: Json = False,
) -> None:
    """Move the candidate on: for all users, or with --stage canary --share for more of them."""
    from freshet.release.publish import promote as move_on

    settings = resolve(config, directory, kafka=kafka, triton=triton).settings
    records = ModelsTopic(settings)
    found = records.read()
    taken = move_on(_service(settings), records, stage, _share(stage, share), step=steps, version=version)
    compared = _compared(found, taken.version)
    _tell(taken, taken.version if stage == "promoted" else None, as_json=as_json)
    if stage == "promoted" and compared < settings.canary_lists:
        say(f"it was compared for {compared:,} users before, and a canary is judged from {settings.canary_lists:,} on")


def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    as_json: Json = False,
) -> None:
    """Withdraw the candidate. If there is no candidate, go back to the version promoted before the live version."""
    from freshet.release.publish import roll_back

    settings = resolve(config, directory, kafka=kafka, triton=triton).settings
    taken, live = roll_back(_service(settings), ModelsTopic(settings), reason, steps)
    _tell(taken, live, as_json=as_json)


def models(
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    kafka: Kafka = None,
    triton: Triton = None,
    as_json: Json = False,
) -> None:
    """Show every version with its stage, what each worker makes lists with, and how a candidate compares."""
    settings = resolve(config, directory, kafka=kafka, triton=triton).settings
    found = ModelsTopic(settings).read()
    ready = _ready(settings)
    if as_json:
        emit(_as_object(found, ready, settings))
        return
    if not found.steps:
        served = ", ".join(map(str, ready or [])) or "none"
        say(f"nothing was published yet; Triton has version {served} ready")
    else:
        _show_versions(found, ready)
    if found.reports:
        out.print()
        _show_workers(found)
        if found.candidate is not None and found.candidate.stage == "canary":
            out.print(_bands(settings), style="dim", soft_wrap=True)


def _service(settings: Settings) -> Any:
    from freshet.adapters.triton_address import TritonAddress
    from freshet.release.publish import Service

    return Service(
        Path(settings.model_repository),
        TritonAddress.of(settings),
        Path(settings.trusted_keys),
        settings.versions_kept,
    )


def _share(stage: str, share: float | None) -> float:
    if stage == "promoted":
        if share is not None:
            raise UserError("--share goes with --stage shadow or canary")
        return 1.0
    if share is not None:
        return share
    return SHARE if stage == "canary" else 1.0


def _tell(taken: Rollout, live: int | None, *, as_json: bool) -> None:
    why = f" ({plain(taken.reason)})" if taken.reason else ""
    if as_json:
        emit({**msgspec.to_builtins(taken), "live": live})
    elif taken.stage == "rolled_back":
        say(f"version {taken.version} is rolled back, {live} is live")
    elif taken.stage == "promoted":
        say(f"version {taken.version} is live{why}: `freshet rollback` goes back")
    else:
        say(
            f"version {taken.version} is in {taken.stage}{why}: `freshet models` compares, "
            "`freshet promote` moves on, `freshet rollback` withdraws"
        )


def _ready(settings: Settings) -> list[int] | None:
    """The versions that Triton has ready; None where it does not answer."""
    from freshet.adapters.triton_address import TritonAddress
    from freshet.release.errors import ReleaseError
    from freshet.release.server import Server

    server = Server(TritonAddress.of(settings))
    try:
        return server.ready()
    except ReleaseError:
        return None
    finally:
        server.close()


def _show_versions(found: Versions, ready: list[int] | None) -> None:
    lines = [("version", "stage", "since (UTC)", "at Triton", "")]
    for version, step in sorted(found.steps.items(), reverse=True):
        served = "?" if ready is None else "ready" if version in ready else "-"
        lines.append((str(version), _stage(step, found), moment(step.ts), served, plain(step.reason)))
    rows(lines, ("bold", "cyan", "dim", "", "dim"), head=True)


def _stage(step: Rollout, found: Versions) -> str:
    if step.stage == "promoted":
        return "live" if step.version == found.live else "was live"
    share = f" {step.share * 100:g}%" if step.stage in {"shadow", "canary"} and step.share < 1 else ""
    return step.stage.replace("_", " ") + share


def _show_workers(found: Versions) -> None:
    compared = any(report.candidate for report in found.reports.values())
    names = ("users compared", "overlap", "score gap", "failed", "encoder ms") if compared else ()
    lines = [("worker", "lists by", *names)]
    for worker, report in sorted(found.reports.items()):
        lines.append((plain(worker), _makes(report, found), *(_figures(report) if compared else ())))
    rows(lines, ("bold", "cyan", *("" for _ in names)), head=True)


def _makes(report: Report, found: Versions) -> str:
    """What its lists are made with; a version in shadow makes none."""
    unseen = found.candidate is not None and found.candidate.stage == "shadow"
    versions = f"{report.live}"
    if report.candidate:
        versions += f", tries {report.candidate}" if unseen else f" and {report.candidate}"
    return versions if obeys(report, found) else f"{versions} (changing)"


def _compared(found: Versions, version: int) -> int:
    """For how many users the worker that tried a candidate most has done so: each judges by itself."""
    tried = (report.comparison for report in found.reports.values() if report.candidate == version)
    return max((comparison.lists + comparison.failed for comparison in tried), default=0)


def _figures(report: Report) -> tuple[str, str, str, str, str]:
    comparison = report.comparison
    if not report.candidate:
        return "-", "-", "-", "-", "-"
    if not comparison.lists or comparison.error_rate == 1:
        return f"{comparison.lists:,}", "-", "-", f"{comparison.failed:,}", "-"
    times = f"{comparison.live_ms:.1f} → {comparison.candidate_ms:.1f}"
    return (
        f"{comparison.lists:,}",
        f"{comparison.overlap:.3f}",
        f"{comparison.score_gap:.3g}",
        f"{comparison.failed:,}",
        times,
    )


def _bands(settings: Settings) -> str:
    """When the workers end a canary by themselves."""
    return (
        f"from {settings.canary_lists:,} users on it is rolled back at overlap < {settings.canary_overlap:g}, "
        f"failed > {settings.canary_error_rate * 100:g}% or encoder ms > {settings.canary_latency_ratio:g} × live"
    )


def _as_object(found: Versions, ready: list[int] | None, settings: Settings) -> dict[str, Any]:
    candidate = found.candidate
    names = ("canary_lists", "canary_error_rate", "canary_latency_ratio", "canary_overlap")
    return {
        "live": found.live,
        "candidate": msgspec.to_builtins(candidate) if candidate is not None else None,
        "ready": ready,
        "versions": [msgspec.to_builtins(step) for _, step in sorted(found.steps.items(), reverse=True)],
        "workers": [
            {**msgspec.to_builtins(report), "obeys": obeys(report, found)} for report in found.reports.values()
        ],
        "bands": {name: getattr(settings, name) for name in names},
    }
