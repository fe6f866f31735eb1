"""Credit lines: what the operator lets a buyer owe, on contracts in arrears and on-demand usage on credit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.services import Actor, record_audit
from marketplace.errors import Forbidden, InvalidInput, NotFound
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.services import account_id, set_credit_line

MAX_LINE_MICROS: Final = 10**15


@dataclass(frozen=True, slots=True)
class CreditLine:
    """In micros. `used`: owed and held; `available`: what may still be held, 0 while more is used than the line."""

    organization_id: UUID
    currency: str
    limit_micros: int
    used_micros: int

    @property
    def available_micros(self) -> int:
        return max(0, self.limit_micros - self.used_micros)


def credit_line_of(organization_id: UUID) -> CreditLine:
    """The line of an organization; zeros where it has none."""
    currency = settings.MARKET_CURRENCY
    account = _accounts().filter(organization_id=organization_id, currency=currency).first()
    return line_of(account) if account else CreditLine(organization_id, currency, 0, 0)


def given_lines() -> QuerySet[LedgerAccount]:
    """The accounts that have a line, newest first: for the operator."""
    return _accounts().filter(credit_line_micros__isnull=False).select_related("organization").order_by("-id")


def line_of(account: LedgerAccount) -> CreditLine:
    line = account.credit_line_micros
    used = account.debits_posted_micros + account.debits_pending_micros - account.credits_posted_micros
    return CreditLine(
        account.organization_id,
        account.currency,
        account.overdraft_limit_micros if line is None else line,
        max(0, used),
    )


@transaction.atomic
def give_credit_line(*, organization_id: UUID, limit_micros: int, now: datetime, actor: Actor) -> CreditLine:
    """Set how much a buyer may owe, tax included. Effective at once, for holds that wait for the account too.

    Lowered below what is used it refuses new spending and ends nothing; 0 takes it away. For the operator.
    Raises NotFound, Forbidden, InvalidInput (limit_micros).
    """
    organization = Organization.objects.filter(pk=organization_id).first()
    if organization is None:
        raise NotFound("no such organization", field="organization_id")
    if not organization.has_role(OrganizationRole.BUYER):
        raise Forbidden("only a buyer has a credit line", field="organization_id")
    if not 0 <= limit_micros <= MAX_LINE_MICROS:
        raise InvalidInput(f"limit_micros must be between 0 and {MAX_LINE_MICROS}", field="limit_micros")
    account = account_id(
        organization_id=organization_id,
        kind=AccountKind.RECEIVABLE,
        currency=settings.MARKET_CURRENCY,
        now=now,
    )
    before = LedgerAccount.objects.values_list("credit_line_micros", flat=True).get(pk=account)
    set_credit_line(account_id=account, limit_micros=limit_micros)
    if before != limit_micros:
        record_audit(
            organization_id=organization_id,
            actor=actor,
            action="credit_line.set",
            object_kind="ledger_account",
            object_id=account,
            detail={"before_micros": before, "limit_micros": limit_micros},
            now=now,
        )
    return line_of(LedgerAccount.objects.get(pk=account))


def _accounts() -> QuerySet[LedgerAccount]:
    return LedgerAccount.objects.filter(kind=AccountKind.RECEIVABLE, reference_id=None)
