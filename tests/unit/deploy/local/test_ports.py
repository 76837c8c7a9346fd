"""Ports chosen for servers that start later."""

import random
import socket
from collections.abc import Callable

import pytest

from deploy.local.errors import PortTaken
from deploy.local.ports import HIGHEST, LOOPBACK, LOWEST, choose_ports, is_free


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the random ports the given ones, then any."""

    def given(*ports: int) -> None:
        rest, chance = list(ports), random.Random()
        monkeypatch.setattr(
            random.SystemRandom,
            "randint",
            lambda _, low, high: rest.pop(0) if rest else chance.randint(low, high),
        )

    return given


def free() -> int:
    """A port that nobody has."""
    [port] = choose_ports(["any"], asked={}, preferred={}).values()
    return port


def test_what_is_taken_or_claimed_is_passed_over(drawn: Callable[..., None]) -> None:
    """Chosen ports are neither in use nor claimed by another process."""
    claimed = free()  # this process has it already, as another one would
    with socket.create_server((LOOPBACK, 0)) as server:
        taken = server.getsockname()[1]
        drawn(taken, claimed)
        chosen = choose_ports(["a", "b"], asked={}, preferred={})
    assert not {taken, claimed} & set(chosen.values())
    assert len(set(chosen.values())) == 2
    assert all(LOWEST <= port <= HIGHEST and is_free(port) for port in chosen.values())


def test_a_stack_has_its_ports_again() -> None:
    """A stack gets its previous ports again where they are free."""
    had = free()
    assert choose_ports(["a"], asked={}, preferred={"a": had}) == {"a": had}
    chosen = choose_ports(["a", "b"], asked={}, preferred={"a": had, "b": had})
    assert chosen["a"] == had != chosen["b"]


def test_a_port_asked_for_must_be_free() -> None:
    """A requested port is given or named in an error."""
    with socket.create_server((LOOPBACK, 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(PortTaken, match=str(taken)):
            choose_ports(["kafka"], asked={"kafka": taken}, preferred={})
