"""Recomputes issued documents from the usage events they cite, with the verifier that buyers run themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from marketplace.billing.auditing import lines_lacking
from marketplace.billing.evidence import evidence_of
from marketplace.billing.evidence_verifier import Difference, Verifier
from marketplace.billing.models import Charge, CreditNote, Invoice
from marketplace.billing.services.lifecycle import UNISSUED
from marketplace.errors import NotFound


@dataclass(slots=True)
class Verified:
    """What a document came to. `difference`: the first thing that does not come out, or None.

    `sums` in micros; `counts` of records by kind; `stated` what could only be taken as it stands; `unsettled` the
    settlement periods with usage that is not charged yet.
    """

    number: str
    invoice_number: str
    difference: str | None = None
    sums: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    stated: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)


def verify_document(*, number: str) -> Verified:
    """Recompute an invoice, or the invoice of a credit note with all its notes; changes nothing.

    First as its buyer would, from the evidence file. Then what that takes from other people's data, failures and what
    replaced them: a settlement period passes when one more run would have nothing to write. Takes each contract's
    locks for a moment. Raises NotFound.
    """
    invoice = _invoice_of(number)
    found = Verified(number, str(invoice.number))
    verifier = Verifier()
    try:
        for line in _lines(invoice):
            verifier.read(line)
        found.sums = verifier.finish()
        _settle_again(invoice)
    except Difference as difference:
        found.difference = str(difference)
    found.counts = dict(verifier.counts)
    found.stated, found.unsettled = verifier.stated, verifier.unsettled
    return found


def _invoice_of(number: str) -> Invoice:
    invoices = Invoice.objects.exclude(status__in=UNISSUED)
    invoice = invoices.filter(number=number).first()
    if invoice is None:
        note = CreditNote.objects.filter(number=number).first()
        invoice = invoices.filter(pk=note.invoice_id).first() if note else None
    if invoice is None:
        raise NotFound("There is no such document.")
    return invoice


def _lines(invoice: Invoice) -> Iterator[bytes]:
    """The pieces of the file, cut at its lines."""
    rest = b""
    for piece in evidence_of(invoice):
        *lines, rest = (rest + piece).splitlines(keepends=True)
        if rest.endswith(b"\n"):
            lines, rest = [*lines, rest], b""
        yield from lines


def _settle_again(invoice: Invoice) -> None:
    cells = (
        Charge.objects.filter(invoiced_as__line__invoice=invoice, settlement__isnull=False)
        .order_by("settlement__settlement_start", "contract_id")
        .values_list("settlement__settlement_start", "contract_id")
        .distinct()
    )
    for settlement_start, contract_id in cells:
        for line in lines_lacking(contract_id, settlement_start) or ():
            raise Difference(
                f"charges of contract {contract_id} from {settlement_start.isoformat()}, rate {line.rate_id}",
                "what stands",
                f"{line.numerator} numerators and {line.amount_micros} micros more",
            )
