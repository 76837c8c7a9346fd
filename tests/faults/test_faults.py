"""The quick faults of `make faults`: each holds, or is refused as documented, on real parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local import Stack
from tests.faults import __main__ as runner
from tests.faults.catalogue import FAULTS

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", [fault.name for fault in FAULTS.values() if fault.quick])
def test_a_fault_is_borne(name: str, stack: Stack, tmp_path: Path) -> None:
    """The judge has nothing to complain of, and finds the errors that are put in."""
    outcome = runner.attempt(FAULTS[name], stack, tmp_path, 1, quick=True)
    assert not outcome.complaints, f"{outcome.fault.title}: {outcome.complaints}"
