"""The read service on real parts: what it answers is what the worker publishes; streams, and an ordered end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from freshet.core.events import VISIT, Event

from deploy.local import Stack
from tests.integration.browser import browsed
from tests.integration.deployment import Deployment, until
from tests.integration.event_stream import stream
from tests.integration.read_service import Service

pytestmark = pytest.mark.integration

STREAMS = 3
NOT_OF_THE_TOPIC = {"made_at", "next"}


class Served(NamedTuple):
    """A world with a worker and a read service."""

    world: Deployment
    service: Service


@pytest.fixture(scope="module")
def served(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A worker that has had some events, and a read service that follows it."""
    folder = tmp_path_factory.mktemp("serve")
    quiet = {"FRESHET_LIVING_BUDGET": "0"}  # a list made again would follow the one that a test waits for
    world = Deployment(stack, folder, f"serve-{os.urandom(4).hex()}", **quiet)
    for number in range(5):
        world.item(f"new-{number}", title=f"Star Trek {number}", description="space adventure")
    world.item("50", title="Star Wars", available=False)
    world.worker()
    service = Service(world, FRESHET_HTTP_STREAMS=str(STREAMS))
    try:
        world.send(stream(5, 400))
        world.settle()
        yield Served(world, service)
    finally:
        service.process.kill()
        service.process.wait()
        world.close()


def visited(world: Deployment, users: list[str]) -> None:
    """Have the worker make the users' lists again, with all that it knows of by now."""
    last = 890_000_000_000 + 10**9
    world.send([Event(os.urandom(8).hex(), user, VISIT, last) for user in users])
    world.settle()


def test_the_answer_is_the_published_list_to_the_last_bit(served: Served) -> None:
    """For every user, with the same side inputs, all that a published list says is in the answer and equal."""
    world, service = served
    users = [*sorted(world.lists()), "never seen"]
    newest: dict[str, dict[str, Any]] = {}

    def together() -> bool:
        visited(world, users)
        newest.update(world.lists())
        known = service.user_list("user-0")["side_inputs"]
        return all(newest[user_id]["side_inputs"] == known for user_id in users)

    until(together, "worker and service know of the same side inputs")
    for user_id in users:
        published, answer = newest[user_id], service.user_list(user_id)
        assert answer["made_at"] > 0
        for name in answer.keys() - NOT_OF_THE_TOPIC:
            assert json.dumps(answer[name]) == json.dumps(published[name]), (user_id, name)


HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
ITEMS = "[...document.querySelectorAll('#list li')].map(line => line.dataset.item)"
CAUSES = """
window.causes = [];
new MutationObserver(() => causes.push(document.querySelector('#cause').textContent))
    .observe(document.querySelector('#cause'), {childList: true, characterData: true, subtree: true})
"""
"""Have the page remember every cause that it shows."""


