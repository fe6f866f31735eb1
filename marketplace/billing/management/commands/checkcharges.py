"""`manage.py checkcharges`: recompute what was charged."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand

from marketplace import clock
from marketplace.billing.auditing import check_charges
from metering.auditing import audited_since


class Command(BaseCommand):
    help = (
        "Recompute the charges of every settlement period inside retention from the usage roll-ups, and each amount "
        "from its volume and rate. Prints one JSON object: ok, since, settled and unsettled (periods whose usage no "
        "run has seen yet are not judged), difference_count, and the differences (what, contract_id, "
        "settlement_start, rate_id, and the numerator and amount_micros that are lacking; 100 at most). Exits 0 when "
        "one more run would have nothing to write; 1 on any difference, naming the first on stderr. Changes nothing."
    )
    requires_migrations_checks = False

    def handle(self, *args: Any, **options: Any) -> None:
        since = audited_since(clock.now())
        check = check_charges(since=since)
        report = {
            "ok": not check.differences,
            "since": since.isoformat(),
            "settled": check.settled,
            "unsettled": check.unsettled,
            "difference_count": len(check.differences),
            "differences": [
                {
                    "what": difference.what,
                    "contract_id": str(difference.contract_id),
                    "settlement_start": difference.settlement_start.isoformat(),
                    "rate_id": str(difference.rate_id),
                    "numerator": difference.numerator,
                    "amount_micros": difference.amount_micros,
                }
                for difference in check.differences[:100]
            ],
        }
        self.stdout.write(json.dumps(report))
        if check.differences:
            first = check.differences[0]
            self.stderr.write(
                f"checkcharges: {first.what} of contract {first.contract_id} in the period from "
                f"{first.settlement_start.isoformat()}: {first.numerator} and {first.amount_micros} micros lacking"
            )
            sys.exit(1)
