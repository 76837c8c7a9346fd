"""How many examples a property is tried on; in CI always the same ones."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "freshet",
    max_examples=60,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("freshet")
