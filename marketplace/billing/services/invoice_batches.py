"""Many buyers' invoices of one month, some in a transaction: what is read and written is read and written for all."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from django.db import DatabaseError, transaction
from django.db.models import Count

from marketplace.accounts.models import Organization
from marketplace.accounts.selectors import operator_organization
from marketplace.billing.documents import InvoiceTotals
from marketplace.billing.models import Charge, Discount, Invoice, InvoiceStatusChange, TaxRule
from marketplace.billing.services.discounts import discounts_for
from marketplace.billing.services.invoice_lines import Drawn, draw, write_all
from marketplace.billing.services.invoice_money import (
    Ledger,
    ends_of,
    lock_postings,
    plan_invoice,
    tax_holds_of,
)
from marketplace.billing.services.invoicing import (
    SERIES,
    draft_of,
    issue_invoice,
    set_digest,
    set_figures,
    uninvoiced_charges,
)
from marketplace.billing.services.lifecycle import Status, tell_of_batch
from marketplace.billing.services.numbers import numbers_for
from marketplace.billing.services.taxes import Taxation, identities_of, places_of
from marketplace.contracts.models import Contract
from marketplace.errors import DomainError
from marketplace.ids import uuid7
from marketplace.isolating import failing_keys, for_each
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.services import close_holds, post_transfers
from marketplace.periods import Period
from pricing.models import Grade

logger = logging.getLogger(__name__)

# Bounds of one transaction: how long it holds the issuer's accounts, and how much it keeps in memory.
BUYERS_AT_ONCE: Final = 100
JOB: Final = "billing.invoice"
CHARGES_AT_ONCE: Final = 10_000
_DRAFTED: Final = ("id", "organization", "issuer", "period_start", "period_end", "created_at")
Accounts = dict[tuple[UUID, str], UUID]


class Single(Protocol):
    """What issues one buyer's invoice of a month, if it is to be issued."""

    def __call__(self, *, organization_id: UUID, month: Period, now: datetime) -> Invoice | None: ...


def issue_many(
    *,
    organization_ids: Sequence[UUID],
    month: Period,
    now: datetime,
    strict: bool = False,
    single: Single = issue_invoice,
) -> Iterator[Invoice]:
    """`single` (`issue_invoice`) for each of them; the invoices that were issued by this call.

    In bounded transactions: what a crash leaves behind is whole, and the next call goes on from there. Several callers
    share the work: a buyer who is another's at the moment is passed over (`SKIP LOCKED` on his organization). Where one
    of a batch cannot be invoiced it is issued one by one; that one is recorded as failing, and the others are issued;
    `strict` raises its error.
    """
    failing = failing_keys(JOB)
    failed = [each for each in organization_ids if str(each) in failing]
    yield from one_by_one(failed, month, now, strict, single)
    for batch in _batches([each for each in organization_ids if str(each) not in failing], month):
        try:
            issued, others = _issue_batch(batch, month, now)
        except (DomainError, DatabaseError):
            logger.exception("invoices not issued together", extra={"buyers": len(batch)})
            issued, others = [], batch
        yield from issued
        yield from one_by_one(others, month, now, strict, single)


def one_by_one(
    organization_ids: Sequence[UUID], month: Period, now: datetime, strict: bool, single: Single
) -> list[Invoice]:
    """Each in a transaction of its own; one that fails is recorded, and the others are issued."""
    made: list[Invoice | None] = []
    for_each(
        JOB,
        organization_ids,
        lambda buyer: made.append(single(organization_id=buyer, month=month, now=now)),
        key=str,
        now=now,
        strict=strict,
    )
    return [invoice for invoice in made if invoice is not None]


def _batches(organization_ids: Sequence[UUID], month: Period) -> Iterator[list[UUID]]:
    for start in range(0, len(organization_ids), BUYERS_AT_ONCE):
        part = organization_ids[start : start + BUYERS_AT_ONCE]
        rows = uninvoiced_charges(month).filter(organization_id__in=part).order_by()
        counts = dict(rows.values_list("organization_id").annotate(count=Count("id")))
        batch: list[UUID] = []
        charges = 0
        for organization_id in part:
            count = counts.get(organization_id, 0)
            if batch and charges + count > CHARGES_AT_ONCE:
                yield batch
                batch, charges = [], 0
            batch.append(organization_id)
            charges += count
        yield batch


