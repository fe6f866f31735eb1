"""`manage.py checkusage`: re-add the meters' sums."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand

from marketplace import clock
from metering.auditing import audited_since, check_usage, usage_totals


class Command(BaseCommand):
    help = (
        "Re-add every usage roll-up inside retention from the stored events (less those that a correction took out), "
        "each event from its buckets, each batch from its events. Prints one JSON object: ok, since, events, rollups, "
        "corrections, pending_batches, dead_batches, difference_count, and the differences (what, key, recorded, "
        "recomputed; 100 at most). Exits 0 when all agree to the token; 1 on any difference, naming the first on "
        "stderr. Changes nothing and may run while usage comes in."
    )
    requires_migrations_checks = False

    def handle(self, *args: Any, **options: Any) -> None:
        since = audited_since(clock.now())
        differences = check_usage(since=since)
        report = {
            "ok": not differences,
            "since": since.isoformat(),
            **usage_totals(since=since),
            "difference_count": len(differences),
            "differences": [
                {
                    "what": difference.what,
                    "key": difference.key,
                    "recorded": difference.recorded,
                    "recomputed": difference.recomputed,
                }
                for difference in differences[:100]
            ],
        }
        self.stdout.write(json.dumps(report))
        if differences:
            first = differences[0]
            self.stderr.write(
                f"checkusage: {first.what} of {json.dumps(first.key)}: recorded {first.recorded}, "
                f"recomputed {first.recomputed}"
            )
            sys.exit(1)
