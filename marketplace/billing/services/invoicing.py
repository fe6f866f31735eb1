"""Invoices: one for each buyer and UTC calendar month, of every charge that no invoice has yet."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import transaction

from marketplace.accounts.models import Organization
from marketplace.accounts.selectors import operator_organization
from marketplace.billing.documents import InvoiceTotals, cover, invoice_totals, split_tax, tax_of
from marketplace.billing.models import Charge, ChargeKind, Invoice, InvoiceLine, InvoiceLineCharge
from marketplace.billing.services.identity import id_at
from marketplace.billing.services.numbers import next_number
from marketplace.billing.services.parties import party
from marketplace.billing.services.posting import tax_hold_id
from marketplace.contracts.models import Contract, ContractKind, Payment
from marketplace.errors import InvalidInput
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, Hold
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import NewTransfer, account_id, close_hold, post_transfers
from marketplace.periods import Period, calendar_month
from pricing.units import format_micros

logger = logging.getLogger(__name__)

SERIES: Final = "TY"
_TITLES: Final = {
    ChargeKind.COMMITTED_FEE: "Committed volume",
    ChargeKind.USAGE: "Usage",
    ChargeKind.OVERAGE: "Overage",
    ChargeKind.TRUE_UP: "True-up",
    ChargeKind.SPOT: "Spot",
    ChargeKind.MINIMUM_TAKE: "Minimum take",
    ChargeKind.REMEDY: "Remedy",
    ChargeKind.SERVICE_CREDIT: "Service credit",
    ChargeKind.RELEASE: "Resold volume",
    ChargeKind.ADJUSTMENT: "Adjustment",
}


def buyers_to_invoice(*, month: Period) -> list[UUID]:
    """Organizations with charges up to the month's end that no invoice has, and without an invoice of the month."""
    invoiced = Invoice.objects.filter(period_start=month.start).exclude(status=Invoice.Status.DRAFT)
    rows = (
        Charge.objects.filter(invoiced_as__isnull=True, period_start__lt=month.end)
        .exclude(organization_id__in=invoiced.values("organization_id"))
        .order_by("organization_id")
        .values_list("organization_id", flat=True)
        .distinct()
    )
    return list(rows)


def issue_invoices(*, month_start: datetime, now: datetime, early: bool = False) -> list[Invoice]:
    """Issue the invoices of a month to every buyer who has charges; a month without charges gives no invoice.

    Again issues nothing new. Raises InvalidInput (field month_start) while the month runs, unless `early`: then
    what is charged so far is invoiced, and the month's later charges go to the next invoice.
    """
    month = calendar_month(month_start)
    if now < month.start:
        raise InvalidInput("the month has not begun", field="month_start")
    if now < month.end and not early:
        raise InvalidInput("the month is not over yet", field="month_start")
    issued = []
    for organization_id in buyers_to_invoice(month=month):
        invoice = issue_invoice(organization_id=organization_id, month=month, now=now)
        if invoice is not None:
            issued.append(invoice)
    return issued


@transaction.atomic
def issue_invoice(*, organization_id: UUID, month: Period, now: datetime) -> Invoice | None:
    """Draw up, finalise and, where the prepaid balance has paid all of it, mark paid one buyer's invoice.

    All in one transaction: a number is never lost. None when there is nothing to invoice, when what there is comes
    to a credit (it waits for the next month), or when the month's invoice was issued before.
    """
    issuer = operator_organization()
    Invoice.objects.bulk_create([_draft(organization_id, issuer.id, month, now)], ignore_conflicts=True)
    invoice = Invoice.objects.select_for_update().get(
        organization_id=organization_id, period_start=month.start
    )
    if invoice.status != Invoice.Status.DRAFT:
        return None
    charges = list(
        Charge.objects.filter(
            organization_id=organization_id, invoiced_as__isnull=True, period_start__lt=month.end
        )
        .select_related("contract", "grade__family")
        .order_by("period_start", "id")
    )
    if not charges or sum(charge.amount_micros for charge in charges) < 0:
        transaction.set_rollback(True)
        return None
    invoice.currency = charges[0].contract.currency
    _write_lines(invoice, charges)
    buyer = Organization.objects.get(pk=organization_id)
    totals = _post(invoice, charges, buyer, issuer, now=now)
    invoice.parties = {"buyer": party(buyer), "issuer": party(issuer)}
    invoice.subtotal_micros = totals.subtotal
    invoice.tax_micros = totals.tax
    invoice.total_micros = totals.total
    invoice.prepaid_micros = totals.prepaid
    invoice.amount_due_micros = totals.amount_due
    invoice.rounding_micros = totals.rounding
    invoice.finalised_at = now
    invoice.status = Invoice.Status.FINALISED
    invoice.number = next_number(issuer_id=issuer.id, series=f"{SERIES}-{now.year}")
    invoice.save()
    if invoice.amount_due_micros <= 0:
        invoice.status = Invoice.Status.PAID
        invoice.save(update_fields=["status"])
    return invoice


