"""Write the dashboards and the alert rules beside this file: `python -m deploy.monitoring`."""

from __future__ import annotations

import json
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from deploy.monitoring.alerts import rules
from deploy.monitoring.dashboards import DASHBOARDS, dashboard, slug

HERE = Path(__file__).parent


def files() -> dict[str, str]:
    """The text of each file, by its name."""
    texts = {f"{slug(title)}.json": json.dumps(dashboard(title), indent=2) + "\n" for title in DASHBOARDS}
    return texts | {"alerts.yaml": yaml.safe_dump(rules(), sort_keys=False, width=1000)}


def main() -> None:
    """Write every file."""
    for name, text in files().items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
