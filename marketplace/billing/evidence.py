"""The evidence file of an invoice: all that is needed to recompute it offline, as NDJSON (docs/evidence.md).

The document comes first, then each contract and settlement period with what was metered and charged in it, then the
credit notes, and last the SHA-256 of all before. `evidence_verifier` reads it and shares no code with this module.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Final
from uuid import UUID

from django.db import connection, transaction

from marketplace.api.exporting import instant
from marketplace.billing.evidence_money import (
    charges_in_order,
    document_transfers,
    loose_charges,
    money_of_charges,
)
from marketplace.billing.evidence_usage import Known, cell_usage
from marketplace.billing.models import (
    Charge,
    ChargeKind,
    CreditNote,
    CreditNoteTax,
    Invoice,
    InvoiceDiscount,
    InvoiceLine,
    InvoiceLineTax,
    InvoiceTax,
    Settlement,
)
from marketplace.billing.printing.content import content_of_credit_note
from marketplace.billing.printing.documents import content_of
from marketplace.billing.selectors import digest_of, metered_usage
from marketplace.billing.services.crediting import taxes_by_title
from marketplace.contracts.models import Contract, Payment
from marketplace.ledger.models import AccountKind

FORM: Final = 1
VERIFIER: Final = Path(__file__).with_name("evidence_verifier.py")
_CELLS_AT_ONCE: Final = 500
# A settlement period's records up to here stay in memory until they are sent; more go to a temporary file.
_SPOOL_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
Record = dict[str, Any]


def evidence_of(invoice: Invoice) -> Iterator[bytes]:
    """The file in pieces, made while it is sent: memory stays flat, and no transaction is open between pieces.

    Each settlement period is read in one snapshot. The same rows give the same bytes; late usage, adjustments on later
    invoices and credit notes change what it says about periods and notes, never about the document.
    """
    seal = _Seal()
    with _spooled(seal, _document(invoice)) as pieces:
        yield from pieces
    known = Known()
    has_levy = invoice.taxes.filter(levy_micros_per_mtok__gt=0, reverse_charge=False).exists()
    for settlement_start, contract_id in _cells(invoice):
        with _spooled(
            seal, _cell(invoice, contract_id, settlement_start, known, has_levy=has_levy)
        ) as pieces:
            yield from pieces
    for records in (loose_charges(invoice, known, with_regions=has_levy), _notes(invoice)):
        with _spooled(seal, records) as pieces:
            yield from pieces
    yield seal.end()


class _Seal:
    """Counts and digests what the file says, in its order."""

    def __init__(self) -> None:
        self.records = 0
        self.digest = hashlib.sha256()

    def line(self, record: Record) -> bytes:
        text = _line(record)
        self.digest.update(text)
        self.records += 1
        return text

    def end(self) -> bytes:
        return _line({"t": "end", "records": self.records, "sha256": self.digest.hexdigest()})


def _line(record: Record) -> bytes:
    return f"{json.dumps(record, ensure_ascii=False, separators=(',', ':'), default=_plain)}\n".encode()


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"no evidence is made of {type(value).__name__}")


@contextmanager
def _spooled(seal: _Seal, records: Iterable[Record]) -> Iterator[Iterator[bytes]]:
    """The records read in one snapshot, then handed out when its transaction is over."""
    with SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        with _snapshot():
            for record in records:
                spool.write(seal.line(record))
        spool.seek(0)
        yield iter(lambda: spool.read(_READ_BYTES), b"")


@contextmanager
def _snapshot() -> Iterator[None]:
    """All reads within see the same moment; inside of a caller's transaction they see what it sees."""
    if connection.in_atomic_block:
        yield
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def _document(invoice: Invoice) -> Iterator[Record]:
    lines = list(InvoiceLine.objects.filter(invoice=invoice).select_related("contract").order_by("number"))
    taxes = list(InvoiceTax.objects.filter(invoice=invoice).select_related("rule").order_by("number"))
    replaced_by = Invoice.objects.filter(replaces=invoice).values_list("number", flat=True).first()
    money = ("subtotal", "discount", "tax", "total", "prepaid", "amount_due", "rounding", "tax_unposted")
    yield {
        "t": "head",
        "form": FORM,
        "id": invoice.id,
        "number": invoice.number,
        "organization_id": invoice.organization_id,
        "currency": invoice.currency,
        "period_start": invoice.period_start,
        "period_end": invoice.period_end,
        **{f"{name}_micros": getattr(invoice, f"{name}_micros") for name in money},
        "charges_moved_to": replaced_by,
        "content_sha256": invoice.content_sha256,
        "content": content_of(invoice),
    }
    for tax in taxes:
        yield _tax(tax)
    discounts = InvoiceDiscount.objects.filter(invoice=invoice).select_related("discount")
    for given in discounts.order_by("discount_id"):
        yield {
            "t": "discount",
            "id": given.discount_id,
            "title": given.title,
            "rate_ppm": given.discount.rate_ppm,
            "amount_micros": given.discount.amount_micros,
            "line_kind": given.discount.line_kind or None,
            "taken_micros": given.amount_micros,
        }
    parts: dict[UUID, dict[str, int]] = defaultdict(dict)
    rows = InvoiceLineTax.objects.filter(line__invoice=invoice).order_by("tax__number")
    for line_id, number, amount in rows.values_list("line_id", "tax__number", "tax_micros"):
        parts[line_id][str(number)] = amount
    for line in lines:
        yield {
            "t": "line",
            "number": line.number,
            "id": line.id,
            "kind": line.kind,
            "description": line.description,
            "contract_id": line.contract_id,
            "account": _account(line),
            "period_start": line.period_start,
            "period_end": line.period_end,
            "numerator": line.numerator,
            "estimated_numerator": line.estimated_numerator,
            "amount_micros": line.amount_micros,
            "discount_micros": line.discount_micros,
            "tax_micros": line.tax_micros,
            "taxes": parts[line.id],
        }
    yield from document_transfers(invoice)


