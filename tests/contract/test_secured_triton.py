"""A Triton that others can reach: no HTTP, no models from strangers, no secrets of ours, TLS where it is asked for."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as client
from freshet.adapters.triton import TritonEncoder
from freshet.adapters.triton_address import TritonAddress
from freshet.cli.stack_file import TRITON_KEY_FILE
from freshet.core.features import USER_ENCODER_INPUTS
from freshet.ports import Unavailable
from freshet.release.errors import ReleaseError
from freshet.release.server import Server
from tritonclient.utils import InferenceServerException

from deploy import local
from deploy.local import Stack
from tests.contract.tls import self_signed

pytestmark = pytest.mark.integration
CANARY = "a-secret-of-the-worker"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Triton that was started by a process with a secret in its environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRESHET_REDIS_PASSWORD", CANARY)
        stack = local.start(tmp_path_factory.mktemp("triton"), kafka=False)
    yield stack
    local.stop(stack)


def listening(pid: int) -> set[int]:
    """The TCP ports that a process listens on."""
    inodes = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    ports = set()
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    for line in chain.from_iterable(tables):
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_the_server_listens_for_grpc_and_metrics_alone(triton: Stack) -> None:
    """The server listens for gRPC and metrics and not for HTTP."""
    server = triton.processes["triton"]
    assert listening(server.pid) == {triton.ports["triton_grpc"], triton.ports["triton_metrics"]}


@pytest.mark.parametrize("key", [None, "guessed"])
def test_a_stranger_loads_nothing(triton: Stack, key: str | None) -> None:
    """A client without the key cannot load a model."""
    files = {"file:1/model.py": b"raise SystemExit"}
    headers = TritonAddress("", control_key=key).control_headers
    with client.InferenceServerClient(triton.triton_grpc) as stranger:
        for call in (
            lambda: stranger.load_model("evil", headers=headers, config="{}", files=files),
            lambda: stranger.unload_model("user_encoder", headers=headers),
            lambda: stranger.get_model_repository_index(headers=headers),
            lambda: stranger.register_system_shared_memory("all", "/all", 8, headers=headers),
            lambda: stranger.update_log_settings({"log_file": "evil.log"}, headers=headers),
            lambda: stranger.update_trace_settings(None, {"trace_file": "evil.log"}, headers=headers),
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()
    server = Server(TritonAddress(triton.triton_grpc, control_key=key))
    with pytest.raises(ReleaseError, match="set `triton_control_key`"):
        server.load(1)
    server.close()


def test_a_publisher_with_the_key_loads(triton: Stack) -> None:
    """A publisher with the stack's key loads a model, and only the owner can read the key."""
    server = Server(triton.triton)
    server.load(1)
    assert server.ready() == [1]
    server.close()
    assert (triton.directory / TRITON_KEY_FILE).stat().st_mode & 0o077 == 0


def test_the_server_has_nothing_of_its_starter_s_environment(triton: Stack) -> None:
    """Neither the server nor its stubs have the environment of their starter."""
    leader = triton.processes["triton"].pid
    seen = 0
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if entry.name.isdigit() and int(fields[3]) == leader:
                seen += 1
                assert CANARY not in (entry / "environ").read_text()
    assert seen > 1


@asynccontextmanager
async def behind_tls(port: int, folder: Path) -> AsyncIterator[tuple[str, Path]]:
    """A proxy that ends TLS in front of a gRPC server: its address, and the certificate to trust."""
    certificate, key = self_signed(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])

    async def pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await source.read(65_536):
                target.write(data)
                await target.drain()
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, forth), pipe(back, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, family=socket.AF_INET)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", certificate
    finally:
        server.close()


async def test_both_clients_reach_the_server_over_tls(triton: Stack, tmp_path: Path) -> None:
    """Both clients reach the server over TLS with the right certificates and not without."""
    tensors = {spec.name: np.ones((1, 50), np.int32) for spec in USER_ENCODER_INPUTS}
    async with behind_tls(triton.ports["triton_grpc"], tmp_path) as (address, certificate):
        secured = TritonAddress(address, tls=True, ca=str(certificate), control_key=triton.triton.control_key)
        encoder = TritonEncoder(secured, 10.0)
        assert (await encoder.encode(tensors, 1)).embedding.shape == (1, 64)
        assert await encoder.newest([1, 7]) == 1
        await encoder.close()
        server = Server(secured)
        assert await asyncio.to_thread(server.ready) == [1]
        server.close()
        for unsafe in (TritonAddress(address), TritonAddress(address, tls=True)):
            refused = TritonEncoder(unsafe, 2.0)
            with pytest.raises(Unavailable):
                await refused.encode(tensors, 1)
            await refused.close()
