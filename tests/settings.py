"""For tools that want a settings module without a running market (mypy's Django plugin)."""

import tests.environment  # noqa: F401  # isort: skip
from marketplace.settings import *  # noqa: F403
