"""The report in a real browser, headless Chromium, on a phone's and on a desk's width, light and dark."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from freshet.report.page import page

from tests.unit.report.test_page import everything

pytestmark = pytest.mark.integration

PHONE, DESK = 360, 1280
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom"),
]
DARK = "--blink-settings=preferredColorScheme=0"
MEASURE = """<!doctype html><meta charset="utf-8"><title>measure</title>
<iframe src="/report.html" width="360" height="700"></iframe>
<iframe src="/report.html" width="1280" height="700"></iframe>
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(one => one.open = true);
    const outside = [...page.querySelectorAll("main *")].filter(one =>
      !one.closest("thead") && one.getBoundingClientRect().right > root.clientWidth + 0.5);
    const texts = [...page.querySelectorAll("svg text")].filter(one => {
      const inner = one.getBoundingClientRect(), outer = one.closest("svg").getBoundingClientRect();
      return inner.left < outer.left - 0.5 || inner.right > outer.right + 0.5;
    });
    return {
      width: frame.clientWidth, scroll: root.scrollWidth, outside: outside.map(one => one.outerHTML.slice(0, 80)),
      clipped: texts.map(one => one.textContent), plots: [...page.querySelectorAll("svg")].map(one => one.clientHeight),
      ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    };
  });
  document.body.textContent = "MEASURED" + JSON.stringify(found) + "END";
});
</script>
"""


class Measured(msgspec.Struct):
    """What the browser says of the page at one width."""

    width: int
    scroll: int
    outside: list[str]
    clipped: list[str]
    plots: list[int]
    ground: str


class Served(SimpleHTTPRequestHandler):
    """Serves a folder, and remembers what was asked for."""

    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""
        self.server.asked.append(self.path)  # type: ignore[attr-defined]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """`tmp_path` on a free port of the loopback address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Served, directory=str(tmp_path)))
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def opened(
    chromium: str, server: ThreadingHTTPServer, tmp_path: Path, html: str, *flags: str
) -> tuple[list[Measured], list[str], set[str]]:
    """Open a page at both widths: what was measured, what the console said, what was fetched."""
    (tmp_path / "report.html").write_text(html)
    (tmp_path / "measure.html").write_text(MEASURE)
    address = f"http://127.0.0.1:{server.server_port}/measure.html"
    command = [chromium, *FLAGS, *flags, f"--user-data-dir={tmp_path / 'profile'}", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    [measured] = re.findall("MEASURED(.*)END", done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return msgspec.json.decode(measured, type=list[Measured]), console, set(server.asked)  # type: ignore[attr-defined]


@pytest.mark.parametrize("flags", [(), (DARK,)], ids=["light", "dark"])
def test_the_report_fits_a_phone_and_a_desk(
    chromium: str, served: ThreadingHTTPServer, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """The report fits 360 and 1280 px with open tables, a silent console and no fetched file."""
    html = page([("shop", everything()), ("films", everything())])
    measured, console, asked = opened(chromium, served, tmp_path, html, *flags)
    assert [measurement.width for measurement in measured] == [PHONE, DESK]
    for measurement in measured:
        assert measurement.outside == []
        assert measurement.clipped == []
        assert measurement.scroll <= measurement.width
        assert len(measurement.plots) == 22
        assert min(measurement.plots) > 40
        assert measurement.ground == ("rgb(17, 21, 26)" if flags else "rgb(246, 247, 249)")
    assert console == []
    assert asked <= {"/measure.html", "/report.html", "/favicon.ico"}


def test_a_page_that_does_not_fit_is_found(chromium: str, served: ThreadingHTTPServer, tmp_path: Path) -> None:
    """The measure finds a wide table, a cut label, a console error and a fetched file."""
    html = (
        '<main style="margin:0"><div style="width:500px">wide</div><svg viewBox="0 0 100 20">'
        '<text x="90" y="10">a long label</text></svg><img src="/other.png"></main>'
        "<script>console.error('broken')</script>"
    )
    [phone, _], console, asked = opened(chromium, served, tmp_path, html)
    assert phone.scroll > PHONE
    assert any("wide" in text for text in phone.outside)
    assert phone.clipped == ["a long label"]
    assert any("broken" in line for line in console)
    assert "/other.png" in asked
