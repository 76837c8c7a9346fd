"""Loopback ports, chosen outside the range the kernel hands to outgoing connections.

A client that keeps connecting to a dead server on a port inside that range can, by chance, be
given the very same port as its own and connect to itself; the server then cannot come back.
"""

import random
import socket
from collections.abc import Iterable

from deploy.local.errors import PortTaken

LOOPBACK = "127.0.0.1"
LOWEST = 20_000
HIGHEST = 32_767
_claims: list[socket.socket] = []


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose_ports(names: Iterable[str], *, asked: dict[str, int], preferred: dict[str, int]) -> dict[str, int]:
    """One port for each name: the one asked for, else the preferred one, else any free one.

    Args:
        names: What needs a port.
        asked: Ports that must be these.
        preferred: Ports to have again where they are free, as a stopped stack had them.

    Raises:
        PortTaken: A port asked for is in use.
    """
    chosen: dict[str, int] = {}
    for name in names:
        if name in asked:
            if not is_free(asked[name]):
                raise PortTaken(name, asked[name])
            chosen[name] = asked[name]
            continue
        port = preferred.get(name)
        if port is None or port in chosen.values() or not is_free(port):
            port = _any_free()
        chosen[name] = port
    return chosen


def _any_free() -> int:
    """A free port that no other process chooses as long as this one lives, though its server comes only later.

    The claim is a UDP socket on the same number, which the server's port has nothing to do with.
    """
    while True:
        port = random.SystemRandom().randint(LOWEST, HIGHEST)
        claim = socket.socket(type=socket.SOCK_DGRAM)
        try:
            claim.bind((LOOPBACK, port))
        except OSError:
            claim.close()
            continue
        if is_free(port):
            _claims.append(claim)
            return port
        claim.close()
