"""Money sent to providers, after their statement, where consent and destination are given."""

from __future__ import annotations

import logging
from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.accounts.selectors import operator_organization
from marketplace.billing.documents import whole_minor_units
from marketplace.billing.models import Payout, Statement
from marketplace.billing.processors.base import Outcome, OutcomeStatus
from marketplace.billing.processors.registry import payment_processor
from marketplace.billing.selectors import payout_blocked_reason
from marketplace.billing.services.locks import lock_until_commit
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import NewTransfer, account_id, close_hold, open_hold, post_transfers
from providers.models import Provider

logger = logging.getLogger(__name__)


def pay_out_statements(*, now: datetime) -> list[Payout]:
    """Begin the payouts of statements that have none, and ask the processor about every pending one."""
    payable = Statement.objects.filter(
        payout__isnull=True, net_micros__gt=0, organization__provider__self_billing_consent_at__isnull=False
    ).exclude(organization__provider__payout_destination="")
    for statement_id in list(payable.order_by("id").values_list("id", flat=True)):
        begin_payout(statement_id=statement_id, now=now)
    pending = Payout.objects.filter(status=Payout.Status.PENDING).order_by("id").values_list("id", flat=True)
    return [finish_payout(payout_id=payout_id, now=now) for payout_id in list(pending)]


@transaction.atomic
def begin_payout(*, statement_id: UUID, now: datetime) -> Payout | None:
    """Set a statement's net aside on the payable account, in whole minor units; the rest stays there.

    None where payouts are blocked (`payout_blocked_reason` says why), where there is nothing to send, or where it
    was begun before.
    """
    lock_until_commit(derived_id(statement_id, "payout"))
    statement = Statement.objects.get(pk=statement_id)
    if Payout.objects.filter(statement=statement).exists() or payout_blocked_reason(
        statement.organization_id
    ):
        return None
    available = balance(
        organization_id=statement.organization_id, kind=AccountKind.PAYABLE, currency=statement.currency
    ).available_micros
    amount = whole_minor_units(max(0, min(statement.net_micros, available)), statement.currency)
    if amount == 0:
        return None
    payout = Payout.objects.create(
        id=derived_id(statement.id, "payout"),
        organization_id=statement.organization_id,
        statement=statement,
        amount_micros=amount,
        currency=statement.currency,
        processor=payment_processor().name,
        created_at=now,
    )
    open_hold(
        id=_hold_id(payout),
        account_id=_payable(payout, now),
        amount_micros=amount,
        code="payout",
        reference_id=payout.id,
        now=now,
    )
    return payout


def finish_payout(*, payout_id: UUID, now: datetime) -> Payout:
    """Ask the processor, outside of any transaction of ours, and record what it said. Again asks with the same id."""
    payout = Payout.objects.get(pk=payout_id)
    if payout.status != Payout.Status.PENDING:
        return payout
    destination = Provider.objects.values_list("payout_destination", flat=True).get(
        organization_id=payout.organization_id
    )
    outcome = payment_processor().pay_out(
        movement_id=payout.id,
        destination=destination,
        amount_micros=payout.amount_micros,
        currency=payout.currency,
    )
    return _record(payout_id=payout_id, outcome=outcome, now=now)


@transaction.atomic
def _record(*, payout_id: UUID, outcome: Outcome, now: datetime) -> Payout:
    payout = Payout.objects.select_for_update().get(pk=payout_id)
    if payout.status != Payout.Status.PENDING or outcome.status == OutcomeStatus.PENDING:
        return payout
    payout.processor_reference = outcome.reference
    if outcome.status == OutcomeStatus.FAILED:
        payout.status = Payout.Status.FAILED
        close_hold(id=_hold_id(payout), status="voided", now=now)
        logger.warning("payout failed", extra={"payout_id": str(payout.id), "reason": outcome.reason})
    else:
        payout.status = Payout.Status.PAID
        processor_account = account_id(
            organization_id=operator_organization().id,
            kind=AccountKind.PROCESSOR,
            currency=payout.currency,
            now=now,
        )
        post_transfers(
            [
                NewTransfer(
                    id=derived_id(payout.id, "transfer"),
                    debit_id=_payable(payout, now),
                    credit_id=processor_account,
                    amount_micros=payout.amount_micros,
                    code="payout",
                    hold_id=_hold_id(payout),
                    reference_id=payout.id,
                )
            ],
            now=now,
        )
        close_hold(id=_hold_id(payout), status="posted", now=now)
    payout.save(update_fields=["status", "processor_reference"])
    return payout


def _hold_id(payout: Payout) -> UUID:
    return derived_id(payout.id, "hold")


def _payable(payout: Payout, now: datetime) -> UUID:
    return account_id(
        organization_id=payout.organization_id, kind=AccountKind.PAYABLE, currency=payout.currency, now=now
    )
