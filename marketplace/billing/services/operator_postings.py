"""The operator's own movements at the processor: capital put in, earnings taken out, fees billed beside the movements.

The money itself moves at the processor and at his bank, by his hand; here it is written down, so that the books go on
saying what lies at the processor.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction

from marketplace.accounts.models import Organization
from marketplace.accounts.selectors import operator_organization
from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.operator_models import OperatorPosting
from marketplace.billing.services.processor_effects import market_account
from marketplace.billing.services.top_ups import check_step
from marketplace.errors import Conflict, InvalidInput, constraint_of
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.selectors import balance_of
from marketplace.ledger.services import InsufficientFunds, NewTransfer, lock_books, post_transfers
from pricing.units import format_micros, micros_per_minor_unit

Kind = OperatorPosting.Kind
# What may be taken out: what is the operator's, and what he owes to a tax office.
WITHDRAWN_FROM: Final = (AccountKind.FEES, AccountKind.BREAKAGE, AccountKind.OPERATOR, AccountKind.TAX)
MAX_CHARACTERS: Final = 200


@transaction.atomic
def post_operator_movement(
    *,
    kind: str,
    amount_micros: int,
    account_kind: str = AccountKind.OPERATOR,
    reference: str = "",
    reason: str,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> OperatorPosting:
    """Post one of them, in the market's currency, once for each `operation_id` and each `reference` at the processor.

    capital: processor -> operator; withdrawal: `account_kind` (fees, breakage, operator, tax) -> processor, at most
    what that account has; processor_fee: operator -> processor. Nothing is undone: who was wrong posts the opposite.
    Raises InvalidInput (kind, account_kind, amount_micros, reason, reference), InsufficientFunds, Conflict.
    """
    currency = settings.MARKET_CURRENCY
    _check(kind, account_kind, reason, reference)
    check_step(amount_micros, step=micros_per_minor_unit(currency), currency=currency)
    operator = operator_organization()
    made = OperatorPosting(
        id=derived_id(operation_id, "operator_posting"),
        organization=operator,
        kind=kind,
        account_kind=account_kind,
        amount_micros=amount_micros,
        currency=currency,
        reference=reference.strip(),
        reason=reason.strip(),
        created_at=now,
    )
    own, at_processor = (
        market_account(AccountKind(account_kind), currency, now),
        market_account(AccountKind.PROCESSOR, currency, now),
    )
    # The operator's row is the lock: two withdrawals at once do not both take the same money. The ledger comes after.
    Organization.objects.select_for_update(no_key=True).get(pk=operator.pk)
    kept = OperatorPosting.objects.filter(pk=made.pk).first()
    if kept is not None:
        if _terms(kept) != _terms(made):
            raise Conflict("this operation was begun with other terms")
        return kept
    parts = {own: amount_micros}
    if kind == Kind.WITHDRAWAL:
        parts = _taken_from(operator.id, account_kind, currency, amount_micros)
    try:
        with transaction.atomic():
            made.save(force_insert=True)
    except IntegrityError as error:
        if constraint_of(error) != "billing_operatorposting_reference_once":
            raise
        raise Conflict("this movement of the processor's is posted already", field="reference") from error
    transfers = [
        NewTransfer(
            id=derived_id(made.id, "transfer" if account == own else f"transfer:{account}"),
            debit_id=at_processor if kind == Kind.CAPITAL else account,
            credit_id=account if kind == Kind.CAPITAL else at_processor,
            amount_micros=part,
            code=kind,
            reference_id=made.id,
        )
        for account, part in parts.items()
    ]
    post_transfers(transfers, now=now)
    record_audit(
        organization_id=operator.id,
        actor=actor,
        action=f"operator_posting.{kind}",
        object_kind="operator_posting",
        object_id=made.id,
        detail={
            "amount_micros": amount_micros,
            "account_kind": str(account_kind),
            "reference": made.reference,
            "reason": made.reason,
        },
        now=now,
    )
    return made


def _taken_from(operator_id: UUID, account_kind: str, currency: str, amount_micros: int) -> dict[UUID, int]:
    """How much of which account: what settles at once lies on several (`fees_account`), and is one sum to the operator.

    The fullest first, so that few are touched. Raises InsufficientFunds (amount_micros).
    """
    accounts = LedgerAccount.objects.filter(organization_id=operator_id, kind=account_kind, currency=currency)
    lock_books(accounts=accounts.values_list("id", flat=True))
    found = [(balance_of(account).posted_micros, account.id) for account in accounts.all()]
    left = sum(micros for micros, _ in found)
    if amount_micros > left:
        shown = format_micros(max(0, left), currency)
        raise InsufficientFunds(f"{account_kind} has {shown} {currency}", field="amount_micros")
    parts: dict[UUID, int] = {}
    for micros, account in sorted(found, reverse=True):
        missing = amount_micros - sum(parts.values())
        if min(micros, missing) > 0:
            parts[account] = min(micros, missing)
    return parts


def _check(kind: str, account_kind: str, reason: str, reference: str) -> None:
    if kind not in Kind.values:
        raise InvalidInput(f"must be one of {', '.join(Kind.values)}", field="kind")
    allowed = WITHDRAWN_FROM if kind == Kind.WITHDRAWAL else (AccountKind.OPERATOR,)
    if account_kind not in allowed:
        raise InvalidInput(f"must be one of {', '.join(allowed)}", field="account_kind")
    for field, text in (("reason", reason), ("reference", reference)):
        if len(text) > MAX_CHARACTERS // (1 if field == "reason" else 2) or not text.isprintable():
            raise InvalidInput("must be shorter, and printable", field=field)
    if not reason.strip():
        raise InvalidInput("say why", field="reason")


def _terms(posting: OperatorPosting) -> tuple[object, ...]:
    return (
        posting.kind,
        str(posting.account_kind),
        posting.amount_micros,
        posting.currency,
        posting.reference,
        posting.reason,
    )
