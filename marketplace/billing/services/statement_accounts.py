"""What a statement says about the provider's balance: carried on from the last one, transfer by transfer, and retained.

The lines of a statement are what was earned in its month; the account is what has moved on the payable account since
the last statement was issued. Both close, each on its own.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.db import connection

from marketplace.billing.models import Statement
from marketplace.ledger.models import AccountKind
from pricing.units import PPM, div_ceil

# Which movements of the account stand together. What has no line here was earned.
_GROUPS: Final = {
    "fee": "posted_fee_micros",
    "remedy": "posted_given_back_micros",
    "adjustment": "posted_given_back_micros",
    "service_credit": "posted_given_back_micros",
    "bond_deposit": "posted_bond_micros",
    "bond_retained": "posted_bond_micros",
    "bond_withdrawal": "posted_bond_micros",
    "dispute": "posted_dispute_micros",
    "dispute_won": "posted_dispute_micros",
    "dispute_recovered": "posted_dispute_micros",
    "payout": "posted_payout_micros",
}
_EARNED: Final = "posted_earned_micros"
# One statement, one snapshot: within an account the number is the order of posting, so nothing older comes later.
_MOVED = """
WITH account AS (
    SELECT id FROM ledger_ledgeraccount
     WHERE organization_id = %(organization)s AND kind = %(kind)s AND currency = %(currency)s
       AND reference_id IS NULL
)
SELECT code, sum(amount)::bigint, max(number) FROM (
    SELECT code, -amount_micros AS amount, number FROM ledger_transfer
     WHERE debit_account_id = (SELECT id FROM account) AND number > %(after)s
    UNION ALL
    SELECT code, amount_micros, number FROM ledger_transfer
     WHERE credit_account_id = (SELECT id FROM account) AND number > %(after)s
) AS moved GROUP BY code
"""


def fill_account(statement: Statement, *, now: datetime) -> None:
    """Set what has moved since the last statement, and from when the net may be paid out. Not saved."""
    former = (
        Statement.objects.filter(
            organization_id=statement.organization_id, last_transfer_number__isnull=False
        )
        .order_by("-last_transfer_number", "-id")
        .first()
    )
    after = former.last_transfer_number if former else 0
    statement.brought_forward_micros = former.carried_forward_micros if former else 0
    with connection.cursor() as cursor:
        cursor.execute(
            _MOVED,
            {
                "organization": statement.organization_id,
                "kind": AccountKind.PAYABLE,
                "currency": statement.currency,
                "after": after,
            },
        )
        moved = cursor.fetchall()
    for code, amount, _ in moved:
        field = _GROUPS.get(code, _EARNED)
        setattr(statement, field, getattr(statement, field) + amount)
    statement.last_transfer_number = max((number for _, _, number in moved), default=after)
    statement.carried_forward_micros = statement.brought_forward_micros + sum(
        getattr(statement, field) for field in {_EARNED, *_GROUPS.values()}
    )
    _fill_retention(statement, former, now=now)


def retained_of(*, gross_micros: int, net_micros: int) -> int:
    """What of a statement's net is kept back: a share of its gross, up to the next micro, at most the net."""
    return max(0, min(net_micros, div_ceil(max(0, gross_micros) * settings.PAYOUT_RETENTION_PPM, PPM)))


def _fill_retention(statement: Statement, former: Statement | None, *, now: datetime) -> None:
    statement.payable_at = now + timedelta(seconds=settings.PAYOUT_HOLDING_S)
    if settings.PAYOUT_RETENTION_DAYS:
        statement.retained_micros = retained_of(
            gross_micros=statement.gross_micros, net_micros=statement.net_micros
        )
        statement.retained_until = statement.payable_at + timedelta(days=settings.PAYOUT_RETENTION_DAYS)
    since = former.created_at if former else None
    released = Statement.objects.filter(
        organization_id=statement.organization_id, retained_micros__gt=0, retained_until__lte=now
    )
    if since is not None:
        released = released.filter(retained_until__gt=since)
    statement.released_micros = sum(released.values_list("retained_micros", flat=True))
