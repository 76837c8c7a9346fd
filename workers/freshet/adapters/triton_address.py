"""Where Triton is, and what a client must show there."""

from __future__ import annotations

from typing import Any, NamedTuple

from freshet.settings import Settings

CONTROL_KEY = "freshet-control"
"""Name of the key that Triton's `--grpc-restricted-protocol=model-repository,…:freshet-control=SECRET` asks for."""


class TritonAddress(NamedTuple):
    """A server's gRPC address `host:port`, and how a client reaches it.

    Whoever may load models runs code in the server: Triton takes a model's files in the request. `control_key` is the
    secret that the server asks for then. Publishers have it, workers do not need it.
    """

    address: str
    tls: bool = False
    ca: str | None = None
    """File with the CA certificates of the server; without it the system's."""
    control_key: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> TritonAddress:
        """The server that the settings name."""
        tls = settings.triton_security == "SSL"
        return cls(settings.triton, tls, settings.triton_ca, settings.triton_control_key)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of Triton's clients."""
        return {"url": self.address, "ssl": self.tls, "root_certificates": self.ca}

    @property
    def control_headers(self) -> dict[str, str] | None:
        """Headers of a call that controls models."""
        return {f"triton-grpc-protocol-{CONTROL_KEY}": self.control_key} if self.control_key else None
