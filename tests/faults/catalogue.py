"""The faults by name: what each does, and what may come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.faults.arena import Arena

Scenario = Callable[[Arena], Sequence[str]]


class Fault(NamedTuple):
    """A fault: its scenario gives the complaints of the judge, none where the fault is borne.

    `refusal` says how Freshet refuses what it cannot bear: no complaint then means that it refuses as documented.
    `known` says what is known to break, and where it is written down.
    """

    name: str
    title: str
    family: str
    run: Scenario
    quick: bool
    refusal: str
    known: str


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, title: str, *, quick: bool = False, refusal: str = "", known: str = ""
) -> Callable[[Scenario], Scenario]:
    """Register a scenario; a `quick` one is among those of `make test`."""

    def register(run: Scenario) -> Scenario:
        FAULTS[name] = Fault(name, title, run.__module__.rpartition(".")[2], run, quick, refusal, known)
        return run

    return register
