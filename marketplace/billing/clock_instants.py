"""When something of an organization's billing becomes due: the stops of its test clock on the way ahead."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db.models import Q

from marketplace.billing.models import AutoTopUp, Invoice, PayoutDestinationChange, Statement
from marketplace.billing.services.documents_due import PATIENCE
from marketplace.contracts.committed import month_of
from marketplace.contracts.models import Contract, ContractKind, Entitlement, Payment, Renewal
from marketplace.contracts.suspending import FREED_AFTER, RUNNING
from marketplace.contracts.unpaid import instants_of
from marketplace.ledger.grants import grants_of
from marketplace.periods import calendar_month, settlement_period
from pricing.months import contract_month_at

_MOMENT: Final = timedelta(microseconds=1)


def next_instant(organization_id: UUID, *, after: datetime, until: datetime) -> datetime:
    """The first instant after `after` at which something becomes due as things stand then, `until` at the latest."""
    found = (at for at in _instants(organization_id, after) if at is not None and after < at < until)
    return min(found, default=until)


def squared_up_at(period_end: datetime, *, max_request_s: int) -> datetime:
    """When a committed month that ends then is squared up: when its last settlement period is settled."""
    last = settlement_period(period_end - _MOMENT)
    return last.end + timedelta(seconds=max_request_s + settings.SETTLEMENT_GRACE_S)


def unsettled_months(organization_id: UUID) -> Iterator[tuple[UUID, datetime]]:
    """Committed months that are paid, or in arrears, and not squared up: each with when it is, the oldest first."""
    rows = (
        Entitlement.objects.filter(
            Q(contract__payment=Payment.ARREARS) | Q(paid_at__isnull=False),
            contract__organization_id=organization_id,
            contract__kind=ContractKind.COMMITTED,
            settled_at__isnull=True,
        )
        .order_by("period_end", "id")
        .values_list("id", "period_end", "contract__grade__max_request_s")
    )
    for entitlement_id, period_end, max_request_s in rows:
        yield entitlement_id, squared_up_at(period_end, max_request_s=max_request_s)


def _instants(organization_id: UUID, after: datetime) -> Iterator[datetime | None]:
    yield from _of_contracts(organization_id, after)
    yield from (at for _, at in unsettled_months(organization_id))
    yield from _of_documents(organization_id, after)
    yield from (
        grants_of(organization_id)
        .filter(free_micros__gt=0, expires_at__gt=after)
        .values_list("expires_at", flat=True)
    )
    for payable_at, retained_until in Statement.objects.filter(
        Q(payable_at__gt=after) | Q(retained_until__gt=after), organization_id=organization_id
    ).values_list("payable_at", "retained_until"):
        yield from (payable_at, retained_until)
    yield from PayoutDestinationChange.objects.filter(
        organization_id=organization_id, status=PayoutDestinationChange.Status.PENDING
    ).values_list("effective_at", flat=True)
    yield from AutoTopUp.objects.filter(
        organization_id=organization_id, status=AutoTopUp.Status.ACTIVE
    ).values_list("next_attempt_at", flat=True)


def _of_contracts(organization_id: UUID, after: datetime) -> Iterator[datetime | None]:
    running = Contract.objects.filter(
        organization_id=organization_id, kind=ContractKind.COMMITTED, status__in=RUNNING
    )
    for contract in running:
        begun = after >= contract.starts_at
        following = month_of(contract, contract_month_at(contract.starts_at, after) + 1 if begun else 0)
        yield following.start if following else None
        yield contract.ends_at
        yield contract.suspended_at + FREED_AFTER if contract.suspended_at else None
        yield from instants_of(contract)
    yield from Renewal.objects.filter(
        contract__organization_id=organization_id, status=Renewal.Status.ON
    ).values_list("next_attempt_at", flat=True)


def _of_documents(organization_id: UUID, after: datetime) -> Iterator[datetime | None]:
    this_month = calendar_month(after)
    for end in (this_month.start, this_month.end):
        yield end + timedelta(seconds=settings.MAX_REQUEST_S + settings.SETTLEMENT_GRACE_S)
        yield end + PATIENCE
    later = sorted(
        {
            0,
            *settings.DUNNING_REMINDER_DAYS,
            settings.DUNNING_SUSPEND_DAYS,
            settings.DUNNING_UNCOLLECTIBLE_DAYS,
        }
    )
    invoices = Invoice.objects.filter(
        organization_id=organization_id,
        status__in=(
            Invoice.Status.GRACE,
            Invoice.Status.FINALISED,
            Invoice.Status.ACTION_REQUIRED,
            Invoice.Status.OVERDUE,
        ),
    )
    for grace_until, due_at in invoices.values_list("grace_until", "due_at"):
        yield grace_until
        if due_at is not None:
            yield from (due_at + timedelta(days=days) for days in later)
