"""`manage.py checkledger`: re-add the books."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from marketplace.ledger.checking import check_ledger, totals


class Command(BaseCommand):
    help = (
        "Verify the ledger: opens every seal (each transfer of its range, each account's sums, the chain of digests), "
        "and re-adds from the transfers every account's debits, credits and pending holds, every hold's captures and "
        "each currency's debits and credits. Prints one JSON object: ok, accounts, transfers, open_holds, seals, "
        "unsealed_transfers, difference_count, and the differences (what, object_id, recorded_micros, "
        "recomputed_micros, seal; 100 at most). Exits 0 when all agree to the micro; 1 on any difference, naming the "
        "first on stderr. Changes nothing and may run while money moves."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--incremental",
            action="store_true",
            help="open the last seal only and add what came after it to the sums under it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        differences = check_ledger(incremental=options["incremental"])
        report = {
            "ok": not differences,
            **totals(),
            "difference_count": len(differences),
            "differences": [
                {
                    "what": difference.what,
                    "object_id": difference.object_id,
                    "recorded_micros": difference.recorded_micros,
                    "recomputed_micros": difference.recomputed_micros,
                    "seal": difference.seal,
                }
                for difference in differences[:100]
            ],
        }
        self.stdout.write(json.dumps(report))
        if differences:
            first = differences[0]
            where = f" in seal {first.seal}" if first.seal else ""
            self.stderr.write(
                f"checkledger: {first.what} of {first.object_id}{where}: recorded {first.recorded_micros}, "
                f"recomputed {first.recomputed_micros}"
            )
            sys.exit(1)
