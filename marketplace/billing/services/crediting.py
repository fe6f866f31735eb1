"""Credit notes: what is given back of a finalised invoice, by line, with the tax that belongs to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import Sum

from marketplace.accounts.models import Organization
from marketplace.accounts.organization_clocks import billing_now
from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.amounts import credited_part, credited_total
from marketplace.billing.models import (
    CreditNote,
    CreditNoteLine,
    CreditNoteTax,
    Invoice,
    InvoiceLine,
    InvoiceLineTax,
)
from marketplace.billing.printing.content import content_of_credit_note, digest_of_content
from marketplace.billing.services.invoice_money import Ledger
from marketplace.billing.services.invoice_payments import (
    lower_limits,
    pay_debts,
    settle_if_nothing_is_due,
)
from marketplace.billing.services.lifecycle import UNISSUED, Status, outstanding
from marketplace.billing.services.numbers import next_number, series_of
from marketplace.billing.services.parties import party
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.webhooks.services import record_event
from pricing.units import format_micros, micros_per_minor_unit

SERIES: Final = "TC"


@dataclass(slots=True)
class _Left:
    """A line and what notes have credited of it so far."""

    line: InvoiceLine
    net: int
    credited_net: int = 0
    taxes: list[InvoiceLineTax] = field(default_factory=list)
    credited_taxes: dict[UUID, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.net - self.credited_net

    @property
    def is_done(self) -> bool:
        """A line of no amount may still bear a levy, so taxes count too."""
        return not self.left and all(
            tax.tax_micros == self.credited_taxes.get(tax.tax_id, 0) for tax in self.taxes
        )


@transaction.atomic
def issue_credit_note(
    *,
    invoice_id: UUID,
    amounts_micros: Mapping[UUID, int] | None,
    reason: str,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> CreditNote:
    """Credit net amounts by invoice line, or with None all that is left; the tax follows from them.

    What is still due on the invoice goes first, the rest to the buyer's prepaid balance; the operator's money, the tax
    account and the rounding account give it. Providers keep what they earned: what was metered wrongly is an
    adjustment. The same operation again returns the first note. Raises NotFound, InvalidInput (reason,
    lines), Conflict (a void invoice, nothing left).
    """
    note_id = _note_id(operation_id)
    # The invoice's row is the lock: what is left of it is read behind it.
    invoice = Invoice.objects.select_for_update().filter(pk=invoice_id).exclude(status__in=UNISSUED).first()
    if invoice is None:
        raise NotFound("There is no such invoice.")
    kept = CreditNote.objects.filter(pk=note_id).first()
    if kept is not None:
        if kept.invoice_id != invoice_id or kept.reason != reason.strip():
            raise Conflict("this operation was done with other terms")
        return kept
    if invoice.status == Status.VOID:
        raise Conflict("a void invoice is not credited")
    if not reason.strip():
        raise InvalidInput("say why", field="reason")
    now = billing_now(invoice.organization_id, now)
    lines = _what_is_left(invoice)
    wanted = _wanted(lines, amounts_micros)
    note_lines, note_taxes = _parts(note_id, lines, wanted)
    is_whole = all(line.is_done or line.left == wanted.get(key) for key, line in lines.items())
    before = CreditNote.objects.filter(invoice=invoice).aggregate(
        net=Sum("net_micros"), tax=Sum("tax_micros"), total=Sum("total_micros")
    )
    net = sum(line.net_micros for line in note_lines)
    tax = sum(line.tax_micros for line in note_lines)
    total = credited_total(
        (before["net"] or 0) + net + (before["tax"] or 0) + tax,
        total=invoice.total_micros,
        minor=micros_per_minor_unit(invoice.currency),
        is_whole=is_whole,
    ) - (before["total"] or 0)
    if total <= 0 and not is_whole:
        least = format_micros(micros_per_minor_unit(invoice.currency), invoice.currency)
        raise InvalidInput(f"comes to less than {least} {invoice.currency}", field="lines")
    buyer = Organization.objects.get(pk=invoice.organization_id)
    issuer = Organization.objects.get(pk=invoice.issuer_id)
    note = CreditNote(
        id=note_id,
        invoice=invoice,
        organization=buyer,
        number=next_number(issuer_id=issuer.id, series=series_of(SERIES, buyer.id, now=now)),
        currency=invoice.currency,
        parties={"buyer": party(buyer), "issuer": party(issuer)},
        reason=reason.strip(),
        net_micros=net,
        tax_micros=tax,
        rounding_micros=net + tax - total,
        total_micros=total,
        due_micros=min(total, outstanding(invoice)),
        created_at=now,
    )
    content = content_of_credit_note(note, invoice, note_lines, taxes_by_title(note_taxes))
    note.content_sha256 = digest_of_content(content)
    note.save(force_insert=True)
    CreditNoteLine.objects.bulk_create(note_lines)
    CreditNoteTax.objects.bulk_create(note_taxes)
    _give_back(invoice, note, now=now)
    settle_if_nothing_is_due(invoice, reason=f"credit note {note.number}", now=now)
    record_event(
        organization_id=buyer.id,
        event_type="credit_note.issued",
        fact_id=note.id,
        data={
            "credit_note_id": str(note.id),
            "number": note.number,
            "invoice_id": str(invoice.id),
            "currency": note.currency,
            "total_micros": total,
            "due_micros": note.due_micros,
        },
        now=now,
    )
    record_audit(
        organization_id=buyer.id,
        actor=actor,
        action="credit_note.issued",
        object_kind="credit_note",
        object_id=note.id,
        detail={"number": note.number, "invoice": invoice.number, "total_micros": total},
        now=now,
    )
    return note


def note_of_operation(operation_id: UUID) -> CreditNote | None:
    """The note that this operation has issued, if it has."""
    return CreditNote.objects.filter(pk=_note_id(operation_id)).first()


def _note_id(operation_id: UUID) -> UUID:
    return derived_id(operation_id, "credit_note")


def net_left(invoice: Invoice) -> dict[UUID, int]:
    """What notes have left of each line's net amount, in the order of the lines; empty where all is credited."""
    lines = _what_is_left(invoice)
    return (
        {}
        if all(line.is_done for line in lines.values())
        else {key: line.left for key, line in lines.items()}
    )


