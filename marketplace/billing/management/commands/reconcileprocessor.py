"""Catch up with the payment processor and compare its balance with the books, now."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand

from marketplace import clock
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.services.processor_reconciling import compare_balances, reconcile_processor


class Command(BaseCommand):
    help = (
        "Take up events of the payment processor that never arrived, look up what stands open, post its fees and "
        "compare its balance with the books. Prints JSON; exits with 1 where they differ."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        now = clock.now()
        done = reconcile_processor(now=now)
        result: dict[str, Any] = {"missed_events": done.missed, "overdue_operations": done.overdue}
        differs = done.overdue > 0
        if payment_processor().needs_card:
            report = done.report or compare_balances(now=now)
            result |= {
                "currency": report.currency,
                "ledger_micros": report.ledger_micros,
                "processor_micros": report.processor_micros,
                "difference_micros": report.difference_micros,
                **report.details,
            }
            differs = differs or report.difference_micros != 0
        self.stdout.write(json.dumps(result, indent=2, sort_keys=True))
        if differs:
            sys.exit(1)
