"""What a payment of an invoice comes to: money, the invoice's status, and what a bank takes back of it.

Below the processor's operations, which call it when they learn of an outcome, and below the service that lets a buyer
pay. Locks: the operation (where there is one), the invoice, the payment, ledger accounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from marketplace.billing.models import Invoice, InvoicePayment, ProcessorOperation
from marketplace.billing.services.invoice_money import Ledger
from marketplace.billing.services.lifecycle import OPEN, Status, move_invoice, outstanding
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.selectors import balance_of
from marketplace.ledger.services import account_id, set_overdraft_limit
from marketplace.webhooks.services import record_event

_Operation = ProcessorOperation.Status


def settle_payment(operation: ProcessorOperation, *, now: datetime) -> None:
    """Bring a payment to where its operation stands, in the transaction that records that; once, and never backwards.

    The caller holds the operation's row, which carries its new status.
    """
    invoice, payment = _locked(operation.subject_id)
    if payment.status == InvoicePayment.Status.SUCCEEDED:
        return
    # Money that came after all, of a payment that was given up, is received: the processor has it.
    if payment.status == InvoicePayment.Status.FAILED and operation.status != _Operation.SUCCEEDED:
        return
    payment.processor_reference, payment.action_url = operation.object_id, operation.action_url
    if operation.status == _Operation.ACTION_REQUIRED:
        move_invoice(
            invoice_id=invoice.id,
            expected=[Status.FINALISED, Status.OVERDUE],
            to=Status.ACTION_REQUIRED,
            now=now,
            reason=operation.reason or "the buyer has to act",
        )
        tell_action_required(
            operation, {"invoice_id": str(invoice.id), "payment_id": str(payment.id)}, now=now
        )
    elif operation.status == _Operation.FAILED:
        payment.status, payment.failure = InvoicePayment.Status.FAILED, operation.reason[:300]
        move_invoice(
            invoice_id=invoice.id,
            expected=[Status.ACTION_REQUIRED],
            to=unpaid_status(invoice, now),
            now=now,
            reason=operation.reason,
        )
    elif operation.status == _Operation.SUCCEEDED:
        payment.status, payment.failure = InvoicePayment.Status.SUCCEEDED, ""
        receive(invoice, payment, of_processor=True, now=now)
    payment.save(update_fields=["status", "processor_reference", "action_url", "failure"])
    if payment.status == InvoicePayment.Status.SUCCEEDED:
        settle_if_nothing_is_due(invoice, reason="paid through the processor", now=now)


def tell_action_required(operation: ProcessorOperation, names: dict[str, str], *, now: datetime) -> None:
    """Once for each operation. The link is not in it: it is the buyer's, and the API has it."""
    data = names | {"amount_micros": operation.amount_micros, "currency": operation.currency}
    record_event(
        organization_id=operation.organization_id,
        event_type="payment.action_required",
        fact_id=operation.id,
        data=data,
        now=now,
    )


def receive(invoice: Invoice, payment: InvoicePayment, *, of_processor: bool, now: datetime) -> None:
    """Post a payment that is not yet among those that have succeeded. The invoice's row is locked."""
    ledger = Ledger(invoice, now, reference_id=payment.id)
    source = ledger.of_issuer(AccountKind.PROCESSOR) if of_processor else ledger.of_buyer(AccountKind.PREPAID)
    # What was credited while the charge was under way leaves less due than was taken: the rest is the buyer's balance.
    due = min(payment.amount_micros, outstanding(invoice))
    pay_debts(ledger, payment.id, source=source, amount=due, code="invoice_payment", name="transfer")
    if of_processor:
        ledger.move(
            derived_id(payment.id, "surplus"),
            debit=source,
            credit=ledger.of_buyer(AccountKind.PREPAID),
            amount=payment.amount_micros - due,
            code="invoice_payment",
        )
    ledger.post()
    lower_limits(invoice, now=now)


def settle_if_nothing_is_due(invoice: Invoice, *, reason: str, now: datetime) -> bool:
    """Mark an invoice paid whose due has been paid or credited, and post the tax that nothing had covered.

    In the caller's transaction, which holds the invoice's row.
    """
    invoice.refresh_from_db(fields=["status"])
    if outstanding(invoice) > 0:
        return False
    if not move_invoice(
        invoice_id=invoice.id, expected=[*OPEN, Status.UNCOLLECTIBLE], to=Status.PAID, now=now, reason=reason
    ):
        return False
    ledger = Ledger(invoice, now)
    ledger.move(
        derived_id(invoice.id, "tax_unposted"),
        debit=ledger.of_buyer(AccountKind.RECEIVABLE),
        credit=ledger.of_issuer(AccountKind.TAX),
        amount=invoice.tax_unposted_micros,
        code="tax",
    )
    ledger.post()
    return True


