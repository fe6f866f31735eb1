"""One transfer a call beside django-hordak's `transfer_to` (`bench` extra), on the same server in the same run.

`python -m tests.benchmarks ledger_peers` prints one line; where hordak is not installed it says so on stderr instead.
The floor is the peer, with its defaults, in a process of its own and in turns with ours; it checks no limit and knows
no transfer again, so it does less.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import IO, Any, Final
from urllib.parse import unquote, urlsplit

TRANSFERS: Final = 500
TURNS: Final = 5
ACCOUNTS: Final = 50


def run() -> Iterator[dict[str, Any]]:
    """One result: transfers/s through our service, and through the peer."""
    if importlib.util.find_spec("hordak") is None:
        print(
            "ledger_peers: django-hordak is not installed; it comes with the extra `bench`", file=sys.stderr
        )
        return
    from marketplace import clock
    from marketplace.ledger.services import post_transfers
    from tests.benchmarks.ledger import fifty_accounts, transfers_between

    accounts = fifty_accounts()
    ours: list[float] = []
    theirs: list[float] = []
    command = [sys.executable, "-m", "tests.benchmarks.ledger_peers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        _ask(peer.stdin, peer.stdout)
        for _ in range(TURNS):
            theirs.append(TRANSFERS / _ask(peer.stdin, peer.stdout))
            now, made = clock.now(), transfers_between(accounts, TRANSFERS)
            began = time.perf_counter()
            for transfer in made:
                post_transfers([transfer], now=now)
            ours.append(TRANSFERS / (time.perf_counter() - began))
        peer.stdin.close()
    value, floor = median(ours), median(theirs)
    yield {
        "name": "ledger_beside_hordak",
        "value": value,
        "unit": "transfers/s",
        "floor": floor,
        "ratio": value / floor,
    }


def _ask(asked: IO[str], answers: IO[str]) -> float:
    asked.write("go\n")
    asked.flush()
    return float(answers.readline())


def _peer() -> None:
    """Makes the peer's tables beside ours, then answers every line with the seconds that so many transfers took."""
    import django
    from django.conf import settings

    place = urlsplit(os.environ["DATABASE_OWNER_URL"])
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": place.path.lstrip("/"),
                "USER": place.username,
                "PASSWORD": unquote(place.password or ""),
                "HOST": place.hostname,
                "PORT": place.port,
            }
        },
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "mptt", "hordak"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()
    from django.core.management import call_command
    from django.db import transaction
    from hordak.models import Account
    from moneyed import Money

    call_command("migrate", "hordak", verbosity=0, stdout=sys.stderr)
    accounts = [
        Account.objects.create(name=f"Account {number}", code=str(number), type="LI", currencies=["USD"])
        for number in range(ACCOUNTS)
    ]
    amount = Money("0.01", "USD")
    for _ in sys.stdin:
        began = time.perf_counter()
        for number in range(TRANSFERS):
            with transaction.atomic():
                accounts[number % ACCOUNTS].transfer_to(accounts[(number + 7) % ACCOUNTS], amount)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    _peer()
