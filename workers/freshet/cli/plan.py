"""`build-plan`: a version as a TensorRT plan, on the host that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from freshet.cli.console import emit, say
from freshet.cli.errors import UserError
from freshet.cli.options import DEFAULT_DIRECTORY, Config, Directory, Json, resolve
from freshet.cli.signing import Key, local_keys

SERVED = "start Triton with --model-config-name=tensorrt"
WITHOUT = "; without a plan ONNX Runtime serves it"


def build_plan(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE_DIR", help="A bundle that is not published yet.")],
    fp16: Annotated[bool, typer.Option(help="Allow half precision.")] = True,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Largest difference from the golden outputs, at most 0.05 in half precision, else 0.001."
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kept between builds: the next one times less.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Build nothing: does the plan there fit this host?")] = False,
    key: Key = None,
    config: Config = None,
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: Json = False,
) -> None:
    """Build a bundle's TensorRT plan on the GPU host that serves the bundle, and compare the plan with ONNX.

    Publish the bundle afterwards as usual. If no plan fits this host, the exit status is 1 and ONNX Runtime serves.
    """
    from freshet.bundle.signature import SignatureError
    from freshet.release.tensorrt import build_plan as plans
    from freshet.release.tensorrt.stamp import StampError

    try:
        if check:
            stamp = plans.check(bundle, Path(resolve(config, directory).settings.trusted_keys))
        else:
            options = plans.PlanOptions(key or local_keys(directory), fp16, tolerance, timing_cache)
            stamp = plans.build(bundle, options)
    except (StampError, SignatureError) as error:
        raise UserError(f"{error}{WITHOUT if (bundle / 'model.onnx').is_file() else ''}") from None
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    if as_json:
        emit(msgspec.to_builtins(stamp))
    else:
        precision = "half" if stamp.fp16 else "single"
        say(f"{bundle / plans.PLAN} fits this host: {precision} precision, off by {stamp.off:.2g} at most; {SERVED}")