def spread_over_lines(invoice: Invoice, amount_micros: int) -> dict[UUID, int]:
    """A net amount taken from the lines in their order, as far as each has some left; lines that are credits themselves
    give none. Raises InvalidInput (amount_micros) for more than what is left of the invoice.
    """
    left = net_left(invoice)
    whole = max(0, sum(left.values()))
    if not 0 < amount_micros <= whole:
        shown = format_micros(whole, invoice.currency)
        raise InvalidInput(
            f"must be above zero and at most the {shown} {invoice.currency} that are left without tax",
            field="amount_micros",
        )
    taken: dict[UUID, int] = {}
    for key, amount in left.items():
        part = min(max(0, amount), amount_micros - sum(taken.values()))
        if part:
            taken[key] = part
    return taken


def taxes_by_title(taxes: Sequence[CreditNoteTax]) -> dict[str, int]:
    """What a note gives back of each tax, in the order of the invoice."""
    found: dict[tuple[int, str], int] = defaultdict(int)
    for tax in taxes:
        found[tax.tax.number, tax.tax.title] += tax.tax_micros
    return {title: amount for (_, title), amount in sorted(found.items())}


def _what_is_left(invoice: Invoice) -> dict[UUID, _Left]:
    lines = {
        line.id: _Left(line, line.amount_micros - line.discount_micros)
        for line in InvoiceLine.objects.filter(invoice=invoice).order_by("number")
    }
    for tax in InvoiceLineTax.objects.filter(line__invoice=invoice).select_related("tax"):
        lines[tax.line_id].taxes.append(tax)
    credited = CreditNoteLine.objects.filter(note__invoice=invoice).values_list("line_id", "net_micros")
    for line_id, net in credited:
        lines[line_id].credited_net += net
    taxes = CreditNoteTax.objects.filter(line__note__invoice=invoice)
    for line_id, tax_id, amount in taxes.values_list("line__line_id", "tax_id", "tax_micros"):
        so_far = lines[line_id].credited_taxes
        so_far[tax_id] = so_far.get(tax_id, 0) + amount
    return lines


def _wanted(lines: Mapping[UUID, _Left], amounts: Mapping[UUID, int] | None) -> dict[UUID, int]:
    if amounts is None:
        wanted = {key: line.left for key, line in lines.items() if not line.is_done}
    else:
        wanted = dict(amounts)
        for key, amount in wanted.items():
            if key not in lines:
                raise InvalidInput("names no line of this invoice", field="lines")
            left = lines[key].left
            is_levy_alone = amount == left == 0 and not lines[key].is_done
            if not is_levy_alone and (amount == 0 or not min(0, left) <= amount <= max(0, left)):
                raise InvalidInput(
                    f"of line {lines[key].line.number} there are {left} micros left to credit",
                    field="lines",
                )
    if not wanted:
        raise Conflict("all of this invoice has been credited")
    return wanted


def _parts(
    note_id: UUID, lines: Mapping[UUID, _Left], wanted: Mapping[UUID, int]
) -> tuple[list[CreditNoteLine], list[CreditNoteTax]]:
    note_lines, note_taxes = [], []
    for key, net in sorted(wanted.items(), key=lambda item: lines[item[0]].line.number):
        left = lines[key]
        row = CreditNoteLine(
            id=derived_id(note_id, f"line:{left.line.number:06d}"),
            note_id=note_id,
            line=left.line,
            net_micros=net,
            tax_micros=0,
        )
        for tax in left.taxes:
            after = credited_part(tax.tax_micros, credited=left.credited_net + net, of=left.net)
            part = after - left.credited_taxes.get(tax.tax_id, 0)
            row.tax_micros += part
            note_taxes.append(
                CreditNoteTax(id=derived_id(row.id, str(tax.tax_id)), line=row, tax=tax.tax, tax_micros=part)
            )
        note_lines.append(row)
    return note_lines, note_taxes


def _give_back(invoice: Invoice, note: CreditNote, *, now: datetime) -> None:
    """One call moves it all: the operator, the tax account and rounding to what is due and to the balance."""
    ledger = Ledger(invoice, now, reference_id=note.id)
    prepaid = ledger.of_buyer(AccountKind.PREPAID)
    parts = (
        ("net", ledger.of_issuer(AccountKind.OPERATOR), note.net_micros),
        ("tax", ledger.of_issuer(AccountKind.TAX), note.tax_micros),
        ("rounding", ledger.of_issuer(AccountKind.ROUNDING), -note.rounding_micros),
    )
    for name, source, amount in parts:
        ledger.move(
            derived_id(note.id, name), debit=source, credit=prepaid, amount=amount, code="credit_note"
        )
    if note.due_micros:
        pay_debts(ledger, note.id, source=prepaid, amount=note.due_micros, code="credit_note", name="due")
    ledger.post()
    lower_limits(invoice, now=now)
