"""What beat asks for: the previous month's documents, once the month is wholly settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from django.conf import settings

from marketplace.billing.models import Invoice, Payout, Statement
from marketplace.billing.selectors import unsettled_contracts
from marketplace.billing.services.automatic import collect_automatically
from marketplace.billing.services.dunning import advance_dunning
from marketplace.billing.services.grace_periods import issue_many_after_grace
from marketplace.billing.services.invoice_batches import issue_many
from marketplace.billing.services.invoicing import buyers_to_invoice
from marketplace.billing.services.paying import take_small_dues
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.statements import issue_statement, providers_to_state
from marketplace.billing.services.taxes import refresh_holding_rates
from marketplace.contracts.models import Contract
from marketplace.isolating import for_each
from marketplace.periods import calendar_month

# After this a month's statements go out without what is still unsettled: it goes to the next month's.
PATIENCE: Final = timedelta(days=1)
T = TypeVar("T")


@dataclass(slots=True)
class IssuedDocuments:
    invoices: list[Invoice] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    payouts: list[Payout] = field(default_factory=list)


def issue_due_documents(*, now: datetime, organization_id: UUID | None = None) -> IssuedDocuments:
    """Issue the previous month's invoices and statements, charge cards, chase and pay out; again issues nothing new.

    A buyer's invoice waits for the settlement of his own contracts only; a statement for all, as any may pay it. For
    all organizations that keep real time, or for one, at its own time.
    """
    documents = IssuedDocuments()
    of: dict[str, Any] = {"now": now, "organization_id": organization_id}
    steps: dict[str, Callable[[], object]] = {
        "issue": lambda: _issue(documents, **of),
        "collect": lambda: _collect(**of),
        "dun": lambda: advance_dunning(**of),
        "pay_out": lambda: documents.payouts.extend(pay_out_statements(**of)),
    }
    if organization_id is None:
        # Holds are of real time, whoever's they are.
        steps = {"refresh_holding_rates": lambda: refresh_holding_rates(now=now), **steps}
    # What goes wrong in one step must not keep money from moving in the others; who asks for one organization is told.
    for_each(
        "billing.documents",
        steps,
        lambda name: steps[name](),
        key=str,
        now=now,
        strict=organization_id is not None,
    )
    return documents


def _issue(documents: IssuedDocuments, now: datetime, organization_id: UUID | None) -> None:
    this_month = calendar_month(now)
    month = calendar_month(this_month.start - timedelta(microseconds=1))
    strict = organization_id is not None
    buyers = buyers_to_invoice(month=month, organization_id=organization_id)
    providers = providers_to_state(month=month, organization_id=organization_id)
    # Requests admitted in the month's last second may still be running or be on their way through the inbox.
    ended = month.end + timedelta(seconds=settings.MAX_REQUEST_S + settings.SETTLEMENT_GRACE_S)
    if now >= ended and (buyers or providers):
        waiting = {due.contract_id for due in unsettled_contracts(since=month.start, until=month.end)}
        patient = now < month.end + PATIENCE
        blocked = set(
            Contract.objects.filter(id__in=waiting).values_list("organization_id", flat=True)
            if patient
            else ()
        )
        ready = [buyer_id for buyer_id in buyers if buyer_id not in blocked]
        issue = issue_many_after_grace if settings.INVOICE_GRACE_S else issue_many
        documents.invoices += issue(organization_ids=ready, month=month, now=now, strict=strict)
        for_each(
            "billing.statement",
            () if blocked else providers,
            lambda provider: _add(
                documents.statements, issue_statement(organization_id=provider, month=month, now=now)
            ),
            key=str,
            now=now,
            strict=strict,
        )


def _collect(now: datetime, organization_id: UUID | None) -> None:
    if organization_id is not None:
        # A clock is of a sandbox, where nothing is too small to be charged.
        collect_automatically(now=now, organization_id=organization_id)
        return
    take_small_dues(now=now)
    if collect_automatically(now=now):
        take_small_dues(now=now)


def _add(documents: list[T], made: T | None) -> None:
    if made is not None:
        documents.append(made)
