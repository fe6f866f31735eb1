"""The settings refuse nonsense at the start, in a message that names the setting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from tests.environment import ENVIRONMENT

CHECKOUT = Path(__file__).resolve().parent.parent.parent


def load(**changes: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **ENVIRONMENT, **changes}
    command = [sys.executable, "-c", "import marketplace.settings as s; print(s.DELIVERY_PERIOD_S)"]
    return subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", ""),
        ("SECRET_KEY", "short"),
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "sqlite:///x.db"),
        ("REDIS_URL", "http://x"),
        ("MARKET_SIGNING_KEY", "AAAA"),
        ("MARKET_SIGNING_KEY", "not base64!"),
        ("MARKET_CURRENCY", "XYZ"),
        ("DELIVERY_PERIOD_S", "7.5"),
        ("DELIVERY_PERIOD_S", "70"),
        ("SETTLEMENT_PERIOD_S", "450"),
        ("MAX_REQUEST_S", "0"),
        ("MARKET_FEE_PPM", "1000001"),
        ("MARKET_FEE_PPM", "NaN"),
        ("OPERATING_MARGIN_PPM", "-1"),
        ("PAYMENT_PROCESSOR", "cash"),
        ("PAYMENT_PROCESSOR", ""),
        ("PAYMENT_PROCESSOR", "stripe"),
        ("STRIPE_API_BASE", "api.stripe.com"),
        ("STRIPE_CALLS_PER_S", "25"),
        ("STRIPE_TIMEOUT_S", "80"),
        ("TEST_CLOCK", "perhaps"),
        ("PORTAL_URL", "javascript:alert(1)"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_nonsense_stops_the_start_and_is_named(name: str, value: str) -> None:
    done = load(**{name: value})
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "ImproperlyConfigured" in last
    assert name in last


def test_without_a_choice_of_payment_processor_only_debug_starts() -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PAYMENT_PROCESSOR"}
    code = "import marketplace.settings as s; print(s.PAYMENT_PROCESSOR)"

    def start(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": os.environ["PATH"], **environment, **more},
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )

    refused = start()
    assert refused.returncode != 0
    assert "ImproperlyConfigured: PAYMENT_PROCESSOR" in refused.stderr.strip().splitlines()[-1]
    assert start(DEBUG="1").stdout.strip() == "sandbox"


def test_defaults_are_the_markets_and_not_the_demos() -> None:
    assert load().stdout.strip() == "300"
    assert load(DELIVERY_PERIOD_S="30", SETTLEMENT_PERIOD_S="30").stdout.strip() == "30"


def test_a_task_ends_before_the_broker_gives_it_to_another() -> None:
    visibility_s = settings.CELERY_BROKER_TRANSPORT_OPTIONS["visibility_timeout"]
    assert visibility_s > settings.CELERY_TASK_TIME_LIMIT
    assert settings.CELERY_TASK_ACKS_LATE
    assert settings.CELERY_TASK_REJECT_ON_WORKER_LOST
    assert settings.CELERY_WORKER_PREFETCH_MULTIPLIER == 1


def test_every_hint_goes_to_a_queue_of_its_room() -> None:
    rooms = {pattern.removesuffix(".*") for pattern in settings.CELERY_TASK_ROUTES}
    hinted = {str(entry["task"]).rpartition(".")[0] for entry in settings.CELERY_BEAT_SCHEDULE.values()}
    assert hinted <= rooms
