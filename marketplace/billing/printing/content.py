"""What a document says, word for word, as plain data: what its digest is of and what the template prints.

Only texts: amounts are written here once, so that the template computes nothing. A changed word of the template's
language belongs into a new FORM, or documents issued before would no longer print as they were issued.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from marketplace.billing.models import (
    CreditNote,
    CreditNoteLine,
    Invoice,
    InvoiceDiscount,
    InvoiceLine,
    InvoiceTax,
    Statement,
    StatementLine,
)
from pricing.units import decimal_string, format_micros

FORM: Final = 1
_STANDARD_TOKEN: Final = 6
REVERSE_CHARGE: Final = "Reverse charge: the recipient is liable for the tax."
NO_IDENTITY: Final = "Issued to the name of the organization: no legal name and address were given."
Content = dict[str, Any]


def digest_of_content(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(json_of(content).encode()).hexdigest()


def json_of(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def content_of_invoice(
    invoice: Invoice,
    lines: Sequence[InvoiceLine],
    taxes: Sequence[InvoiceTax],
    discounts: Iterable[InvoiceDiscount],
) -> Content:
    """An invoice as it was finalised; what happened to it since is not on it."""
    assert invoice.finalised_at is not None
    assert invoice.due_at is not None
    money = _Money(invoice.currency)
    facts = [
        ("Invoice number", invoice.number or ""),
        ("Issued", _day(invoice.finalised_at)),
        ("Month", f"{invoice.period_start:%B %Y}"),
    ]
    facts.append(("Due", _day(invoice.due_at) if invoice.amount_due_micros > 0 else "nothing due"))
    if invoice.replaces is not None:
        facts.append(("Replaces", f"{invoice.replaces.number} (void)"))
    foot = [("Subtotal", money(invoice.subtotal_micros), "")]
    foot += [(discount.title, money(-discount.amount_micros), "") for discount in discounts]
    foot += [_tax_row(tax, money) for tax in taxes]
    if invoice.rounding_micros:
        foot.append(("Rounded in your favour", money(-invoice.rounding_micros), ""))
    foot.append(("Total", money(invoice.total_micros), "total"))
    foot.append(("Paid from the prepaid balance", money(-invoice.prepaid_micros), ""))
    foot.append(("Amount due", money(invoice.amount_due_micros), "due"))
    notes = [REVERSE_CHARGE] if any(tax.reverse_charge for tax in taxes) else []
    if any(line.estimated_numerator > 0 for line in lines):
        notes.append("Lines marked * contain volume that was estimated; later counts are adjusted.")
    return _document(
        title="Invoice",
        number=invoice.number or "",
        currency=invoice.currency,
        left=("From", invoice.parties["issuer"]),
        right=("Bill to", invoice.parties["buyer"]),
        facts=facts,
        columns=("Description", "Standard tokens", f"Amount, {invoice.currency}"),
        rows=[
            (
                line.description + (" *" if line.estimated_numerator > 0 else ""),
                _days(line.period_start, line.period_end),
                _volume(line.numerator),
                money(line.amount_micros),
            )
            for line in lines
        ],
        foot=foot,
        notes=notes,
        at=invoice.finalised_at,
    )


def content_of_credit_note(
    note: CreditNote, invoice: Invoice, lines: Sequence[CreditNoteLine], taxes: Mapping[str, int]
) -> Content:
    """`taxes` by title: what the note gives back of each."""
    money = _Money(note.currency)
    foot = [("Subtotal", money(note.net_micros), "")]
    foot += [(title, money(amount), "") for title, amount in taxes.items()]
    if note.rounding_micros:
        foot.append(("Rounding", money(-note.rounding_micros), ""))
    foot.append(("Total credited", money(note.total_micros), "total"))
    foot.append(("Off the amount due", money(note.due_micros), ""))
    foot.append(("To the prepaid balance", money(note.total_micros - note.due_micros), "due"))
    return _document(
        title="Credit note",
        number=note.number,
        currency=note.currency,
        left=("From", note.parties["issuer"]),
        right=("Credit to", note.parties["buyer"]),
        facts=[
            ("Credit note number", note.number),
            ("Issued", _day(note.created_at)),
            ("For invoice", invoice.number or ""),
            ("Reason", note.reason),
        ],
        columns=("Description", "Tax", f"Net amount, {note.currency}"),
        rows=[
            (
                line.line.description,
                f"Line {line.line.number} of {invoice.number}",
                money(line.tax_micros),
                money(line.net_micros),
            )
            for line in lines
        ],
        foot=foot,
        notes=[],
        at=note.created_at,
    )


def content_of_statement(statement: Statement, lines: Sequence[StatementLine]) -> Content:
    money = _Money(statement.currency)
    consent = (
        f"Self-billed with the provider's consent of {_day(statement.consented_at)}."
        if statement.consented_at
        else "The provider has not consented to self-billing: this states what was earned and is no invoice."
    )
    return _document(
        title="Provider statement",
        number=statement.number,
        currency=statement.currency,
        left=("Provider", statement.parties["provider"]),
        right=("Market", statement.parties["issuer"]),
        facts=[
            ("Statement number", statement.number),
            ("Issued", _day(statement.created_at)),
            ("Month", f"{statement.period_start:%B %Y}"),
            *_payable(statement, money),
        ],
        columns=("Description", "Standard tokens", f"Gross, {statement.currency}"),
        rows=[
            (
                line.description,
                f"Fee {money(line.fee_micros)}",
                _volume(line.numerator),
                money(line.gross_micros),
            )
            for line in lines
        ],
        foot=[
            ("Gross", money(statement.gross_micros), ""),
            ("Market fee", money(-statement.fee_micros), ""),
            ("Net", money(statement.net_micros), "due"),
            *_account(statement, money),
        ],
        notes=[consent],
        at=statement.created_at,
    )


def _account(statement: Statement, money: _Money) -> list[tuple[str, str, str]]:
    """The provider's balance since the last statement; statements of before it was kept print as they did."""
    if statement.last_transfer_number is None:
        return []
    rows = (
        ("Balance brought forward", statement.brought_forward_micros),
        ("Earned", statement.posted_earned_micros),
        ("Market fee", statement.posted_fee_micros),
        ("Remedies and corrections", statement.posted_given_back_micros),
        ("To and from the bond", statement.posted_bond_micros),
        ("Disputed payments", statement.posted_dispute_micros),
        ("Paid out", statement.posted_payout_micros),
    )
    return [
        *((label, money(amount), "") for label, amount in rows),
        ("Balance carried forward", money(statement.carried_forward_micros), "due"),
    ]