def test_a_visitor_watches_the_list_move(served: Served, chromium: str, tmp_path: Path) -> None:
    """On the page a click moves the list, which says why; hiding, searching and the keyboard work; nothing is run."""
    deployment, service = served
    deployment.item("hostile", title=HOSTILE, description="space adventure")
    with browsed(chromium, tmp_path / "profile") as page:
        page.open(service.address + "/", 1280, 900)
        page.until("document.querySelectorAll('#list li').length === 10")
        page.until("document.querySelector('#found button[aria-label^=purchase]') !== null")
        page.until("document.querySelector('#log').innerText.includes('list: visit')")  # else one list answers both
        daily = page.run("document.querySelector('#daily').innerText")
        before = page.run(ITEMS)
        page.run(CAUSES)  # what the purchase makes popular may make the list once more
        page.run("document.querySelector('#list button[aria-label^=purchase]').click()")
        page.until(
            f"!{ITEMS}.includes({json.dumps(before[0])}) && document.querySelector('#state').innerText === 'yours'"
        )
        page.until("causes.some(cause => cause.includes('your purchase of'))")
        assert "because of your purchase" in page.run("document.querySelector('#list').innerText")
        assert page.run("document.querySelector('#daily').innerText") == daily
        hidden = page.run(ITEMS)[1]
        page.run("document.querySelectorAll('#list li')[1].querySelector('button[aria-label^=hide]').click()")
        page.until(f"{ITEMS}.length === 10 && !{ITEMS}.includes({json.dumps(hidden)})")
        page.run("document.querySelector('#search').value = 'onerror'")
        page.run("document.querySelector('#search').dispatchEvent(new Event('input'))")
        page.until(f"document.querySelector('#found .title')?.textContent === {json.dumps(HOSTILE)}")
        page.run("document.querySelector('#found button').focus()")
        page.press("Enter")
        page.until("document.querySelector('#log').innerText.includes('onerror')")
        page.run("document.querySelector('#nightly').click()")
        page.until("document.querySelector('#daily').innerText.includes('because of your purchase')")
        page.run(f"document.querySelector('#name').value = {json.dumps(HOSTILE)}")
        page.run("document.querySelector('#visitor').requestSubmit()")
        page.until("document.querySelector('#log').innerText.includes('onerror')")
        assert page.run("document.title") == "Freshet: your list, as you move"
        page.until("document.querySelectorAll('#figures dd').length === 9")
        page.until("document.querySelectorAll('#list li').length === 10")
        for width in (360, 1280):
            page.open(service.address + "/", width, 800, dark=width == 360)
            page.until("document.querySelectorAll('#list li').length === 10")
            assert page.run("document.documentElement.scrollWidth") <= width
        assert page.console == []


def test_streams_are_bounded_and_slow_readers_dropped(served: Served) -> None:
    """A stream too many is refused, and a reader that takes nothing loses its stream to others."""
    world, service = served
    port = int(service.address.rpartition(":")[2])
    readers = []
    for _ in range(STREAMS):
        reader = socket.create_connection(("127.0.0.1", port))
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(b"GET /v1/users/slow/lists HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert reader.recv(15) == b"HTTP/1.1 200 OK"
        readers.append(reader)
    refused = service.http.get("/v1/users/ada/lists")
    assert (refused.status_code, refused.json()["status"]) == (503, 503)
    for reader in readers[1:]:
        reader.close()
    until(lambda: _open_streams(service) == 1, "the readers that went away are forgotten")
    padding = json.dumps({"user_id": "slow", "items": "x" * 500_000}).encode()
    for _ in range(40):
        world.producer.send(world.topics["recommendations"], padding, b"slow")
    world.producer.flush()
    until(lambda: _open_streams(service) == 0, "the slow reader is dropped")
    readers[0].close()


def _open_streams(service: Service) -> float:
    found = re.search(r"^freshet_http_streams (\S+)$", service.http.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_sigterm_ends_streams_and_answers_what_was_asked(served: Served) -> None:
    """Under SIGTERM a stream ends in order, and the process with status 0."""
    _, service = served
    with service.http.stream("GET", "/v1/users/ada/lists") as answer:
        lines = answer.iter_lines()
        next_list(lines)
        service.process.send_signal(signal.SIGTERM)
        assert all(not line.startswith("event") for line in lines)
    assert service.process.wait(30) == 0


def test_what_is_wrong_is_one_line(stack: Stack, tmp_path: Path) -> None:
    """Without topics, without Kafka or on a port that is taken the service says what to do and ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for settings, words in (
            ({"FRESHET_HTTP_PORT": port}, f"http_port {port}"),
            ({"FRESHET_HTTP_PORT": "0", "FRESHET_KAFKA": "127.0.0.1:1"}, "Kafka at 127.0.0.1:1"),
        ):
            own = {"FRESHET_KAFKA": stack.bootstrap, "FRESHET_FEAST_DIR": str(tmp_path / "feast"), **settings}
            command = [sys.executable, "-m", "freshet.cli", "serve"]
            done = subprocess.run(
                command, env=os.environ | own, capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 1, done.stderr
            assert words in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr


def next_list(lines: Iterator[str]) -> dict[str, Any]:
    """The next list of a stream."""
    for line in lines:
        if line.startswith("data: "):
            made: dict[str, Any] = json.loads(line.removeprefix("data: "))
            return made
    raise AssertionError("the stream ended")