@transaction.atomic
def _issue_batch(
    organization_ids: Sequence[UUID], month: Period, now: datetime
) -> tuple[list[Invoice], list[UUID]]:
    """What was issued, and who is left to be issued singly: a batch knows drafts of its own and grace periods."""
    claimed = Organization.objects.filter(id__in=organization_ids).order_by("id")
    buyers = {buyer.id: buyer for buyer in claimed.select_for_update(skip_locked=True, no_key=True)}
    in_grace, issued, others = _begun(buyers, month)
    for organization_id in [*issued, *others]:
        del buyers[organization_id]
    charges = _charges_by_buyer(list(buyers), month)
    # What comes to a credit meanwhile is nobody's document again: by itself.
    others += [buyer for buyer in in_grace if buyer not in charges]
    if not charges:
        return [], others
    issuer = operator_organization()
    drafts = [
        in_grace.get(buyer) or draft_of(buyer, month, issuer_id=issuer.id, now=now) for buyer in charges
    ]
    for draft in drafts:
        draft.currency = charges[draft.organization_id][0].contract.currency
    # A single issuer of the same month waits here, or has been here before: then the batch is undone.
    Invoice.objects.bulk_create(draft for draft in drafts if draft.organization_id not in in_grace)
    _end_grace([draft for draft in drafts if draft.organization_id in in_grace], now)
    drawn = _drawn(drafts, charges, buyers, issuer, month)
    written = write_all(zip(drafts, drawn, strict=True))
    totals = _post(drafts, drawn, charges, now)
    numbers = numbers_for(
        [draft.organization_id for draft in drafts], issuer_id=issuer.id, prefix=SERIES, now=now
    )
    for invoice, sums, rows, number in zip(drafts, totals, written, numbers, strict=True):
        set_figures(invoice, sums, buyer=buyers[invoice.organization_id], issuer=issuer, now=now)
        invoice.number = number
        set_digest(invoice, rows)
    _store(drafts, now)
    return drafts, others


def _begun(
    buyers: Mapping[UUID, Organization], month: Period
) -> tuple[dict[UUID, Invoice], list[UUID], list[UUID]]:
    """By buyer the invoices in their grace period, locked; who has an issued one; whose is in another state."""
    begun = Invoice.objects.filter(organization_id__in=list(buyers), period_start=month.start)
    issued: list[UUID] = []
    in_grace: list[UUID] = []
    others: list[UUID] = []
    for organization_id, status in begun.exclude(status=Status.VOID).values_list("organization_id", "status"):
        found = {Status.GRACE: in_grace, Status.DRAFT: others}.get(Status(status), issued)
        found.append(organization_id)
    locked = {
        invoice.organization_id: invoice
        for invoice in begun.filter(organization_id__in=in_grace, status=Status.GRACE)
        .select_for_update()
        .order_by("id")
    }
    # One that a single issuer had in his hands has gone on from there.
    others += [buyer for buyer in in_grace if buyer not in locked]
    return locked, issued, others


def _end_grace(invoices: Sequence[Invoice], now: datetime) -> None:
    """Drafts again, as every invoice is until it is final; written down."""
    Invoice.objects.filter(id__in=[invoice.id for invoice in invoices]).update(status=Status.DRAFT)
    InvoiceStatusChange.objects.bulk_create(
        InvoiceStatusChange(
            id=uuid7(),
            invoice=invoice,
            from_status=Status.GRACE,
            to_status=Status.DRAFT,
            reason="",
            created_at=now,
        )
        for invoice in invoices
    )
    for invoice in invoices:
        invoice.status = Status.DRAFT


def _charges_by_buyer(organization_ids: Sequence[UUID], month: Period) -> dict[UUID, list[Charge]]:
    """Of each buyer who has some, unless they come to a credit: in order, with contract and grade at hand."""
    rows = list(
        uninvoiced_charges(month)
        .filter(organization_id__in=organization_ids)
        .order_by("organization_id", "period_start", "id")
    )
    contracts = Contract.objects.in_bulk({charge.contract_id for charge in rows})
    grades = Grade.objects.select_related("family").in_bulk({charge.grade_id for charge in rows})
    found: dict[UUID, list[Charge]] = defaultdict(list)
    for charge in rows:
        charge.contract, charge.grade = contracts[charge.contract_id], grades[charge.grade_id]
        found[charge.organization_id].append(charge)
    return {
        buyer: charges
        for buyer, charges in found.items()
        if sum(charge.amount_micros for charge in charges) >= 0
    }


