"""Charges and the transfers that moved their money, as records of an evidence file: the buyer's side only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import UUID

from django.db.models import Q, QuerySet, Sum

from marketplace.billing.evidence_usage import Known
from marketplace.billing.models import Charge, ChargeKind, Earning, Invoice, InvoiceLineCharge, MonthOutcome
from marketplace.contracts.models import ContractEvent, Entitlement
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, LedgerAccount, Transfer

Record = dict[str, Any]
# What an invoice itself moves; what is paid on it later is no part of the document.
_OF_DOCUMENTS: Final = ("discount", "rounding", "tax")
_AT_ONCE: Final = 500


def charges_in_order(rows: QuerySet[Charge]) -> list[Charge]:
    return list(
        rows.select_related("settlement", "tariff_month").order_by("period_start", "created_at", "id")
    )


def document_transfers(invoice: Invoice) -> Iterator[Record]:
    """Discounts, tax and what lies below minor units, on the buyer's accounts: what he gets is positive."""
    accounts = _accounts_of(invoice)
    rows = Transfer.objects.filter(reference_id=invoice.id, code__in=_OF_DOCUMENTS).order_by("number")
    for transfer in rows:
        yield from _seen_by_buyer(transfer, None, accounts)


def money_of_charges(
    invoice: Invoice, charges: Sequence[Charge], *, with_regions: bool, contract_month: bool = False
) -> Iterator[Record]:
    """Each charge, what else it is made of, and its transfers on the buyer's accounts."""
    for start in range(0, len(charges), _AT_ONCE):
        part = charges[start : start + _AT_ONCE]
        places = _places_of(part)
        regions = _regions_of(part) if with_regions else {}
        moved = _transfers_of(invoice, part)
        for charge in part:
            invoice_id, number, line = places.get(charge.id, (None, None, None))
            yield {
                "t": "charge",
                "id": charge.id,
                "contract_id": charge.contract_id,
                "kind": charge.kind,
                "rate_id": charge.rate_id,
                "grade_id": charge.grade_id,
                "period_start": charge.period_start,
                "period_end": charge.period_end,
                "run": charge.settlement.run if charge.settlement else None,
                "numerator": charge.numerator,
                "estimated_numerator": charge.estimated_numerator,
                "rate_micros_per_mtok": charge.rate_micros_per_mtok,
                "amount_micros": charge.amount_micros,
                # Where else it stands: charges of other invoices complete the settlement period.
                "invoice": number,
                "line": line if invoice_id == invoice.id else None,
                "regions": regions.get(charge.id, {}),
            } | _step(charge)
            if contract_month:
                yield from _made_of(charge)
            yield from moved[charge.id]


def _step(charge: Charge) -> Record:
    """Where a charge stands in a month of tiers, a volume price or packages; nothing of any other charge."""
    if charge.tariff_month is None:
        return {}
    return {
        "month_start": charge.tariff_month.month_start,
        "tier": charge.tier,
        "since_numerator": charge.since_numerator,
    }


def loose_charges(invoice: Invoice, known: Known, *, with_regions: bool) -> Iterator[Record]:
    """Charges that no settlement period made: fees and ends of months, early ends, and what released volume came to."""
    charges = charges_in_order(
        Charge.objects.filter(invoiced_as__line__invoice=invoice, settlement__isnull=True)
    )
    if not charges:
        return
    yield from known.rates_of(charge.rate_id for charge in charges)
    yield {
        "t": "cell",
        "contract_id": None,
        "contract_kind": "none",
        "start": invoice.period_start,
        "end": invoice.period_end,
        "settled": True,
    }
    yield from money_of_charges(invoice, charges, with_regions=with_regions, contract_month=True)


def _made_of(charge: Charge) -> Iterator[Record]:
    if charge.kind == ChargeKind.COMMITTED_FEE:
        month = Entitlement.objects.get(contract_id=charge.contract_id, period_start=charge.period_start)
        yield {
            "t": "month",
            "rate_id": month.rate_id,
            "start": month.period_start,
            "end": month.period_end,
            # Its own volume without what rolled over into it, and what an early end took off after it was paid.
            "entitled_numerator": month.volume_numerator,
            "cut_numerator": _cut_after(charge, month),
        }
    elif charge.kind == ChargeKind.TRUE_UP:
        # A true-up is of the month's first run; later ones adjust it.
        outcome = MonthOutcome.objects.select_related("contract").get(
            contract_id=charge.contract_id, entitlement__period_start=charge.period_start, run=1
        )
        yield {
            "t": "month_end",
            "volume_numerator": outcome.volume_numerator,
            "take_share_ppm": outcome.contract.take_share_ppm,
            "released_numerator": outcome.released_numerator,
            "delivered_numerator": outcome.delivered_numerator,
            "failed_numerator": outcome.failed_numerator,
            "unused_numerator": outcome.unused_numerator,
        }
    elif charge.kind == ChargeKind.RELEASE:
        for earning in _resold(charge):
            yield {
                "t": "resale",
                "id": earning.id,
                "numerator": earning.numerator,
                "gross_micros": earning.gross_micros,
                "fee_micros": earning.fee_micros,
            }


