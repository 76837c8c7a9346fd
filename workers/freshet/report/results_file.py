"""Results of an evaluation as a file: the JSON of one `Results`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from freshet.core.decoding import Undecodable, decode
from freshet.core.evaluation.results import Results
from freshet.errors import FreshetError
from freshet.files import write_json


class ResultsError(FreshetError):
    """The file holds no results; the message says why."""


def write_results(path: Path, results: Results) -> None:
    """Write a results file, whole or not at all."""
    write_json(path, results)


def read_results(path: Path) -> Results:
    """Read a results file. Raises `ResultsError`."""
    try:
        results = decode(_decoder, path.read_bytes())
    except FileNotFoundError:
        raise ResultsError(f"{path} does not exist") from None
    if isinstance(results, Undecodable):
        raise ResultsError(f"{path} holds no results: {results.why}")
    return results


_decoder = msgspec.json.Decoder(Results)
