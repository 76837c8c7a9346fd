"""Dashboards and alerts on a real Prometheus that scrapes a real worker: no panel is empty, no rule is wrong."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local import Stack
from deploy.local.ports import LOOPBACK, choose_ports
from deploy.local.process import kill, spawn, wait_until_ready
from deploy.monitoring.__main__ import HERE
from deploy.monitoring.dashboards import DASHBOARDS, dashboard
from tests.integration.deployment import Deployment, until
from tests.integration.event_stream import stream

pytestmark = pytest.mark.integration


class Prometheus:
    """A Prometheus with our rules, which scrapes one page every second."""

    def __init__(self, folder: Path, page: str) -> None:
        self.address = f"{LOOPBACK}:{choose_ports(('prometheus',), asked={}, preferred={})['prometheus']}"
        config = folder / "prometheus.yaml"
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        scraped = [{"job_name": "freshet", "static_configs": [{"targets": [page]}]}]
        config.write_text(
            yaml.safe_dump({"global": every, "rule_files": [str(HERE / "alerts.yaml")], "scrape_configs": scraped})
        )
        options = [f"--config.file={config}", f"--web.listen-address={self.address}"]
        options.append(f"--storage.tsdb.path={folder / 'data'}")
        log = folder / "prometheus.log"
        self.process = spawn(["prometheus", *options], log=log, env=os.environ)
        wait_until_ready("Prometheus", self.process, self._is_ready, seconds=60, log=log)

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the HTTP interface; a query that Prometheus refuses raises `HTTPError`."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def _is_ready(self) -> bool:
        try:
            self.ask("status/runtimeinfo")
        except OSError:
            return False
        return True


@pytest.fixture
def prometheus(stack: Stack, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[tuple[Prometheus, Deployment]]:
    """A Prometheus that scrapes a worker at work, of which a record in a hundred is bad."""
    if shutil.which("prometheus") is None:
        why = "missing: Prometheus; run `make setup-test`"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    deployment = Deployment(stack, tmp_path, unique("watched"), 1)
    worker = deployment.worker()
    deployment.send(stream(1, 100))
    deployment.settle()
    watching = Prometheus(tmp_path, f"{LOOPBACK}:{(worker.data / 'health.port').read_text()}")
    try:
        yield watching, deployment
    finally:
        kill(watching.process)
        deployment.close()


def test_no_panel_is_empty_and_every_rule_holds(prometheus: tuple[Prometheus, Deployment]) -> None:
    """Each query of each dashboard has an answer, each rule is evaluated, and an alert for dead letters is pending."""
    watching, deployment = prometheus
    scraped = "count_over_time(freshet_events_folded_total[1m])"

    def scrapes() -> float:
        return float((watching.ask("query", query=scraped)["result"] or [{"value": [0, "0"]}])[0]["value"][1])

    until(lambda: scrapes() >= 2, "the worker was scraped")
    deployment.send(stream(2, 100, start=100))
    for number in range(20):
        deployment.raw(b"{", b"user-%d" % number)
    deployment.settle()
    before = scrapes()
    until(lambda: scrapes() >= before + 2, "the worker was scraped again")
    empty = [
        (title, panel["title"], target["expr"])
        for title in DASHBOARDS
        for panel in dashboard(title)["panels"]
        for target in panel["targets"]
        if not watching.ask("query", query=target["expr"])["result"]
    ]
    assert empty == []
    rules = watching.ask("rules")["groups"][0]["rules"]
    assert {rule["health"] for rule in rules} == {"ok"}
    states = {rule["name"]: rule["state"] for rule in rules}
    assert states.pop("FreshetDeadLetters") == "pending"
    assert set(states.values()) == {"inactive"}