def _draft(organization_id: UUID, issuer_id: UUID, month: Period, now: datetime) -> Invoice:
    return Invoice(
        id=id_at(organization_id, month.start, "invoice"),
        organization_id=organization_id,
        issuer_id=issuer_id,
        period_start=month.start,
        period_end=month.end,
        created_at=now,
    )


def _post(
    invoice: Invoice, charges: Sequence[Charge], buyer: Organization, issuer: Organization, *, now: datetime
) -> InvoiceTotals:
    """Move the tax out of what was held for it, void the rest, and give the remainder below minor units back."""
    subtotals = {AccountKind.PREPAID: 0, AccountKind.RECEIVABLE: 0}
    for charge in charges:
        subtotals[_account_kind(charge)] += charge.amount_micros
    prepaid, arrears = subtotals[AccountKind.PREPAID], subtotals[AccountKind.RECEIVABLE]
    tax = tax_of(prepaid + arrears, buyer.tax_ppm)
    tax_prepaid, tax_arrears = split_tax(tax, prepaid_subtotal=prepaid, arrears_subtotal=arrears)
    currency = invoice.currency
    issuer_tax = account_id(organization_id=issuer.id, kind=AccountKind.TAX, currency=currency, now=now)
    rounding = account_id(organization_id=issuer.id, kind=AccountKind.ROUNDING, currency=currency, now=now)
    transfers: list[NewTransfer] = []
    unpaid = {AccountKind.PREPAID: 0, AccountKind.RECEIVABLE: 0}
    holds = _tax_holds(charges)
    for kind, needed in ((AccountKind.PREPAID, tax_prepaid), (AccountKind.RECEIVABLE, tax_arrears)):
        if not needed:
            continue
        account = account_id(organization_id=buyer.id, kind=kind, currency=currency, now=now)
        posted = 0
        for hold_id, amount in cover(needed, holds[kind]).items():
            posted += amount
            transfers.append(
                _transfer(derived_id(hold_id, "tax"), account, issuer_tax, amount, "tax", invoice, hold_id)
            )
        # Not held (an award's hold without tax): from the free balance, and what that cannot cover is due.
        free = balance(organization_id=buyer.id, kind=kind, currency=currency).available_micros
        extra = min(needed - posted, max(0, free))
        if extra:
            transfers.append(
                _transfer(derived_id(invoice.id, f"tax:{kind}"), account, issuer_tax, extra, "tax", invoice)
            )
        unpaid[kind] = needed - posted - extra
    totals = invoice_totals(
        prepaid_subtotal=prepaid,
        arrears_subtotal=arrears,
        tax_ppm=buyer.tax_ppm,
        currency=currency,
        prepaid_tax_unpaid=unpaid[AccountKind.PREPAID],
    )
    for kind, amount in (
        (AccountKind.PREPAID, totals.rounding_prepaid),
        (AccountKind.RECEIVABLE, totals.rounding_arrears),
    ):
        if amount:
            account = account_id(organization_id=buyer.id, kind=kind, currency=currency, now=now)
            transfers.append(
                _transfer(
                    derived_id(invoice.id, f"rounding:{kind}"), rounding, account, amount, "rounding", invoice
                )
            )
    if transfers:
        post_transfers(transfers, now=now)
    used = {transfer.hold_id for transfer in transfers}
    for hold_id in sorted(hold for by_hold in holds.values() for hold in by_hold):
        close_hold(id=hold_id, status="posted" if hold_id in used else "voided", now=now)
    return totals


