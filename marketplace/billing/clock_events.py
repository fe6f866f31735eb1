"""What happened to an organization on its way: read from what billing and contracts have written, by its own dates.

Nothing of it is kept a second time, so a walk that dies between two steps cannot lose or double a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db.models import Q

from marketplace.billing.models import (
    Charge,
    CreditNote,
    DunningStep,
    InvoicePayment,
    InvoiceStatusChange,
    MonthOutcome,
    Payout,
    PayoutDestinationChange,
    Statement,
    TopUp,
)
from marketplace.contracts.models import ContractEvent
from marketplace.ledger.grants import grants_of

MOST_EVENTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class ClockEvent:
    """One thing that happened, at the organization's own time; `detail` in the words of the object's own resource."""

    at: datetime
    kind: str
    object_kind: str
    object_id: UUID
    detail: dict[str, Any]


def events_between(organization_id: UUID, *, since: datetime, until: datetime) -> list[ClockEvent]:
    """What happened in `[since, until]`, oldest first, 1,000 at most: those of the start where there are more."""
    found = sorted(
        _events(organization_id, since, until), key=lambda one: (one.at, one.kind, str(one.object_id))
    )
    return found[:MOST_EVENTS]


def _events(organization_id: UUID, since: datetime, until: datetime) -> Iterator[ClockEvent]:
    yield from _of_contracts(organization_id, since, until)
    yield from _of_invoices(organization_id, since, until)
    made = {"created_at__gte": since, "created_at__lte": until}
    for top_up in TopUp.objects.filter(organization_id=organization_id, **made).order_by("created_at")[
        :MOST_EVENTS
    ]:
        detail = {"amount_micros": top_up.amount_micros, "status": top_up.status}
        yield ClockEvent(top_up.created_at, "top_up", "top_up", top_up.id, detail)
    for grant in grants_of(organization_id).filter(
        status="expired", ended_at__gte=since, ended_at__lte=until
    )[:MOST_EVENTS]:
        assert grant.ended_at is not None
        yield ClockEvent(grant.ended_at, "grant_expired", "grant", grant.id, {})
    statements = Statement.objects.filter(organization_id=organization_id, **made).order_by("created_at")
    for statement in statements[:MOST_EVENTS]:
        detail = {"number": statement.number, "net_micros": statement.net_micros}
        yield ClockEvent(statement.created_at, "statement_issued", "statement", statement.id, detail)
    payouts = Payout.objects.filter(organization_id=organization_id, **made).order_by("created_at")
    for payout in payouts[:MOST_EVENTS]:
        detail = {"amount_micros": payout.amount_micros, "status": payout.status}
        yield ClockEvent(payout.created_at, "payout", "payout", payout.id, detail)
    changes = PayoutDestinationChange.objects.filter(
        organization_id=organization_id, status="applied", ended_at__gte=since, ended_at__lte=until
    )
    for change in changes.order_by("ended_at")[:MOST_EVENTS]:
        assert change.ended_at is not None
        yield ClockEvent(
            change.ended_at, "payout_destination_applied", "payout_destination_change", change.id, {}
        )


def _of_contracts(organization_id: UUID, since: datetime, until: datetime) -> Iterator[ClockEvent]:
    history = ContractEvent.objects.filter(
        contract__organization_id=organization_id, occurred_at__gte=since, occurred_at__lte=until
    )
    for event in history.order_by("occurred_at")[:MOST_EVENTS]:
        yield ClockEvent(
            event.occurred_at,
            f"contract_{event.kind}",
            "contract",
            event.contract_id,
            {"reason": event.reason},
        )
    # What the hours come to is charged in real time; this is what months and early ends are charged.
    charges = Charge.objects.filter(
        ~Q(amount_micros=0),
        organization_id=organization_id,
        settlement__isnull=True,
        created_at__gte=since,
        created_at__lte=until,
    )
    for charge in charges.order_by("created_at")[:MOST_EVENTS]:
        detail = {
            "contract_id": str(charge.contract_id),
            "charge_kind": charge.kind,
            "period_start": _text(charge.period_start),
            "amount_micros": charge.amount_micros,
        }
        yield ClockEvent(charge.created_at, "month_charged", "charge", charge.id, detail)
    outcomes = MonthOutcome.objects.filter(
        contract__organization_id=organization_id, created_at__gte=since, created_at__lte=until
    )
    for outcome in outcomes.select_related("entitlement").order_by("created_at")[:MOST_EVENTS]:
        detail = {
            "month_start": _text(outcome.entitlement.period_start),
            "run": outcome.run,
            "true_up_numerator": str(outcome.true_up_numerator),
            "rolled_over_numerator": str(outcome.rolled_over_numerator),
            "charged_micros": outcome.charged_micros,
            "refunded_micros": outcome.refunded_micros,
        }
        yield ClockEvent(outcome.created_at, "month_squared_up", "contract", outcome.contract_id, detail)


def _of_invoices(organization_id: UUID, since: datetime, until: datetime) -> Iterator[ClockEvent]:
    made = {"created_at__gte": since, "created_at__lte": until}
    steps = InvoiceStatusChange.objects.filter(invoice__organization_id=organization_id, **made)
    for step in steps.select_related("invoice").order_by("created_at", "id")[:MOST_EVENTS]:
        detail = {"number": step.invoice.number, "amount_due_micros": step.invoice.amount_due_micros}
        yield ClockEvent(step.created_at, f"invoice_{step.to_status}", "invoice", step.invoice_id, detail)
    dunning = DunningStep.objects.filter(organization_id=organization_id, **made)
    for done in dunning.select_related("invoice").order_by("created_at")[:MOST_EVENTS]:
        detail = {"number": done.invoice.number, "step": done.step, "amount_micros": done.amount_micros}
        yield ClockEvent(done.created_at, "dunning", "invoice", done.invoice_id, detail)
    payments = InvoicePayment.objects.filter(organization_id=organization_id, **made)
    for payment in payments.order_by("created_at")[:MOST_EVENTS]:
        detail = {
            "invoice_id": str(payment.invoice_id),
            "amount_micros": payment.amount_micros,
            "status": payment.status,
        }
        yield ClockEvent(payment.created_at, "invoice_payment", "invoice_payment", payment.id, detail)
    notes = CreditNote.objects.filter(organization_id=organization_id, **made)
    for note in notes.order_by("created_at")[:MOST_EVENTS]:
        detail = {"number": note.number, "total_micros": note.total_micros}
        yield ClockEvent(note.created_at, "credit_note_issued", "credit_note", note.id, detail)


def _text(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