def _account(line: InvoiceLine) -> str:
    in_arrears = line.contract.payment == Payment.ARREARS and line.kind != ChargeKind.RELEASE
    return (AccountKind.RECEIVABLE if in_arrears else AccountKind.PREPAID).value


def _tax(tax: InvoiceTax) -> Record:
    rule = tax.rule
    return {
        "t": "tax",
        "number": tax.number,
        "title": tax.title,
        "jurisdiction": tax.jurisdiction,
        "rule_id": tax.rule_id,
        "rate_ppm": tax.rate_ppm,
        "levy_micros_per_mtok": tax.levy_micros_per_mtok,
        "home_regions": list(rule.home_regions) if rule else [],
        "reverse_charge": tax.reverse_charge,
        "valid_from": rule.valid_from if rule else None,
        "valid_until": rule.valid_until if rule else None,
        "base_micros": tax.base_micros,
        "base_numerator": tax.base_numerator,
        "tax_micros": tax.tax_micros,
    }


def _cells(invoice: Invoice) -> Iterator[tuple[datetime, UUID]]:
    """The settlement periods of contracts that the invoice has charges of, in order."""
    rows = (
        Charge.objects.filter(invoiced_as__line__invoice=invoice, settlement__isnull=False)
        .order_by("settlement__settlement_start", "contract_id")
        .values_list("settlement__settlement_start", "contract_id")
        .distinct()
    )
    start = 0
    while page := list(rows[start : start + _CELLS_AT_ONCE]):
        yield from page
        start += len(page)


def _cell(
    invoice: Invoice, contract_id: UUID, settlement_start: datetime, known: Known, *, has_levy: bool
) -> Iterator[Record]:
    last = (
        Settlement.objects.filter(contract_id=contract_id, settlement_start=settlement_start)
        .order_by("run")
        .last()
    )
    assert last is not None, "settlements are never deleted"
    contract = Contract.objects.get(pk=contract_id)
    metered = metered_usage(contract_id, last.settlement_start, last.settlement_end)
    charges = charges_in_order(
        Charge.objects.filter(
            settlement__contract_id=contract_id, settlement__settlement_start=settlement_start
        )
    )
    yield from known.rates_of(charge.rate_id for charge in charges)
    yield {
        "t": "cell",
        "contract_id": contract_id,
        "contract_kind": contract.kind,
        "start": last.settlement_start,
        "end": last.settlement_end,
        # What was metered since the last run is charged by the next one.
        "settled": digest_of(metered) == last.usage_digest,
    }
    yield from cell_usage(contract, last.settlement_start, last.settlement_end, known)
    yield from money_of_charges(invoice, charges, with_regions=has_levy)


def _notes(invoice: Invoice) -> Iterator[Record]:
    notes = CreditNote.objects.filter(invoice=invoice).prefetch_related("lines__line")
    for note in notes.order_by("created_at", "number"):
        rows = list(note.lines.all())
        taxes = list(CreditNoteTax.objects.filter(line__note=note).select_related("tax"))
        yield {
            "t": "note",
            "id": note.id,
            "number": note.number,
            "net_micros": note.net_micros,
            "tax_micros": note.tax_micros,
            "rounding_micros": note.rounding_micros,
            "total_micros": note.total_micros,
            "due_micros": note.due_micros,
            "content_sha256": note.content_sha256,
            "content": content_of_credit_note(note, invoice, rows, taxes_by_title(taxes)),
        }
        parts: dict[UUID, dict[str, int]] = defaultdict(dict)
        for tax in sorted(taxes, key=lambda tax: tax.tax.number):
            parts[tax.line_id][str(tax.tax.number)] = tax.tax_micros
        for row in rows:
            yield {
                "t": "note_line",
                "line": row.line.number,
                "net_micros": row.net_micros,
                "tax_micros": row.tax_micros,
                "taxes": parts[row.id],
            }
