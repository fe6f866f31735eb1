"""The operator's invoices: anybody's, what was credited of them, credit notes and reissues; and the trail of it all."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.selectors import trail_of
from marketplace.billing.models import CreditNote, Invoice, InvoicePayment
from marketplace.billing.operator_selectors import issued_invoice, issued_invoices
from marketplace.billing.services.crediting import (
    issue_credit_note,
    net_left,
    note_of_operation,
    spread_over_lines,
)
from marketplace.billing.services.invoicing import reissue_invoice
from marketplace.billing.services.lifecycle import outstanding
from marketplace.billing.services.rehearsing import carry_out, rehearse
from marketplace.errors import Conflict
from marketplace.portal import figures
from marketplace.portal.access import SeatedRequest, actor_of, page
from marketplace.portal.billing_forms import CreditForm, InvoiceFilterForm, ReissueForm
from marketplace.portal.paging import page_of
from marketplace.portal.steps import Look, done, in_two_steps, trail

KINDS: Final = ("invoice", "credit_note", "tax_rule", "discount", "grant", "ledger_account", "top_up")
_REISSUABLE: Final = (Invoice.Status.FINALISED, Invoice.Status.OVERDUE, Invoice.Status.PAID)


@require_safe
@page(OrganizationRole.OPERATOR)
def invoices(request: SeatedRequest) -> HttpResponse:
    form = InvoiceFilterForm({"named": "", "status": "", **request.GET.dict()})
    wanted = form.cleaned_data if form.is_valid() else {}
    listed = page_of(issued_invoices(named=wanted.get("named", ""), status=wanted.get("status", "")), request)
    context = {"invoices": listed, "form": form, "wanted": any(wanted.values())}
    return render(request, "portal/billing_invoices.html", context, status=200 if form.is_valid() else 422)


@require_safe
@page(OrganizationRole.OPERATOR)
def invoice(request: SeatedRequest, invoice_id: UUID) -> HttpResponse:
    found = issued_invoice(invoice_id)
    notes = list(found.credit_notes.order_by("number"))
    left = net_left(found)
    context = {
        "invoice": found,
        "outstanding": outstanding(found),
        "lines": [(line, left.get(line.id, 0)) for line in found.lines.all()],
        "notes": notes,
        "payments": list(found.payments.order_by("-created_at", "-id")),
        "may_credit": found.status != Invoice.Status.VOID and bool(left),
        "may_reissue": _may_reissue(found, notes),
        "replaced_by": getattr(found, "replaced_by", None),
        "trail": trail(("invoice", "credit_note"), [found.id, *(note.id for note in notes)]),
    }
    return render(request, "portal/billing_invoice.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.OPERATOR, manage=True)
def credit(request: SeatedRequest, invoice_id: UUID) -> HttpResponse:
    found = issued_invoice(invoice_id)
    left = net_left(found)
    lines = [(line, left.get(line.id, 0)) for line in found.lines.all()]
    form = CreditForm(
        request.POST if request.method == "POST" else None,
        lines=[(line.number, line.id, amount) for line, amount in lines if amount],
    )

    def issue() -> CreditNote:
        if note_of_operation(form.operation_id(request.seat.organization.id)) is not None:
            raise Conflict("this form has issued a credit note before")
        data = form.cleaned_data
        amounts = None
        if data["what"] == "amount":
            amounts = spread_over_lines(found, data["amount"])
        elif data["what"] == "lines":
            amounts = form.amounts_by_line()
        return issue_credit_note(
            invoice_id=invoice_id,
            amounts_micros=amounts,
            reason=data["reason"],
            operation_id=form.operation_id(request.seat.organization.id),
            now=clock.now(),
            actor=actor_of(request),
        )

    def look() -> Look:
        return rehearse(issue, lambda note: _look_at_note(found, note))

    def do(shown: str) -> HttpResponse:
        # A second click on the same button finds what the first one did.
        note = note_of_operation(form.operation_id(request.seat.organization.id))
        if note is None or _figures(note) != shown:
            note = carry_out(issue, _figures, shown=shown)
        messages.success(request, f"Credit note {note.number} is issued.")
        return redirect("operator-billing-invoice", invoice_id)

    back = reverse("operator-billing-invoice", args=[invoice_id])
    answer = in_two_steps(request, form, look=look, do=do, back=back)
    if answer is not None:
        return answer
    context = {
        "invoice": found,
        "form": form,
        "rows": [(line, amount, form.line(line.number)) for line, amount in lines],
        "is_left": bool(left),
        "left_micros": sum(left.values()),
    }
    return render(request, "portal/billing_credit.html", context, status=422 if form.is_bound else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@page(OrganizationRole.OPERATOR, manage=True)
def reissue(request: SeatedRequest, invoice_id: UUID) -> HttpResponse:
    found = issued_invoice(invoice_id)
    replaced_by = getattr(found, "replaced_by", None)
    if request.method == "POST" and replaced_by is not None:
        # A second click on the same button.
        messages.info(request, f"It was voided before; invoice {replaced_by.number} stands for it.")
        return redirect("operator-billing-invoice", replaced_by.id)
    form = ReissueForm(request.POST if request.method == "POST" else None)

    def issue() -> Invoice:
        return reissue_invoice(
            invoice_id=invoice_id,
            reason=form.cleaned_data["reason"],
            now=clock.now(),
            actor=actor_of(request),
        )

    def look() -> Look:
        return rehearse(issue, lambda new: _look_at_reissue(found, new))

    def do(shown: str) -> HttpResponse:
        new = carry_out(issue, _figures_of_invoice, shown=shown)
        messages.success(request, f"{found.number} is void; invoice {new.number} stands for it.")
        return redirect("operator-billing-invoice", new.id)

    back = reverse("operator-billing-invoice", args=[invoice_id])
    answer = in_two_steps(request, form, look=look, do=do, back=back)
    if answer is not None:
        return answer
    context = {
        "invoice": found,
        "form": form,
        "may_reissue": _may_reissue(found, list(found.credit_notes.all())),
    }
    return render(request, "portal/billing_reissue.html", context, status=422 if form.is_bound else 200)


@require_safe
@page(OrganizationRole.OPERATOR)
def whole_trail(request: SeatedRequest) -> HttpResponse:
    listed = page_of(trail_of(KINDS), request)
    return render(
        request, "portal/billing_trail.html", {"trail": done(listed.rows), "listed": listed, "kinds": KINDS}
    )


def _may_reissue(found: Invoice, notes: list[CreditNote]) -> bool:
    """Whether it is worth trying; the service decides."""
    # One that failed moved nothing.
    paid = found.payments.exclude(status=InvoicePayment.Status.FAILED)
    return found.status in _REISSUABLE and not notes and not paid.exists()


def _figures(note: CreditNote) -> str:
    return f"{note.net_micros}:{note.tax_micros}:{note.total_micros}:{note.due_micros}"


def _look_at_note(found: Invoice, note: CreditNote) -> Look:
    def money(micros: int) -> str:
        return figures.money(micros, note.currency)

    rows = [
        (f"{row.line.number}. {row.line.description}", money(row.net_micros))
        for row in note.lines.select_related("line").order_by("line__number")
    ]
    totals = [("Net", money(note.net_micros)), ("Tax", money(note.tax_micros))]
    if note.rounding_micros:
        totals.append(("Below whole minor units", money(-note.rounding_micros)))
    totals += [
        ("Taken off what is due", money(note.due_micros)),
        ("To the buyer's balance", money(note.total_micros - note.due_micros)),
        ("Credited", money(note.total_micros)),
    ]
    return Look(
        title=f"Credit invoice {found.number}",
        lead=f"{found.organization.name}. Reason on the note: {note.reason}",
        rows=rows,
        totals=totals,
        warning="A credit note cannot be taken back. Providers keep what they earned.",
        button="Issue the credit note",
        shown=_figures(note),
    )


def _figures_of_invoice(new: Invoice) -> str:
    parts = (
        new.subtotal_micros,
        new.discount_micros,
        new.tax_micros,
        new.total_micros,
        new.amount_due_micros,
    )
    return ":".join(map(str, parts))


def _look_at_reissue(old: Invoice, new: Invoice) -> Look:
    def both(name: str) -> str:
        before, after = getattr(old, name), getattr(new, name)
        shown = figures.money(after, new.currency)
        return shown if before == after else f"{figures.money(before, old.currency)} → {shown}"

    buyer = new.parties["buyer"]
    return Look(
        title=f"Void {old.number} and issue it anew",
        lead=f"In the name of {buyer.get('legal_name') or buyer.get('name') or old.organization.name}, with the "
        "tax rules and discounts as they are now.",
        rows=[
            ("Subtotal", both("subtotal_micros")),
            ("Discounts", both("discount_micros")),
            ("Tax", both("tax_micros")),
            ("Paid from the prepaid balance", both("prepaid_micros")),
        ],
        totals=[("Total", both("total_micros")), ("Due", both("amount_due_micros"))],
        warning=f"{old.number} becomes void and keeps its number. This cannot be taken back.",
        button="Void and reissue",
        shown=_figures_of_invoice(new),
    )
