"""A read service beside a deployment's workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import httpx

from tests.integration.deployment import Deployment, until


class Service:
    """A `freshet serve` process on a free port."""

    def __init__(self, deployment: Deployment, **settings: str) -> None:
        self.log = deployment.folder / "serve.log"
        environment = os.environ | deployment.settings | {"FRESHET_HTTP_PORT": "0", **settings}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "freshet.cli", "serve"], env=environment, stdout=out, stderr=out
            )
        until(lambda: self._said() is not None or self.process.poll() is not None, "the service is ready")
        assert self.process.poll() is None, self.log.read_text()
        self.address = str(self._said())
        self.http = httpx.Client(base_url=self.address, timeout=20)

    def _said(self) -> str | None:
        found = re.search(r"(http://127\.0\.0\.1:\d+) serves", self.log.read_text())
        return found[1] if found else None

    def user_list(self, user_id: str) -> dict[str, Any]:
        """The user's list."""
        answer = self.http.get(f"/v1/users/{quote(user_id, safe='')}/list")
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made