def _transfer(
    transfer_id: UUID,
    debit: UUID,
    credit: UUID,
    amount: int,
    code: str,
    invoice: Invoice,
    hold_id: UUID | None = None,
) -> NewTransfer:
    return NewTransfer(
        id=transfer_id,
        debit_id=debit,
        credit_id=credit,
        amount_micros=amount,
        code=code,
        hold_id=hold_id,
        reference_id=invoice.id,
    )


def _account_kind(charge: Charge) -> AccountKind:
    return AccountKind.RECEIVABLE if charge.contract.payment == Payment.ARREARS else AccountKind.PREPAID


def _tax_holds(charges: Iterable[Charge]) -> dict[AccountKind, dict[UUID, int]]:
    """The open holds of tax behind these charges and what each holds, by the account it is on, in id order."""
    kinds = {
        tax_hold_id(settlement_id=charge.settlement_id, charge_id=charge.id): _account_kind(charge)
        for charge in charges
        if charge.tax_held_micros
    }
    rows = Hold.objects.filter(id__in=list(kinds), status=Hold.Status.OPEN).order_by("id")
    held: dict[AccountKind, dict[UUID, int]] = {AccountKind.PREPAID: {}, AccountKind.RECEIVABLE: {}}
    for hold in rows:
        held[kinds[hold.id]][hold.id] = hold.amount_micros - hold.captured_micros
    return held


def _write_lines(invoice: Invoice, charges: Iterable[Charge]) -> None:
    grouped: dict[tuple[object, ...], list[Charge]] = defaultdict(list)
    for charge in charges:
        grouped[_line_key(charge)].append(charge)
    lines, links = [], []
    ordered = sorted(grouped.values(), key=lambda group: (group[0].period_start, str(group[0].id)))
    for number, group in enumerate(ordered, start=1):
        line = InvoiceLine(
            id=derived_id(invoice.id, f"line:{number}"),
            invoice=invoice,
            number=number,
            kind=_line_kind(group[0]),
            description=_description(group),
            contract=group[0].contract,
            period_start=min(charge.period_start for charge in group),
            period_end=max(charge.period_end for charge in group),
            numerator=sum(charge.numerator for charge in group),
            estimated_numerator=sum(charge.estimated_numerator for charge in group),
            amount_micros=sum(charge.amount_micros for charge in group),
        )
        lines.append(line)
        links += [
            InvoiceLineCharge(id=derived_id(charge.id, "invoiced"), line=line, charge=charge)
            for charge in group
        ]
    InvoiceLine.objects.bulk_create(lines)
    InvoiceLineCharge.objects.bulk_create(links, batch_size=5_000)


def _line_kind(charge: Charge) -> str:
    """Usage and minimum take of an award are one printed line."""
    return ChargeKind.SPOT if charge.kind == ChargeKind.MINIMUM_TAKE else charge.kind


def _line_key(charge: Charge) -> tuple[object, ...]:
    """Spot and resold: one line for each contract and day; everything else: one for each contract, kind and rate."""
    kind = _line_kind(charge)
    if charge.contract.kind == ContractKind.SPOT or kind == ChargeKind.RELEASE:
        return (charge.contract_id, kind, charge.period_start.date())
    if kind == ChargeKind.COMMITTED_FEE:
        return (charge.id,)
    return (charge.contract_id, kind, charge.rate_id, charge.rate_micros_per_mtok)


def _description(group: Sequence[Charge]) -> str:
    first = group[0]
    contract: Contract = first.contract
    title = _TITLES[ChargeKind(_line_kind(first))]
    grade = first.grade.family.title
    if contract.kind == ContractKind.SPOT or first.kind == ChargeKind.RELEASE:
        return f"{title}, {grade}, {first.period_start.date().isoformat()}"
    if contract.kind == ContractKind.COMMITTED and first.rate_micros_per_mtok == 0:
        return f"{title} included in the committed volume, {grade}"
    rate = format_micros(first.rate_micros_per_mtok, contract.currency)
    kind = ContractKind(contract.kind).value.replace("_", "-")
    return f"{title}, {kind}, {grade}, {rate} {contract.currency} per Mtok"
