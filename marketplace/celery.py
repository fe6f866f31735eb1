"""The Celery application: it wakes workers and holds no truth. Queues, schedule and limits are in the settings."""

import os
from typing import Any

from celery import Celery
from celery.signals import task_prerun

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")

app = Celery("marketplace")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


def drop_dead_connections(**_: Any) -> None:
    """Celery keeps a connection for many tasks, also one whose server has died: let go of it, as at a web request."""
    # Imported late: the settings are read at the first task, not when this module is.
    from django.db import close_old_connections

    close_old_connections()


task_prerun.connect(drop_dead_connections)
