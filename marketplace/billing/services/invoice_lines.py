"""The printed lines of an invoice: charges that belong together, with their parts of discounts and taxes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from marketplace.billing.amounts import TaxedLine, Worked, work_out
from marketplace.billing.line_room import fitting
from marketplace.billing.models import (
    Charge,
    ChargeKind,
    Discount,
    Invoice,
    InvoiceDiscount,
    InvoiceLine,
    InvoiceLineCharge,
    InvoiceLineTax,
    InvoiceTax,
)
from marketplace.billing.services.discounts import term_of
from marketplace.billing.services.taxes import AppliedTax, Taxation, foreign_volume
from marketplace.contracts.models import Contract, ContractKind, Payment
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from pricing.units import format_micros

_TITLES: Final = {
    ChargeKind.COMMITTED_FEE: "Committed volume",
    ChargeKind.USAGE: "Usage",
    ChargeKind.OVERAGE: "Overage",
    ChargeKind.TRUE_UP: "True-up",
    ChargeKind.TERMINATION: "Early termination",
    ChargeKind.SPOT: "Spot",
    ChargeKind.MINIMUM_TAKE: "Minimum take",
    ChargeKind.REMEDY: "Remedy",
    ChargeKind.SERVICE_CREDIT: "Service credit",
    ChargeKind.RELEASE: "Resold volume",
    ChargeKind.ADJUSTMENT: "Adjustment",
}


@dataclass(slots=True)
class Drawn:
    """An invoice before it is written: its lines by number, and what was worked out of them."""

    groups: dict[int, list[Charge]]
    taxes: dict[str, AppliedTax]
    discounts: dict[str, Discount]
    worked: Worked

    def net_by_account(self) -> dict[AccountKind, int]:
        """What the lines come to after discounts, by the buyer's account that their charges went to."""
        nets = {AccountKind.PREPAID: 0, AccountKind.RECEIVABLE: 0}
        for number, group in self.groups.items():
            amount = sum(charge.amount_micros for charge in group)
            nets[account_kind(group[0])] += amount - self.worked.line_discounts[number]
        return nets

    def discount_by_account(self) -> dict[AccountKind, int]:
        off = {AccountKind.PREPAID: 0, AccountKind.RECEIVABLE: 0}
        for number, group in self.groups.items():
            off[account_kind(group[0])] += self.worked.line_discounts[number]
        return off


@dataclass(slots=True)
class Written:
    """The rows of an invoice, as they stand in the database."""

    lines: list[InvoiceLine]
    taxes: list[InvoiceTax]
    discounts: list[InvoiceDiscount]


def account_kind(charge: Charge) -> AccountKind:
    """The buyer's account that a charge went to; what was resold is credited to the balance, however he pays."""
    in_arrears = charge.contract.payment == Payment.ARREARS and charge.kind != ChargeKind.RELEASE
    return AccountKind.RECEIVABLE if in_arrears else AccountKind.PREPAID


def draw(charges: Iterable[Charge], taxation: Taxation, discounts: Sequence[Discount]) -> Drawn:
    """Group charges into lines (one for each contract, kind, rate and set of taxes) and work the document out."""
    charges = list(charges)
    applied = {charge.id: taxation.at(charge.period_start) for charge in charges}
    taxes = {tax.key: tax for set_of in applied.values() for tax in set_of}
    foreign = foreign_volume(applied)
    grouped: dict[tuple[object, ...], list[Charge]] = defaultdict(list)
    for charge in charges:
        grouped[*_line_key(charge), *(tax.key for tax in applied[charge.id])].append(charge)
    # More than one line holds is printed as several: a month that is too large for a column is invoiced all the same.
    parts = (part for group in grouped.values() for part in fitting(group, sums=_sums))
    ordered = sorted(parts, key=lambda group: (group[0].period_start, str(group[0].id)))
    groups = dict(enumerate(ordered, start=1))
    worked = work_out(
        {
            number: TaxedLine(
                sum(charge.amount_micros for charge in group),
                kind=_line_kind(group[0]),
                taxes=tuple(tax.key for tax in applied[group[0].id]),
                foreign=_sum_by_key(foreign.get(charge.id, {}) for charge in group),
            )
            for number, group in groups.items()
        },
        [term_of(discount) for discount in discounts],
        [tax.term for tax in taxes.values()],
    )
    return Drawn(groups, taxes, {str(discount.id): discount for discount in discounts}, worked)


def _sums(charge: Charge) -> tuple[int, int, int]:
    return charge.numerator, charge.estimated_numerator, charge.amount_micros