def unpaid_status(invoice: Invoice, now: datetime) -> Status:
    return Status.OVERDUE if invoice.due_at is not None and now >= invoice.due_at else Status.FINALISED


def reopen(*, payment_id: UUID, amount_micros: int, now: datetime) -> tuple[int, UUID]:
    """A bank took `amount_micros` of a payment back: how much of it is due again, and the account that shows it.

    The account is of this payment alone and may go as far below zero as that; posting to it is the caller's. Zero
    where credit notes meanwhile cover what the payment had paid.
    """
    invoice, payment = _locked(payment_id)
    before = outstanding(invoice)
    payment.reversed_micros += amount_micros
    payment.save(update_fields=["reversed_micros"])
    due_again = outstanding(invoice) - before
    account = debt_account(invoice, payment, now)
    if due_again:
        set_overdraft_limit(account_id=account, limit_micros=_debt(account) + due_again)
        move_invoice(
            invoice_id=invoice.id,
            expected=[Status.PAID],
            to=unpaid_status(invoice, now),
            now=now,
            reason="a bank took the payment back",
        )
    return due_again, account


def restore(*, payment_id: UUID, amount_micros: int, now: datetime) -> tuple[int, UUID]:
    """What a bank had taken came back: how much of it pays this payment's debt, and the account of that debt.

    The rest belongs to the buyer's balance: he has paid the invoice again meanwhile, or it was credited. After the
    posting the caller calls `close_restored`.
    """
    invoice, payment = _locked(payment_id)
    before = outstanding(invoice)
    payment.reversed_micros -= amount_micros
    payment.save(update_fields=["reversed_micros"])
    account = debt_account(invoice, payment, now)
    return min(before - outstanding(invoice), _debt(account)), account


def close_restored(*, payment_id: UUID, now: datetime) -> None:
    """After the posting of `restore`: what came back is no credit line, and the invoice may be paid by it."""
    invoice, payment = _locked(payment_id)
    account = debt_account(invoice, payment, now)
    set_overdraft_limit(account_id=account, limit_micros=_debt(account))
    settle_if_nothing_is_due(invoice, reason="the bank gave the payment back", now=now)


def pay_debts(ledger: Ledger, key: UUID, *, source: UUID, amount: int, code: str, name: str) -> None:
    """Add the transfers that pay what an invoice's buyer owes: first what banks took back, then his receivable."""
    for payment, account in _debts(ledger.invoice, ledger.now):
        part = min(amount, _debt(account))
        ledger.move(
            derived_id(key, f"{name}:{payment.id}"), debit=source, credit=account, amount=part, code=code
        )
        amount -= part
    ledger.move(
        derived_id(key, name),
        debit=source,
        credit=ledger.of_buyer(AccountKind.RECEIVABLE),
        amount=amount,
        code=code,
    )


def lower_limits(invoice: Invoice, *, now: datetime) -> None:
    """What was paid of a debt is no credit line."""
    for _, account in _debts(invoice, now):
        set_overdraft_limit(account_id=account, limit_micros=_debt(account))


def debt_account(invoice: Invoice, payment: InvoicePayment, now: datetime) -> UUID:
    return account_id(
        organization_id=invoice.organization_id,
        kind=AccountKind.RECEIVABLE,
        currency=invoice.currency,
        reference_id=payment.id,
        now=now,
    )


def _debts(invoice: Invoice, now: datetime) -> Iterator[tuple[InvoicePayment, UUID]]:
    for payment in invoice.payments.filter(reversed_micros__gt=0).order_by("id"):
        yield payment, debt_account(invoice, payment, now)


def _debt(account: UUID) -> int:
    return max(0, -balance_of(LedgerAccount.objects.get(pk=account)).posted_micros)


def _locked(payment_id: UUID) -> tuple[Invoice, InvoicePayment]:
    invoice_id = InvoicePayment.objects.values_list("invoice_id", flat=True).get(pk=payment_id)
    invoice = Invoice.objects.select_for_update().get(pk=invoice_id)
    return invoice, InvoicePayment.objects.select_for_update().get(pk=payment_id)
