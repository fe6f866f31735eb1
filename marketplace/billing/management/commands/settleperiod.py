"""manage.py settleperiod: square one settlement period up, or all that are due."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from marketplace import clock
from marketplace.billing.services.settling import SettlementResult, settle_due_periods, settle_period
from marketplace.periods import settlement_period


class Command(BaseCommand):
    help = (
        "Charge the buyers, credit the providers and take the market's fee for one settlement period, or, without "
        "an argument, for every period that is due. Prints JSON: settled, waiting (with the reason: not_due, "
        "usage_pending, holds_open, another_settles) and failed. Running it again changes nothing. Exit code 0 when "
        "everything asked for is settled, 1 when something waits or failed, or the time is refused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--at", metavar="TIME", help="settle the period that holds this moment (ISO 8601, UTC)"
        )
        which.add_argument(
            "--settlement-start", metavar="TIME", help="settle the period that begins then (ISO 8601, UTC)"
        )

    def handle(self, *args: Any, at: str | None, settlement_start: str | None, **options: Any) -> None:
        now = clock.now()
        if at is None and settlement_start is None:
            result = settle_due_periods(now=now)
            # Without a named period only failures are news: the running period always waits.
            ok = not result.failed
        else:
            text, option = (settlement_start, "--settlement-start") if at is None else (at, "--at")
            moment = _moment(text or "", option)
            if moment > now:
                raise CommandError(f"{option}: the period has not begun")
            period = settlement_period(moment)
            if settlement_start is not None and moment != period.start:
                raise CommandError(
                    f"--settlement-start: a period begins at {period.start.isoformat()}, not then"
                )
            result = settle_period(settlement_start=period.start, now=now)
            ok = not result.failed and not result.waiting
        self.stdout.write(json.dumps(_report(result), indent=2))
        if not ok:
            sys.exit(1)


def _moment(text: str, option: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandError(f"{option}: not an ISO 8601 time: {text!r}") from None
    return moment


def _report(result: SettlementResult) -> dict[str, Any]:
    return {
        "settled": [
            {
                "contract_id": str(item.contract_id),
                "settlement_start": item.settlement_start.isoformat(),
                "run": item.run,
                "charges": item.charges,
                "amount_micros": item.amount_micros,
            }
            for item in result.settled
        ],
        "waiting": [
            _held_up(due.contract_id, due.settlement_start, reason) for due, reason in result.waiting
        ],
        "failed": [_held_up(due.contract_id, due.settlement_start, reason) for due, reason in result.failed],
    }


def _held_up(contract_id: object, settlement_start: datetime, reason: str) -> dict[str, str]:
    return {
        "contract_id": str(contract_id),
        "settlement_start": settlement_start.isoformat(),
        "reason": reason,
    }
