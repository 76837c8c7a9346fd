"""A read service on the simulated world: the application over the same parts as the worker beside it."""

from __future__ import annotations

from typing import Any

import httpx
from freshet.http.events import EventSink
from freshet.http.lists import CurrentLists
from freshet.http.runtime import HttpRuntime
from freshet.http.server import application
from freshet.http.streams import ListStreams

from tests.simulation.memory_world import MemoryWorld, clock


class FakeRuntime(HttpRuntime):
    """A runtime whose parts are a simulated world's; it is open already."""

    def __init__(self, world: MemoryWorld) -> None:
        super().__init__(world.settings)
        self.model = world.model
        self.features = world.features  # type: ignore[assignment]
        self.publisher = world.publisher  # type: ignore[assignment]
        self.encoder = world.encoder  # type: ignore[assignment]
        self.lists = CurrentLists(world.settings, world.model, world.encoder, world.features, clock=clock)
        self.events = EventSink(world.settings, world.publisher, clock=clock)
        self.streams = ListStreams(world.settings, world.settings.http_streams)
        self.health.renew({"encoder": "ok"})


def client(runtime: HttpRuntime, host: str = "127.0.0.1", **options: Any) -> httpx.AsyncClient:
    """A client of the application; no socket is opened."""
    transport = httpx.ASGITransport(application(runtime), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", **options)


async def served(**settings: Any) -> tuple[MemoryWorld, httpx.AsyncClient]:
    """A world with a worker, and a client of the service beside it."""
    world = await MemoryWorld(**settings).start()
    return world, client(FakeRuntime(world))
