"""The grace periods of many buyers' invoices of one month: begun together, and issued together when they are over."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models import Sum

from marketplace.accounts.models import Organization
from marketplace.accounts.selectors import operator_organization
from marketplace.billing.models import Invoice, InvoiceStatusChange
from marketplace.billing.services.invoice_batches import BUYERS_AT_ONCE, JOB, issue_many, one_by_one
from marketplace.billing.services.invoicing import draft_of, issue_after_grace, uninvoiced_charges
from marketplace.billing.services.lifecycle import Status
from marketplace.errors import DomainError
from marketplace.ids import uuid7
from marketplace.isolating import failing_keys
from marketplace.periods import Period

logger = logging.getLogger(__name__)


def issue_many_after_grace(
    *, organization_ids: Sequence[UUID], month: Period, now: datetime, strict: bool = False
) -> Iterator[Invoice]:
    """`issue_after_grace` for each of them, in bounded transactions; the invoices that were issued by this call.

    Several callers share the buyers, and one who fails keeps no other from his invoice, as with `issue_many`.
    """
    begun = _of_month(organization_ids, month).values_list("organization_id", "status", "grace_until")
    failing = failing_keys(JOB)
    over: set[UUID] = set()
    waiting: set[UUID] = set()
    singly: set[UUID] = set()
    for buyer, status, until in begun:
        if str(buyer) in failing or status != Status.GRACE:
            # One who failed before is asked again though he only waits: then he does not fail any more.
            singly.add(buyer)
        else:
            (over if until is None or until <= now else waiting).add(buyer)
    singly |= {buyer for buyer in organization_ids if str(buyer) in failing}
    known = over | waiting | singly
    new = [buyer for buyer in organization_ids if buyer not in known]
    for start in range(0, len(new), BUYERS_AT_ONCE):
        batch = new[start : start + BUYERS_AT_ONCE]
        try:
            singly.update(_begin(batch, month, now))
        except (DomainError, DatabaseError):
            logger.exception("grace periods not begun together", extra={"buyers": len(batch)})
            singly.update(batch)
    left = [buyer for buyer in organization_ids if buyer in singly]
    yield from one_by_one(left, month, now, strict, issue_after_grace)
    ready = [buyer for buyer in organization_ids if buyer in over]
    yield from issue_many(
        organization_ids=ready, month=month, now=now, strict=strict, single=issue_after_grace
    )


def _of_month(organization_ids: Sequence[UUID], month: Period) -> Any:
    rows = Invoice.objects.filter(organization_id__in=organization_ids, period_start=month.start)
    return rows.exclude(status=Status.VOID)


@transaction.atomic
def _begin(organization_ids: Sequence[UUID], month: Period, now: datetime) -> list[UUID]:
    """Make their invoices, in their grace period where they come to something; who has one meanwhile."""
    claimed = Organization.objects.filter(id__in=organization_ids).order_by("id")
    buyers = list(claimed.select_for_update(skip_locked=True, no_key=True).values_list("id", flat=True))
    others = list(_of_month(buyers, month).values_list("organization_id", flat=True))
    known = set(others)
    issuer = operator_organization()
    drafts = {
        buyer: draft_of(buyer, month, issuer_id=issuer.id, now=now) for buyer in buyers if buyer not in known
    }
    # A single issuer of the same month waits here, or has been here before: then the batch is undone.
    Invoice.objects.bulk_create(drafts.values())
    charges = uninvoiced_charges(month).filter(organization_id__in=list(drafts)).order_by()
    sums = dict(charges.values_list("organization_id").annotate(sum=Sum("amount_micros")))
    firsts = charges.order_by("organization_id", "period_start", "id").distinct("organization_id")
    currencies = dict(firsts.values_list("organization_id", "contract__currency"))
    waiting = [draft for buyer, draft in drafts.items() if sums.get(buyer, -1) >= 0]
    for draft in waiting:
        draft.status, draft.currency = Status.GRACE, currencies[draft.organization_id]
        draft.grace_until = now + timedelta(seconds=settings.INVOICE_GRACE_S)
    Invoice.objects.bulk_update(waiting, ["status", "grace_until", "currency"])
    InvoiceStatusChange.objects.bulk_create(
        InvoiceStatusChange(
            id=uuid7(),
            invoice=draft,
            from_status=Status.DRAFT,
            to_status=Status.GRACE,
            reason="",
            created_at=now,
        )
        for draft in waiting
    )
    return others
