"""Whom grants pay: credit that was given becomes a provider's earnings, and they are paid out (docs/spending.md).

For the operator's eyes. Groups are organizations; nothing of it is public.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import connection
from django.db.models import Sum

from marketplace.billing.models import Earning, PayoutStop
from marketplace.periods import Period

MOST_PAIRS: Final = 200

# Of each settlement of the window what grants burned of its accrual that nobody had paid for, spread over who earned of
# the settlement by their gross, down. Tax that grants paid is in it, but nobody is shown more than he earned.
_PAIRS: Final = """
WITH burned AS (
    SELECT s.contract_id, s.settlement_start,
           sum(part.captured_micros - div(part.captured_micros::numeric * g.cost_basis_ppm, 1000000)) AS given
      FROM billing_settlement s
      JOIN contracts_accrual a ON a.contract_id = s.contract_id AND a.settlement_start = s.settlement_start
      JOIN ledger_grantpart gp ON gp.hold_id = a.ledger_hold_id
      JOIN ledger_hold part ON part.id = gp.part_id AND part.captured_micros > 0
      JOIN ledger_grant g ON g.id = gp.grant_id
     WHERE s.settlement_start >= %(since)s AND s.settlement_start < %(until)s AND s.run = 1
     GROUP BY 1, 2
), earned AS (
    SELECT c.organization_id AS buyer, e.organization_id AS provider, b.contract_id, b.settlement_start, b.given,
           sum(e.gross_micros) AS gross,
           sum(sum(e.gross_micros)) OVER (PARTITION BY b.contract_id, b.settlement_start) AS whole
      FROM burned b
      JOIN billing_settlement s ON s.contract_id = b.contract_id AND s.settlement_start = b.settlement_start
      JOIN billing_charge c ON c.settlement_id = s.id
      JOIN billing_earning e ON e.charge_id = c.id AND e.ask_id IS NULL
     WHERE b.given > 0
     GROUP BY 1, 2, 3, 4, 5
), pairs AS (
    SELECT buyer, provider, sum(least(gross, div(given * gross, whole)))::bigint AS by_grants
      FROM earned WHERE gross > 0 AND whole > 0
     GROUP BY 1, 2
)
SELECT buyer, provider, by_grants, (sum(by_grants) OVER (PARTITION BY buyer))::bigint,
       EXISTS (SELECT FROM accounts_membership one JOIN accounts_membership other USING (user_id)
                WHERE one.organization_id = buyer AND other.organization_id = provider)
  FROM pairs WHERE by_grants > 0
 ORDER BY by_grants DESC, buyer, provider LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class GrantEarning:
    """What a provider earned of one buyer that grants paid which nobody had paid for, in micros, gross.

    Beside it what such grants of this buyer paid in all, and what the provider earned in all of the window.
    """

    buyer_organization_id: UUID
    provider_organization_id: UUID
    by_grants_micros: int
    buyers_grants_micros: int
    provider_gross_micros: int
    shares_people: bool
    is_stopped: bool


@dataclass(frozen=True, slots=True)
class GrantEarnings:
    """The largest first; `is_cut` where there are more than are shown."""

    pairs: list[GrantEarning]
    is_cut: bool


def grant_earnings(window: Period) -> GrantEarnings:
    """Who earned what grants paid in the settlement periods that begin in the window; three queries."""
    asked: dict[str, datetime | int] = {"since": window.start, "until": window.end, "limit": MOST_PAIRS + 1}
    with connection.cursor() as cursor:
        cursor.execute(_PAIRS, asked)
        rows = cursor.fetchall()
    providers = {row[1] for row in rows}
    earned = Earning.objects.filter(
        organization_id__in=providers,
        ask__isnull=True,
        period_start__gte=window.start,
        period_start__lt=window.end,
    )
    gross = dict(earned.values_list("organization_id").annotate(Sum("gross_micros")).order_by())
    stopped = set(
        PayoutStop.objects.filter(organization_id__in=providers, ended_at__isnull=True).values_list(
            "organization_id", flat=True
        )
    )
    pairs = [
        GrantEarning(
            buyer_organization_id=buyer,
            provider_organization_id=provider,
            by_grants_micros=by_grants,
            buyers_grants_micros=of_buyer,
            provider_gross_micros=int(gross.get(provider) or 0),
            shares_people=shares_people,
            is_stopped=provider in stopped,
        )
        for buyer, provider, by_grants, of_buyer, shares_people in rows[:MOST_PAIRS]
    ]
    return GrantEarnings(pairs, len(rows) > MOST_PAIRS)
