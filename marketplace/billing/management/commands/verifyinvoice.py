"""manage.py verifyinvoice: one document, recomputed from the usage events that it cites."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from marketplace.billing.verifying import verify_document
from marketplace.errors import NotFound


class Command(BaseCommand):
    help = (
        "Recompute an invoice, or the invoice of a credit note with its notes, from the usage events that it cites: "
        "events, roll-ups, charges, lines, discounts, taxes, rounding, amount due, and the transfers that moved it. "
        "Prints one JSON object: ok, number, invoice_number, sums (micros), counts, stated (what can only be taken as "
        "it stands), unsettled (periods with usage that no run has charged yet) and difference. Exits 0 when all "
        "comes out; 1 on the first difference, named on stderr (document, line, charge, roll-up or event). Changes "
        "nothing."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("number", metavar="NUMBER", help="of the document, such as TY-2026-000001")

    def handle(self, *args: Any, number: str, **options: Any) -> None:
        try:
            found = verify_document(number=number)
        except NotFound as error:
            raise CommandError(f"{number}: {error.detail}") from error
        report = {
            "ok": found.difference is None,
            "number": found.number,
            "invoice_number": found.invoice_number,
            "sums": {f"{name}_micros": amount for name, amount in found.sums.items()},
            "counts": found.counts,
            "stated": found.stated,
            "unsettled": found.unsettled,
            "difference": found.difference,
        }
        self.stdout.write(json.dumps(report))
        if found.difference is not None:
            self.stderr.write(f"verifyinvoice: {found.difference}")
            sys.exit(1)