def _cut_after(charge: Charge, month: Entitlement) -> int:
    """What an early end that came after the fee took off the month."""
    ended = ContractEvent.objects.filter(
        contract_id=charge.contract_id,
        kind__in=[ContractEvent.Kind.TERMINATED, ContractEvent.Kind.AMENDED],
        occurred_at__gte=charge.created_at,
    )
    return charge.numerator - month.volume_numerator if ended.exists() else 0


def _resold(charge: Charge) -> list[Earning]:
    """The earnings that a release charge sums: those of the same settlement run of whoever bought the lots."""
    rows = Earning.objects.filter(
        organization_id=charge.organization_id,
        ask__release__contract_id=charge.contract_id,
        charge__rate_id=charge.rate_id,
        charge__period_start=charge.period_start,
    ).select_related("charge")
    name = f"release:{charge.contract_id}:{charge.rate_id}:{charge.period_start.isoformat()}"
    return [
        earning
        for earning in rows.order_by("id")
        if earning.charge.settlement_id and derived_id(earning.charge.settlement_id, name) == charge.id
    ]


def _transfers_of(invoice: Invoice, charges: Sequence[Charge]) -> dict[UUID, list[Record]]:
    accounts = _accounts_of(invoice)
    about: dict[UUID, UUID] = {charge.id: charge.id for charge in charges}
    about |= dict(Earning.objects.filter(charge__in=charges).values_list("id", "charge_id"))
    for charge in charges:
        if charge.kind == ChargeKind.RELEASE:
            about |= {earning.id: charge.id for earning in _resold(charge)}
    rows = Transfer.objects.filter(
        Q(debit_account_id__in=list(accounts)) | Q(credit_account_id__in=list(accounts)),
        reference_id__in=list(about),
    )
    found: dict[UUID, list[Record]] = defaultdict(list)
    for transfer in rows.order_by("number"):
        assert transfer.reference_id is not None
        charge_id = about[transfer.reference_id]
        found[charge_id] += _seen_by_buyer(transfer, charge_id, accounts)
    return found


def _seen_by_buyer(transfer: Transfer, charge_id: UUID | None, accounts: dict[UUID, str]) -> Iterator[Record]:
    for account_id, sign in ((transfer.debit_account_id, -1), (transfer.credit_account_id, 1)):
        if account_id in accounts:
            yield {
                "t": "transfer",
                "id": transfer.id,
                "charge_id": charge_id,
                "account": accounts[account_id],
                "code": transfer.code,
                "amount_micros": sign * transfer.amount_micros,
            }


def _accounts_of(invoice: Invoice) -> dict[UUID, str]:
    rows = LedgerAccount.objects.filter(
        organization_id=invoice.organization_id,
        kind__in=[AccountKind.PREPAID, AccountKind.RECEIVABLE],
        currency=invoice.currency,
    )
    return dict(rows.values_list("id", "kind"))


def _places_of(charges: Sequence[Charge]) -> dict[UUID, tuple[UUID, str | None, int]]:
    rows = InvoiceLineCharge.objects.filter(charge__in=charges)
    return {
        charge: (invoice, number, line)
        for charge, invoice, number, line in rows.values_list(
            "charge_id", "line__invoice_id", "line__invoice__number", "line__number"
        )
    }


def _regions_of(charges: Sequence[Charge]) -> dict[UUID, dict[str, int]]:
    """Where the hosts stood that a charge's volume came from: what a levy is computed on."""
    rows = Earning.objects.filter(charge__in=charges).values_list("charge_id", "offering__host__region")
    found: dict[UUID, dict[str, int]] = defaultdict(dict)
    for charge_id, region, volume in rows.annotate(volume=Sum("numerator")).order_by("charge_id"):
        found[charge_id][region] = int(volume)
    return found
