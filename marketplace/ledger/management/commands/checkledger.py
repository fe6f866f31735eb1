"""`manage.py checkledger`: re-add the books."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand

from marketplace.ledger.selectors import check_ledger, totals


class Command(BaseCommand):
    help = (
        "Re-add the ledger from its transfers: every account's debits, credits and pending holds, every hold's "
        "captures, both sides of every transfer. Prints one JSON object: ok, accounts, transfers, open_holds, "
        "difference_count, and the differences (what, object_id, recorded_micros, recomputed_micros; 100 at most). "
        "Exits 0 when all agree to the micro; 1 on any difference, naming the first on stderr. Changes nothing and "
        "may run while money moves."
    )
    requires_migrations_checks = False

    def handle(self, *args: Any, **options: Any) -> None:
        differences = check_ledger()
        report = {
            "ok": not differences,
            **totals(),
            "difference_count": len(differences),
            "differences": [
                {
                    "what": difference.what,
                    "object_id": str(difference.object_id),
                    "recorded_micros": difference.recorded_micros,
                    "recomputed_micros": difference.recomputed_micros,
                }
                for difference in differences[:100]
            ],
        }
        self.stdout.write(json.dumps(report))
        if differences:
            first = differences[0]
            self.stderr.write(
                f"checkledger: {first.what} of {first.object_id}: recorded {first.recorded_micros}, "
                f"recomputed {first.recomputed_micros}"
            )
            sys.exit(1)
