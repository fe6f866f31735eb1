"""manage.py issueinvoices: the invoices and statements of one month."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from marketplace import clock
from marketplace.billing.models import Invoice, Statement
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.statements import issue_statements
from marketplace.errors import DomainError


class Command(BaseCommand):
    help = (
        "Issue the invoices and the provider statements of one UTC calendar month, then pay out. Prints JSON: the "
        "invoices and statements issued now (running it again issues nothing new and prints empty lists). A month "
        "that still runs is refused unless --early is given; its later charges then go to the next invoice. One that "
        "has not begun is always refused. "
        "Exit code 1 when refused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--period", required=True, metavar="YYYY-MM", help="the month, such as 2026-03")
        parser.add_argument("--early", action="store_true", help="also while the month runs")

    def handle(self, *args: Any, period: str, early: bool, **options: Any) -> None:
        month_start = _month_start(period)
        now = clock.now()
        try:
            invoices = issue_invoices(month_start=month_start, now=now, early=early)
            statements = issue_statements(month_start=month_start, now=now, early=early)
        except DomainError as error:
            raise CommandError(f"--period: {error.detail}") from error
        payouts = pay_out_statements(now=now)
        report = {
            "period": period,
            "invoices": [_invoice(invoice) for invoice in invoices],
            "statements": [_statement(statement) for statement in statements],
            "payouts": [
                {"id": str(payout.id), "amount_micros": payout.amount_micros, "status": payout.status}
                for payout in payouts
            ],
        }
        self.stdout.write(json.dumps(report, indent=2))


def _month_start(period: str) -> datetime:
    if not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", period) or not "1970-01" <= period <= "9998-12":
        raise CommandError(f"--period: must be YYYY-MM, not {period!r}")
    year, month = period.split("-")
    return datetime(int(year), int(month), 1, tzinfo=UTC)


def _invoice(invoice: Invoice) -> dict[str, Any]:
    return {
        "id": str(invoice.id),
        "number": invoice.number,
        "organization_id": str(invoice.organization_id),
        "status": invoice.status,
        "currency": invoice.currency,
        "subtotal_micros": invoice.subtotal_micros,
        "tax_micros": invoice.tax_micros,
        "rounding_micros": invoice.rounding_micros,
        "total_micros": invoice.total_micros,
        "prepaid_micros": invoice.prepaid_micros,
        "amount_due_micros": invoice.amount_due_micros,
    }


def _statement(statement: Statement) -> dict[str, Any]:
    return {
        "id": str(statement.id),
        "number": statement.number,
        "organization_id": str(statement.organization_id),
        "currency": statement.currency,
        "gross_micros": statement.gross_micros,
        "fee_micros": statement.fee_micros,
        "net_micros": statement.net_micros,
    }
