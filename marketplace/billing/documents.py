"""The arithmetic of a buyer's document: tax, whole minor units, prepaid, due. Pure (docs/rounding.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from pricing.units import PPM, div_ceil, div_half_up, micros_per_minor_unit, split_by_weight


@dataclass(frozen=True, slots=True)
class InvoiceTotals:
    """All in micros. `total = subtotal - discount + tax - rounding`, `amount_due = total - prepaid`, whole minor units.

    `rounding_prepaid` and `rounding_arrears` are what is given back on the prepaid and on the receivable account.
    """

    subtotal: int
    tax: int
    total: int
    prepaid: int
    amount_due: int
    rounding_prepaid: int
    rounding_arrears: int
    discount: int = 0

    @property
    def rounding(self) -> int:
        return self.rounding_prepaid + self.rounding_arrears


def tax_of(subtotal: int, tax_ppm: int) -> int:
    """The tax of a document at one rate: on the sum, half-up, in micros."""
    return div_half_up(subtotal * tax_ppm, PPM)


def tax_share(amount: int, tax_ppm: int) -> int:
    """What is set aside of one charge until its invoice: rounded up, so that the sum always covers `tax_of`."""
    return div_ceil(amount * tax_ppm, PPM) if amount > 0 else 0


def whole_minor_units(amount: int, currency: str) -> int:
    """The largest number of whole minor units not above `amount`, in micros."""
    minor = micros_per_minor_unit(currency)
    return amount // minor * minor


def split_tax(tax: int, *, prepaid_subtotal: int, arrears_subtotal: int) -> tuple[int, int]:
    """A document's tax over what was charged prepaid and what in arrears: largest remainder."""
    if prepaid_subtotal <= 0 or arrears_subtotal <= 0:
        return (tax, 0) if prepaid_subtotal >= arrears_subtotal else (0, tax)
    prepaid, arrears = split_by_weight(tax, [prepaid_subtotal, arrears_subtotal])
    return prepaid, arrears


def invoice_totals(
    *, prepaid_subtotal: int, arrears_subtotal: int, tax_ppm: int, currency: str, prepaid_tax_unpaid: int = 0
) -> InvoiceTotals:
    """`foot` of a document with one rate and no discount."""
    return foot(
        prepaid_net=prepaid_subtotal,
        arrears_net=arrears_subtotal,
        tax=tax_of(prepaid_subtotal + arrears_subtotal, tax_ppm),
        currency=currency,
        prepaid_tax_unpaid=prepaid_tax_unpaid,
    )


def foot(
    *,
    prepaid_net: int,
    arrears_net: int,
    tax: int,
    currency: str,
    discount: int = 0,
    prepaid_tax_unpaid: int = 0,
) -> InvoiceTotals:
    """The figures at the foot of an invoice. Floors in the buyer's favour, once for each account it touches.

    The nets are after `discount`. `prepaid_tax_unpaid` is tax on prepaid charges for which the balance had no cover: it
    is due, not applied.
    """
    tax_prepaid, tax_arrears = split_tax(tax, prepaid_subtotal=prepaid_net, arrears_subtotal=arrears_net)
    raw_prepaid = prepaid_net + tax_prepaid - prepaid_tax_unpaid
    raw_due = arrears_net + tax_arrears + prepaid_tax_unpaid
    prepaid, due = whole_minor_units(raw_prepaid, currency), whole_minor_units(raw_due, currency)
    return InvoiceTotals(
        subtotal=prepaid_net + arrears_net + discount,
        tax=tax,
        total=prepaid + due,
        prepaid=prepaid,
        amount_due=due,
        rounding_prepaid=raw_prepaid - prepaid,
        rounding_arrears=raw_due - due,
        discount=discount,
    )


def cover(needed: int, held: Mapping[UUID, int]) -> dict[UUID, int]:
    """Which hold posts how much of `needed`: in the order given, each at most what it holds."""
    taken: dict[UUID, int] = {}
    for hold, amount in held.items():
        part = min(needed, amount)
        if part > 0:
            taken[hold] = part
            needed -= part
    return taken
