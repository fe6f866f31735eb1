"""What happens to an invoice that nobody pays: overdue, reminders, purchases closed, given up; and open again."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.models import Organization
from marketplace.accounts.organization_clocks import keeping
from marketplace.accounts.services import SYSTEM, set_past_due
from marketplace.billing.models import DunningStep, Invoice
from marketplace.billing.services.invoice_payments import settle_if_nothing_is_due
from marketplace.billing.services.lifecycle import Status, move_invoice, outstanding, tell_of_reminder
from marketplace.billing.services.small_dues import chased_from
from marketplace.contracts.events import tell_of_contracts
from marketplace.contracts.models import Contract, ContractKind
from marketplace.ids import derived_id
from marketplace.isolating import for_each
from marketplace.webhooks.services import record_event

logger = logging.getLogger(__name__)

SUSPENSION: Final = "suspension"
_CHASED: Final = (Status.FINALISED, Status.ACTION_REQUIRED, Status.OVERDUE)


def advance_dunning(*, now: datetime, organization_id: UUID | None = None) -> list[DunningStep]:
    """Take every step that is due on every invoice, each once; what was done. Again does nothing more.

    Days count from the due date: DUNNING_REMINDER_DAYS, then DUNNING_SUSPEND_DAYS closes purchases and on-demand
    delivery (what was bought before goes on being delivered), DUNNING_UNCOLLECTIBLE_DAYS gives the invoice up. When
    nothing that long overdue is left, purchases are open again. A due that no card is charged for is carried: none of
    this befalls it until, with others, it is large enough. Of organizations that keep real time, or of one.
    """
    done: list[DunningStep] = []
    strict = organization_id is not None
    chased = keeping(Invoice.objects.all(), organization_id).filter(
        status__in=_CHASED, amount_due_micros__gt=0, due_at__lte=now
    )
    for_each(
        "billing.dun",
        list(chased.order_by("due_at", "id").values_list("id", flat=True)),
        lambda each: done.extend(_chase(each, now)),
        key=str,
        now=now,
        strict=strict,
    )
    closed = keeping(Organization.objects.all(), organization_id, field="id").filter(
        status=Organization.Status.PAST_DUE
    )
    for_each(
        "billing.resume",
        list(closed.values_list("id", flat=True)),
        lambda each: resume_if_paid(organization_id=each, now=now),
        key=str,
        now=now,
        strict=strict,
    )
    return done


@transaction.atomic
def resume_if_paid(*, organization_id: UUID, now: datetime) -> bool:
    """Open purchases again where no invoice for which they were closed has anything outstanding."""
    closed_for = Invoice.objects.filter(organization_id=organization_id, dunning__step=SUSPENSION)
    # What no card is charged for keeps nobody from buying.
    if any(outstanding(invoice) and chased_from(invoice) is not None for invoice in closed_for):
        return False
    if not set_past_due(organization_id=organization_id, is_past_due=False, now=now, actor=SYSTEM):
        return False
    _tell("organization.active", organization_id, now=now)
    _move_on_demand(organization_id, before=Contract.Status.SUSPENDED, after=Contract.Status.ACTIVE, now=now)
    return True


@transaction.atomic
def _chase(invoice_id: UUID, now: datetime) -> list[DunningStep]:
    invoice = Invoice.objects.select_for_update().get(pk=invoice_id)
    if invoice.status not in _CHASED or invoice.due_at is None:
        return []
    if settle_if_nothing_is_due(invoice, reason="nothing is due", now=now):
        return []
    due_at = chased_from(invoice)
    if due_at is None or now < due_at:
        return []
    move_invoice(
        invoice_id=invoice.id,
        expected=[Status.FINALISED, Status.ACTION_REQUIRED],
        to=Status.OVERDUE,
        now=now,
        reason="past its due date",
    )
    late = now - due_at
    done = [
        step
        for days in sorted(settings.DUNNING_REMINDER_DAYS)
        if late >= timedelta(days=days) and (step := _record(invoice, f"reminder:{days}", now))
    ]
    if done:
        # Where nobody has looked for days, they are recorded together and told as one.
        tell_of_reminder(invoice, done[-1], due_at=due_at, now=now)
    if late >= timedelta(days=settings.DUNNING_SUSPEND_DAYS):
        if step := _record(invoice, SUSPENSION, now):
            done.append(step)
        # Not by the step alone: a payment that a bank took back makes an invoice due again that had its steps.
        if set_past_due(organization_id=invoice.organization_id, is_past_due=True, now=now, actor=SYSTEM):
            _tell("organization.past_due", invoice.organization_id, now=now, invoice_id=str(invoice.id))
            _move_on_demand(
                invoice.organization_id,
                before=Contract.Status.ACTIVE,
                after=Contract.Status.SUSPENDED,
                now=now,
            )
    if late >= timedelta(days=settings.DUNNING_UNCOLLECTIBLE_DAYS):
        move_invoice(
            invoice_id=invoice.id,
            expected=[Status.OVERDUE],
            to=Status.UNCOLLECTIBLE,
            now=now,
            reason=f"not paid in {settings.DUNNING_UNCOLLECTIBLE_DAYS} days",
        )
    return done


def _tell(event_type: str, organization_id: UUID, *, now: datetime, **names: str) -> None:
    """Behind the compare-and-set of the organization's status: one fact for each time that it moves."""
    record_event(
        organization_id=organization_id,
        event_type=event_type,
        fact_id=derived_id(organization_id, f"{event_type}:{now.isoformat()}"),
        data={"organization_id": str(organization_id)} | names,
        now=now,
    )


def _record(invoice: Invoice, step: str, now: datetime) -> DunningStep | None:
    """The step if it is new. Behind the invoice's row lock, so nobody takes it twice."""
    if DunningStep.objects.filter(invoice=invoice, step=step).exists():
        return None
    made = DunningStep.objects.create(
        id=derived_id(invoice.id, step),
        invoice=invoice,
        organization_id=invoice.organization_id,
        step=step,
        amount_micros=outstanding(invoice),
        created_at=now,
    )
    logger.warning("invoice overdue", extra={"invoice": invoice.number, "step": step})
    return made


def _move_on_demand(
    organization_id: UUID, *, before: Contract.Status, after: Contract.Status, now: datetime
) -> None:
    """On-demand contracts follow the organization; new ones begin as it stands (a trigger), also in the gateway."""
    moved = list(
        Contract.objects.select_for_update(no_key=True)
        .filter(organization_id=organization_id, kind=ContractKind.ON_DEMAND, status=before)
        .order_by("id")
        .values_list("id", flat=True)
    )
    Contract.objects.filter(pk__in=moved).update(status=after)
    reason = "past_due" if after == Contract.Status.SUSPENDED else "paid"
    tell_of_contracts(moved, status=after, reason=reason, now=now)