def _payable(statement: Statement, money: _Money) -> list[tuple[str, str]]:
    if statement.payable_at is None:
        return []
    facts = [("Paid out from", _day(statement.payable_at))]
    if statement.retained_micros and statement.retained_until is not None:
        until = _day(statement.retained_until)
        facts.append(("Of it retained", f"{money(statement.retained_micros)} until {until}"))
    if statement.released_micros:
        facts.append(("Released of earlier months", money(statement.released_micros)))
    return facts


def _document(
    *,
    title: str,
    number: str,
    currency: str,
    left: tuple[str, Mapping[str, str]],
    right: tuple[str, Mapping[str, str]],
    facts: Sequence[tuple[str, str]],
    columns: Sequence[str],
    rows: Sequence[tuple[str, str, str, str]],
    foot: Sequence[tuple[str, str, str]],
    notes: Sequence[str],
    at: datetime,
) -> Content:
    unnamed = [NO_IDENTITY] if not _is_complete(right[1]) and title != "Provider statement" else []
    return {
        "form": FORM,
        "title": title,
        "number": number,
        "currency": currency,
        "parties": [_party(*left), _party(*right)],
        "facts": [list(fact) for fact in facts],
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "foot": [list(row) for row in foot],
        "notes": [*notes, *unnamed],
        "at": int(at.timestamp()),
    }


def _party(label: str, party: Mapping[str, str]) -> Content:
    details = [line.strip() for line in party["address"].splitlines() if line.strip()]
    if party["country"]:
        details.append(party.get("region") or party["country"])
    if party["tax_number"]:
        details.append(f"Tax number {party['tax_number']}")
    return {"label": label, "name": party["legal_name"], "details": details}


def _is_complete(party: Mapping[str, str]) -> bool:
    return bool(party["address"] and party["country"])


def _tax_row(tax: InvoiceTax, money: _Money) -> tuple[str, str, str]:
    place = f" ({tax.jurisdiction})" if tax.jurisdiction else ""
    if tax.levy_micros_per_mtok:
        what = f"{money(tax.levy_micros_per_mtok)} per Mtok on {_volume(tax.base_numerator)} from abroad"
    else:
        what = f"{decimal_string(tax.rate_ppm, 4)}% of {money(tax.base_micros)}"
    if tax.reverse_charge:
        what = "reverse charge"
    return (f"{tax.title}{place}, {what}", money(tax.tax_micros), "")


class _Money:
    """Amounts of one currency as texts, exact: at least as many decimals as the currency has."""

    def __init__(self, currency: str) -> None:
        self.currency = currency

    def __call__(self, amount_micros: int) -> str:
        text = format_micros(abs(amount_micros), self.currency)
        whole, point, decimals = text.partition(".")
        grouped = f"{int(whole):,}".replace(",", "\u202f")
        sign = "\u2212" if amount_micros < 0 else ""
        return f"{sign}{grouped}{point}{decimals}"


def _volume(numerator: int) -> str:
    whole, point, decimals = decimal_string(numerator, _STANDARD_TOKEN).partition(".")
    sign = "\u2212" if whole.startswith("-") else ""
    return f"{sign}{int(whole.lstrip('-')):,}".replace(",", "\u202f") + point + decimals


def _days(start: datetime, end: datetime) -> str:
    """The days of a half-open period, the last one included."""
    first, last = _day(start), _day(end - timedelta(microseconds=1))
    return first if first == last else f"{first} to {last}"


def _day(at: datetime) -> str:
    return f"{at.day} {at:%B %Y}"
