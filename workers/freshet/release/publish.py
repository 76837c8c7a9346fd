"""The steps of a version: published, promoted, rolled back.

Triton keeps serving the versions it has while another one loads, and keeps them when that load
fails; so until a record on the models topic is written nothing has changed for any worker. A
publisher may be killed between any two steps: the next one, or the next start of a local Triton,
removes what it left.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freshet.adapters.triton_address import TritonAddress
from freshet.bundle.bundle import MANIFEST, SIGNATURE, Bundle, BundleError, Manifest
from freshet.bundle.signature import load_trusted
from freshet.bundle.text_encoder import require_served
from freshet.core.rollout import MODEL, Rollout, Stage, Versions
from freshet.release import repository as folders
from freshet.release.errors import ReleaseError
from freshet.release.records import Records
from freshet.release.server import Server
from freshet.release.tensorrt import build_plan
from freshet.release.tensorrt.build_plan import PLAN, STAMP, STAMP_SIGNATURE
from freshet.release.tensorrt.stamp import StampError

PLANNED = frozenset({PLAN, STAMP, STAMP_SIGNATURE})
"""What `freshet build-plan` puts beside a bundle's own files."""
Step = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Service:
    """Where versions are served.

    `repository` is Triton's model repository, `triton` where Triton is, `trusted`
    the folder of the public keys that may have signed a bundle. The newest
    `versions_kept` folders stay in the repository.
    """

    repository: Path
    triton: TritonAddress
    trusted: Path
    versions_kept: int


def publish_bundle(
    folder: Path,
    service: Service,
    records: Records,
    *,
    stage: Stage = "promoted",
    share: float = 1.0,
    version: int | None = None,
    step: Step = lambda _name: nullcontext(),
) -> Rollout:
    """Bring the bundle at `folder` in as the next version, or as `version`, in a stage of its life.

    Args:
        folder: The bundle; it is copied.
        service: Where to.
        records: The models topic.
        stage: `shadow`, `canary` or `promoted`.
        share: Of the users, for shadow and canary.
        version: The number to give it; must be newer than any other.
        step: Told of each step.

    Raises:
        ReleaseError: A step failed. What was renamed in has been removed again.
    """
    repository = service.repository
    with step("bundle verified"):
        bundle = _verify(folder, service.trusted, repository)
    folders.require(repository)
    server = Server(service.triton)
    try:
        with folders.only_publisher(repository) as staging:
            server.require_live()
            live = _make_way(service, server, records)
            number = _number(repository, records.read(), version)
            try:
                with step(f"version {number} copied"):
                    _prepare(folder, service.trusted, staging)
                    folders.place(staging, repository, number)
                with step("loaded"):
                    server.load(number)
                with step("golden inference"):
                    server.try_golden(repository / MODEL / str(number), number)
            except BaseException:
                folders.remove(repository, [number])
                folders.settle(repository)
                server.reload()
                raise
            folders.settle(repository)
            taken = _take(records, Rollout(MODEL, number, stage, _now_ms(), share, _unjudged(bundle.manifest)), step)
            _retire(repository, service.versions_kept, keep={live, number})
    finally:
        server.close()
    return taken


def promote(
    service: Service, records: Records, stage: Stage, share: float, step: Step, version: int | None = None
) -> Rollout:
    """Move the candidate (or `version`) on to another stage. Raises `ReleaseError`."""
    with folders.only_publisher(service.repository):
        found = records.read()
        candidate = found.candidate
        if version is None and candidate is None:
            raise ReleaseError("no version is in shadow or in canary: `freshet models` shows them all")
        number = version or (candidate.version if candidate is not None else 0)
        if candidate is not None and candidate.version != number:
            raise ReleaseError(f"version {candidate.version} is in {candidate.stage}: promote it or roll it back first")
        if found.live == number:
            raise ReleaseError(f"version {number} is live")
        _require_ready(service, number, found)
        reason = candidate.reason if candidate is not None else ""
        return _take(records, Rollout(MODEL, number, stage, _now_ms(), share, reason), step)


def roll_back(service: Service, records: Records, reason: str, step: Step) -> tuple[Rollout, int]:
    """Withdraw the candidate, or else the live version in favour of the one promoted before it.

    That one is loaded again where Triton has let it go. Returns the step, and the version that is live after it.
    Raises `ReleaseError`.
    """
    with folders.only_publisher(service.repository):
        found = records.read()
        promoted = found.promoted
        if found.candidate is not None:
            number, live = found.candidate.version, found.live or 0
        elif len(promoted) > 1:
            number, live = promoted[0], promoted[1]
            _bring_back(service, records, live, number, step)
        else:
            raise ReleaseError("there is nothing to roll back to: no version was promoted before the live one")
        return _take(records, Rollout(MODEL, number, "rolled_back", _now_ms(), reason=reason), step), live


def _verify(folder: Path, trusted: Path, repository: Path) -> Bundle:
    """Read a bundle that may be served from the repository. Raises `ReleaseError`."""
    try:
        bundle = load_trusted(folder, trusted)
        bundle.check_gate()
        require_served(bundle, repository)
        extra = {file.name for file in folder.iterdir()} - {*bundle.manifest.files, MANIFEST, SIGNATURE}
        if extra & PLANNED:  # made on the serving host, after the manifest was signed
            build_plan.check(folder, trusted)
    except StampError as error:
        raise ReleaseError(f"{folder / PLAN} cannot be served here: {error}") from None
    except (BundleError, OSError, ValueError) as error:
        raise ReleaseError(str(error)) from None
    if unknown := extra - PLANNED:
        raise ReleaseError(f"{folder / min(unknown)} is not in the manifest")
    return bundle


