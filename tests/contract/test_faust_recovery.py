"""What the worker relies on of Faust's recovery of tables: how a step that takes too long ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.tables.recovery import Recovery, ServiceStopped
from freshet.adapters import state_table


def recovery(kind: type[Recovery]) -> Recovery:
    """One without tables."""
    app: Any = SimpleNamespace(conf=SimpleNamespace(stream_recovery_delay=0.0))
    return kind(app, SimpleNamespace())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the worker is an exception."""

    def fail_fast(error: BaseException) -> None:
        raise SystemExit(str(error))

    monkeypatch.setattr(state_table, "fail_fast", fail_fast)


def test_a_step_that_takes_too_long_ends_the_worker() -> None:
    """A recovery step that takes too long ends the process and names the step."""

    async def step() -> None:
        await recovery(state_table.StateRecovery)._wait(asyncio.sleep(60), timeout=0.05)

    with pytest.raises(SystemExit, match=r"longer than 0\.05 s"):
        asyncio.run(step())


def test_faust_takes_it_for_a_stop() -> None:
    """Failing control: Faust ends the recovery as if its service had been stopped."""

    async def step() -> None:
        await recovery(Recovery)._wait(asyncio.sleep(60), timeout=0.05)

    with pytest.raises(ServiceStopped):
        asyncio.run(step())


def test_a_stop_ends_nothing_else() -> None:
    """A stop during a recovery ends the recovery as Faust's own does."""

    async def stop() -> None:
        stopping = recovery(state_table.StateRecovery)
        asyncio.get_running_loop().call_later(0.05, stopping._stopped.set)
        await stopping._wait(asyncio.sleep(60), timeout=5)

    with pytest.raises(ServiceStopped):
        asyncio.run(stop())