def _drawn(
    drafts: Sequence[Invoice],
    charges: dict[UUID, list[Charge]],
    buyers: dict[UUID, Organization],
    issuer: Organization,
    month: Period,
) -> list[Drawn]:
    identities = identities_of(list(buyers.values()))
    countries = set().union(*(places_of(each) for of_buyer in identities.values() for each in of_buyer))
    rules: dict[str, list[TaxRule]] = defaultdict(list)
    if countries:
        for rule in TaxRule.objects.filter(jurisdiction__in=countries).order_by("id"):
            rules[rule.jurisdiction].append(rule)
    given = Discount.objects.filter(organization_id__in=list(charges))
    reduced = set(given.values_list("organization_id", flat=True))
    drawn = []
    for draft in drafts:
        buyer = buyers[draft.organization_id]
        discounts = discounts_for(organization_id=buyer.id, month=month) if buyer.id in reduced else []
        own = identities[buyer.id]
        lived_in = sorted(set().union(*map(places_of, own)))
        taxation = Taxation(buyer, issuer, [rule for each in lived_in for rule in rules[each]], own)
        drawn.append(draw(charges[buyer.id], taxation, discounts))
    return drawn


def _post(
    drafts: Sequence[Invoice], drawn: Sequence[Drawn], charges: dict[UUID, list[Charge]], now: datetime
) -> list[InvoiceTotals]:
    """Move the money of all of them in one call, late: the issuer's accounts are locked from here to the end."""
    holds = tax_holds_of(charges[draft.organization_id] for draft in drafts)
    accounts = _accounts(drafts)
    ledgers = [Ledger(draft, now, accounts=accounts[draft.currency]) for draft in drafts]
    totals = [plan_invoice(*each) for each in zip(ledgers, drawn, holds, strict=True)]
    transfers = [transfer for ledger in ledgers for transfer in ledger.transfers]
    lock_postings(holds, transfers)
    post_transfers(transfers, now=now)
    together: dict[AccountKind, dict[UUID, int]] = {kind: {} for kind in AccountKind}
    for held in holds:
        for kind, of_kind in held.items():
            together[kind] |= of_kind
    close_holds(ends_of(together, transfers), now=now)
    return totals


def _accounts(drafts: Sequence[Invoice]) -> dict[str, Accounts]:
    """By currency the accounts that exist; others are made when they are needed."""
    found: dict[str, Accounts] = {draft.currency: {} for draft in drafts}
    owners = {draft.organization_id for draft in drafts} | {draft.issuer_id for draft in drafts}
    rows = LedgerAccount.objects.filter(organization_id__in=owners, reference_id__isnull=True)
    for account, owner, kind, currency in rows.values_list("id", "organization_id", "kind", "currency"):
        if currency in found:
            found[currency][owner, kind] = account
    return found


def _store(drafts: Sequence[Invoice], now: datetime) -> None:
    """Finalised, and paid where nothing is due; each step is written down."""
    names = [field.name for field in Invoice._meta.concrete_fields if field.name not in _DRAFTED]
    Invoice.objects.bulk_create(drafts, update_conflicts=True, unique_fields=["id"], update_fields=names)
    paid = [invoice for invoice in drafts if invoice.amount_due_micros <= 0]
    Invoice.objects.filter(id__in=[invoice.id for invoice in paid]).update(status=Status.PAID)
    steps = [(invoice, uuid7(), Status.DRAFT, Status.FINALISED, "") for invoice in drafts]
    steps += [(invoice, uuid7(), Status.FINALISED, Status.PAID, "from the balance") for invoice in paid]
    InvoiceStatusChange.objects.bulk_create(
        InvoiceStatusChange(
            id=step_id,
            invoice_id=invoice.id,
            from_status=before,
            to_status=after,
            reason=reason,
            created_at=now,
        )
        for invoice, step_id, before, after, reason in steps
    )
    tell_of_batch(((invoice, step_id, after) for invoice, step_id, _, after, _ in steps), now=now)
    for invoice in paid:
        invoice.status = Status.PAID
