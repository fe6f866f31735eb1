"""`manage.py sealledger`: close what was posted under the next seals."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand

from marketplace import clock
from marketplace.ledger.sealing import seal_transfers


class Command(BaseCommand):
    help = (
        "Seal the transfers posted so far: digests over closed ranges that chain, which checkledger verifies. Beat "
        "does it hourly. Prints one JSON object: seals, transfers, complete. Waits up to 30 s for transactions that "
        "run; exits 1 when one did not end, after which the next run goes on."
    )
    requires_migrations_checks = False

    def handle(self, *args: Any, **options: Any) -> None:
        done = seal_transfers(now=clock.now())
        self.stdout.write(
            json.dumps({"seals": done.seals, "transfers": done.transfers, "complete": done.complete})
        )
        if not done.complete:
            sys.exit(1)