def _sum_by_key(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for part in parts:
        for key, volume in part.items():
            total[key] += volume
    return dict(total)


def write(invoice: Invoice, drawn: Drawn, *, moved: bool = False) -> Written:
    """Insert the rows of a draft; with `moved` its charges come over from the void invoice that it replaces."""
    [written] = write_all([(invoice, drawn)], moved=moved)
    return written


def write_all(drafts: Iterable[tuple[Invoice, Drawn]], *, moved: bool = False) -> list[Written]:
    """`write` for several drafts, in their order, in one statement for each kind of row."""
    drafts = list(drafts)
    written = [_rows(invoice, drawn) for invoice, drawn in drafts]
    InvoiceLine.objects.bulk_create([line for rows in written for line in rows.lines])
    InvoiceTax.objects.bulk_create([tax for rows in written for tax in rows.taxes])
    InvoiceDiscount.objects.bulk_create([discount for rows in written for discount in rows.discounts])
    InvoiceLineTax.objects.bulk_create(
        [
            InvoiceLineTax(
                id=derived_id(line.id, f"tax:{key}"),
                line=line,
                tax=rows.taxes[sorted(drawn.taxes).index(key)],
                tax_micros=amount,
            )
            for (_, drawn), rows in zip(drafts, written, strict=True)
            for line in rows.lines
            for key, amount in sorted(drawn.worked.line_taxes[line.number].items())
            if amount
        ]
    )
    _link(
        [
            (line, drawn.groups[line.number])
            for (_, drawn), rows in zip(drafts, written, strict=True)
            for line in rows.lines
        ],
        moved=moved,
    )
    return written


def _rows(invoice: Invoice, drawn: Drawn) -> Written:
    lines = [_line(invoice, number, group, drawn.worked) for number, group in drawn.groups.items()]
    taxes = [
        _tax(invoice, number, drawn.taxes[key], drawn.worked)
        for number, key in enumerate(sorted(drawn.taxes), start=1)
    ]
    discounts = [
        InvoiceDiscount(
            id=derived_id(invoice.id, f"discount:{key}"),
            invoice=invoice,
            discount=drawn.discounts[key],
            title=drawn.discounts[key].title,
            amount_micros=amount,
        )
        for key, amount in sorted(drawn.worked.discounts.items())
        if amount
    ]
    return Written(lines, taxes, discounts)


def _link(groups: Sequence[tuple[InvoiceLine, Sequence[Charge]]], *, moved: bool) -> None:
    if moved:
        for line, group in groups:
            ids = [charge.id for charge in group]
            InvoiceLineCharge.objects.filter(charge_id__in=ids).update(line=line)
        return
    links = [
        InvoiceLineCharge(id=derived_id(charge.id, "invoiced"), line=line, charge=charge)
        for line, group in groups
        for charge in group
    ]
    InvoiceLineCharge.objects.bulk_create(links, batch_size=5_000)


def _line(invoice: Invoice, number: int, group: Sequence[Charge], worked: Worked) -> InvoiceLine:
    return InvoiceLine(
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
        discount_micros=worked.line_discounts[number],
        tax_micros=sum(worked.line_taxes[number].values()),
    )


def _tax(invoice: Invoice, number: int, tax: AppliedTax, worked: Worked) -> InvoiceTax:
    id_: UUID = derived_id(invoice.id, f"tax:{tax.key}")
    base = worked.bases[tax.key]
    return InvoiceTax(
        id=id_,
        invoice=invoice,
        number=number,
        rule=tax.rule,
        jurisdiction=tax.rule.jurisdiction if tax.rule else "",
        title=tax.title,
        rate_ppm=tax.rate_ppm,
        levy_micros_per_mtok=tax.levy_micros_per_mtok,
        reverse_charge=tax.reversed,
        base_micros=0 if tax.levy_micros_per_mtok and not tax.reversed else base,
        base_numerator=base if tax.levy_micros_per_mtok and not tax.reversed else 0,
        tax_micros=worked.taxes[tax.key],
    )


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
    is_again = _is_charged_again(charge)
    return (charge.contract_id, kind, charge.rate_id, charge.rate_micros_per_mtok, is_again)


def _is_charged_again(charge: Charge) -> bool:
    """What a month so far came to, once more, at the volume price that it has reached."""
    return charge.tier is not None and not charge.numerator


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
    if _is_charged_again(first):
        return (
            f"Volume price of {rate} {contract.currency} per Mtok for what was used before, {kind}, {grade}"
        )
    if first.tariff_month_id is not None and first.tier is None:
        return f"{title}, {kind}, {grade}, in packages"
    return f"{title}, {kind}, {grade}, {rate} {contract.currency} per Mtok"
