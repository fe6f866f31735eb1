"""The gateway: `uvicorn marketplace.gateway.asgi:application`. Django is set up for its settings and models only."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")
django.setup()

from marketplace.gateway.application import Application  # noqa: E402  # isort: skip

application = Application()