def _unjudged(manifest: Manifest) -> str:
    """What its record says of a version that no gate accepted: its signature alone vouches for it."""
    if manifest.gate is None:
        return "no gate has judged it"
    return "" if manifest.gate.accepted else f"the gate refused it: {manifest.ungated}"


def _make_way(service: Service, server: Server, records: Records) -> int:
    """See that the live version will be one of the two that Triton serves; returns it. Raises `ReleaseError`.

    Where nothing was ever promoted, what serves now is put on record: a worker that starts while
    the new version is tried must not take that one. Versions above the live one, which were rolled
    back or never announced, are taken out. Then every worker must have left the version that the
    load will unload.
    """
    found = records.read()
    if found.candidate is not None:
        candidate = found.candidate
        raise ReleaseError(f"version {candidate.version} is in {candidate.stage}: promote it or roll it back first")
    live = found.live
    if live is None:
        ready = [version for version in server.ready() if version not in found.steps]
        if not ready:
            raise ReleaseError(f"Triton at {service.triton.address} has no version of {MODEL} ready")
        live = ready[-1]
        records.write(Rollout(MODEL, live, "promoted", _now_ms(), reason="it served before the first publication"))
    above = {version for version in folders.versions(service.repository) if version > live}
    folders.remove(service.repository, above)
    _require_obeyed(records, live)
    return live


def _bring_back(service: Service, records: Records, earlier: int, live: int, step: Step) -> None:
    """See that Triton serves an earlier version beside the live one. Raises `ReleaseError`.

    Triton serves the two highest numbers, so other versions above the earlier one, which were rolled back, are taken
    out once every worker has left them.
    """
    server = Server(service.triton)
    try:
        server.require_live()
        if earlier in server.ready():
            return
        kept = folders.versions(service.repository)
        if earlier not in kept:
            raise ReleaseError(
                f"the folder of version {earlier} is no longer kept, live is {live}: `freshet publish` its bundle again"
            )
        _require_obeyed(records, live)
        with step(f"version {earlier} loaded again"):
            folders.remove(service.repository, [version for version in kept - {live} if version > earlier])
            server.load(earlier)
            server.try_golden(service.repository / MODEL / str(earlier), earlier)
    finally:
        server.close()


def _require_obeyed(records: Records, live: int) -> None:
    """See that no worker makes lists with a version that the next load unloads. Raises `ReleaseError`."""
    if behind := records.wait():
        raise ReleaseError(f"{', '.join(behind)} still makes lists with another version than {live}: `freshet models`")


def _number(repository: Path, found: Versions, asked: int | None) -> int:
    """The version's number. Raises `ReleaseError` for one that is not newer than all that were."""
    newest = max({*folders.versions(repository), *found.steps}, default=0)
    if asked is not None and asked <= newest:
        raise ReleaseError(f"version {asked} is not newer than {newest}, and only the newest two are served")
    return newest + 1 if asked is None else asked


def _prepare(folder: Path, trusted: Path, staging: Path) -> None:
    """Lay the version out as it will stand in the repository."""
    tower, encoder = staging / folders.TOWER, staging / MODEL
    shutil.copytree(folder, encoder)
    try:
        load_trusted(encoder, trusted)
    except BundleError as error:
        raise ReleaseError(f"the copy is not the bundle: {error}") from None
    tower.mkdir()
    shutil.copy(encoder / "item_tower.onnx", tower / "model.onnx")


def _take(records: Records, taken: Rollout, step: Step) -> Rollout:
    """Write a step, and see that it is obeyed and still the version's last. Raises `ReleaseError`."""
    with step(said(taken)):
        try:
            records.write(taken)
        except Exception as error:
            # the record may have arrived, so the version must stay where workers will look for it
            raise ReleaseError(f"{said(taken)} may not have been recorded: {error}") from error
    with step("obeyed by every worker"):
        behind = records.wait()
        last = records.read().steps[taken.version]
        if said(last) != said(taken):
            why = f" ({last.reason})" if last.reason else ""
            raise ReleaseError(f"{said(taken)}, but then {said(last)}{why}: `freshet models` shows them all")
        if behind:
            raise ReleaseError(f"{said(taken)}, but not yet by {', '.join(behind)}: `freshet models` shows them")
    return taken


def said(taken: Rollout) -> str:
    """A step in a few words."""
    if taken.stage in {"shadow", "canary"}:
        users = "all users" if taken.share == 1 else f"{taken.share * 100:g}% of the users"
        return f"version {taken.version} in {taken.stage} for {users}"
    return f"version {taken.version} {taken.stage.replace('_', ' ')}"


def _require_ready(service: Service, number: int, found: Versions) -> None:
    server = Server(service.triton)
    try:
        server.require_live()
        ready = server.ready()
    finally:
        server.close()
    if number not in ready:
        served = ", ".join(map(str, ready)) or "none"
        raise ReleaseError(
            f"Triton no longer serves version {number} (it serves {served}), live is {found.live}: "
            "`freshet publish` its bundle again"
        )


def _retire(repository: Path, kept: int, keep: set[int]) -> None:
    """Remove the oldest folders; the two that are served stay whatever `kept` says."""
    newest = sorted(folders.versions(repository), reverse=True)
    folders.remove(repository, [version for version in newest[max(kept, 2) :] if version not in keep])


def _now_ms() -> int:
    return int(time.time() * 1000)
