"""A provider's bond: put in through the payment processor or out of earnings, kept of earnings, taken back."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.selectors import operator_organization
from marketplace.accounts.services import SYSTEM, Actor, record_audit
from marketplace.billing.models import BondDeposit, BondWithdrawal, ProcessorOperation
from marketplace.billing.processor_models import COLLECTIONS
from marketplace.billing.services.collecting import request_collection, run_collection
from marketplace.billing.services.top_ups import check_step, check_top_up_amount
from marketplace.contracts.bonds import bond_of
from marketplace.errors import Conflict, InvalidInput
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import available_by_organization
from marketplace.ledger.services import InsufficientFunds, NewTransfer, account_id, post_transfers
from pricing.units import micros_per_minor_unit
from providers.services import lock_provider

Source = BondDeposit.Source
Status = BondDeposit.Status


class BondBound(Conflict):
    """So much of the bond is not free: it stands for what is sold firm, or ended a moment ago."""

    code = "bond_bound"


def deposit_bond(
    *,
    organization_id: UUID,
    amount_micros: int,
    source: str,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> BondDeposit:
    """Put money into the bond: through the payment `processor` as a top-up, or out of `earnings` not yet paid out.

    The same operation with the same terms is a no-op that returns the first deposit. Through the processor it is
    asked between two transactions, and the deposit may be pending. Raises Forbidden, InvalidInput (amount_micros,
    source), InsufficientFunds (earnings), Conflict.
    """
    if source == Source.PROCESSOR:
        check_top_up_amount(amount_micros)
    else:
        _check_own_amount(amount_micros)
    if source not in (Source.PROCESSOR, Source.EARNINGS):
        raise InvalidInput(f"must be one of {Source.PROCESSOR}, {Source.EARNINGS}", field="source")
    deposit = _begin(
        deposit_id=derived_id(operation_id, "bond_deposit"),
        organization_id=organization_id,
        amount_micros=amount_micros,
        source=source,
        now=now,
        actor=actor,
    )
    if deposit.status != Status.PENDING:
        return deposit
    collection = ProcessorOperation.objects.get(subject_id=deposit.id, kind__in=COLLECTIONS)
    run_collection(operation=collection, now=now)
    return BondDeposit.objects.get(pk=deposit.id)


@transaction.atomic
def withdraw_bond(
    *, organization_id: UUID, amount_micros: int, operation_id: UUID, now: datetime, actor: Actor
) -> BondWithdrawal:
    """Take what is free of the bond back into what is paid out next. The same operation again: nothing.

    Waits for acceptances and is waited for by them (the lock of the profile), so what is sold stays covered.
    Raises Forbidden, InvalidInput (amount_micros), BondBound, Conflict.
    """
    _check_own_amount(amount_micros)
    lock_provider(organization_id, now=now)
    withdrawal_id = derived_id(operation_id, "bond_withdrawal")
    kept = BondWithdrawal.objects.filter(pk=withdrawal_id).first()
    if kept is not None:
        if (kept.organization_id, kept.amount_micros) != (organization_id, amount_micros):
            raise Conflict("this operation was begun with other terms")
        return kept
    free = bond_of(organization_id, now=now).free_micros
    if amount_micros > free:
        raise BondBound(f"only {free} micros of the bond are free", field="amount_micros")
    withdrawal = BondWithdrawal.objects.create(
        id=withdrawal_id,
        organization_id=organization_id,
        amount_micros=amount_micros,
        currency=settings.MARKET_CURRENCY,
        created_at=now,
    )
    _move(
        withdrawal_id,
        organization_id,
        AccountKind.BOND,
        AccountKind.PAYABLE,
        amount_micros,
        "bond_withdrawal",
        now,
    )
    _audit(withdrawal_id, organization_id, "bond.withdrawn", amount_micros, actor, now)
    return withdrawal


def _check_own_amount(amount_micros: int) -> None:
    """Of what moves within the books only: whole minor units. Raises InvalidInput (amount_micros)."""
    currency = settings.MARKET_CURRENCY
    check_step(amount_micros, step=micros_per_minor_unit(currency), currency=currency)


def retain_for_bond(*, organization_id: UUID, now: datetime) -> int:
    """Move earnings into a bond that covers less than is sold, as far as they go; how much, in micros.

    In the caller's transaction, which holds the profile's lock. Earnings not yet stated count too: they are kept, not
    paid. Nothing where a payout or remedy took them in the same moment; the next run looks again.
    """
    missing = bond_of(organization_id, now=now).missing_micros
    if missing == 0:
        return 0
    currency = settings.MARKET_CURRENCY
    earned = available_by_organization([organization_id], kind=AccountKind.PAYABLE, currency=currency)
    amount = min(missing, earned[organization_id])
    if amount <= 0:
        return 0
    number = BondDeposit.objects.filter(organization_id=organization_id, source=Source.RETAINED).count()
    deposit_id = derived_id(organization_id, f"retained_for_bond:{number + 1}")
    try:
        with transaction.atomic():
            BondDeposit.objects.create(
                id=deposit_id,
                organization_id=organization_id,
                source=Source.RETAINED,
                amount_micros=amount,
                currency=currency,
                status=Status.SUCCEEDED,
                created_at=now,
            )
            _move(
                deposit_id,
                organization_id,
                AccountKind.PAYABLE,
                AccountKind.BOND,
                amount,
                "bond_retained",
                now,
            )
            _audit(deposit_id, organization_id, "bond.retained", amount, SYSTEM, now)
    except InsufficientFunds:
        return 0
    return amount


@transaction.atomic
def _begin(
    *,
    deposit_id: UUID,
    organization_id: UUID,
    amount_micros: int,
    source: str,
    now: datetime,
    actor: Actor,
) -> BondDeposit:
    lock_provider(organization_id, now=now)
    kept = BondDeposit.objects.filter(pk=deposit_id).first()
    if kept is not None:
        if (kept.organization_id, kept.amount_micros, kept.source) != (
            organization_id,
            amount_micros,
            source,
        ):
            raise Conflict("this operation was begun with other terms")
        return kept
    operator_organization()  # whose books it is to stand in
    deposit = BondDeposit.objects.create(
        id=deposit_id,
        organization_id=organization_id,
        source=source,
        amount_micros=amount_micros,
        currency=settings.MARKET_CURRENCY,
        status=Status.PENDING if source == Source.PROCESSOR else Status.SUCCEEDED,
        created_at=now,
    )
    _audit(deposit_id, organization_id, "bond.deposited", amount_micros, actor, now, source=source)
    if source == Source.PROCESSOR:
        request_collection(
            fact_id=deposit_id,
            subject_id=deposit_id,
            purpose=ProcessorOperation.Purpose.BOND,
            organization_id=organization_id,
            amount_micros=amount_micros,
            currency=deposit.currency,
            on_page=True,
            now=now,
        )
    else:
        _move(
            deposit_id,
            organization_id,
            AccountKind.PAYABLE,
            AccountKind.BOND,
            amount_micros,
            "bond_deposit",
            now,
        )
    return deposit


def _move(
    fact_id: UUID,
    organization_id: UUID,
    source: AccountKind,
    target: AccountKind,
    amount_micros: int,
    code: str,
    now: datetime,
) -> None:
    currency = settings.MARKET_CURRENCY
    debit, credit = (
        account_id(organization_id=organization_id, kind=kind, currency=currency, now=now)
        for kind in (source, target)
    )
    transfer = NewTransfer(
        id=derived_id(fact_id, "transfer"),
        debit_id=debit,
        credit_id=credit,
        amount_micros=amount_micros,
        code=code,
        reference_id=fact_id,
    )
    post_transfers([transfer], now=now)


def _audit(
    object_id: UUID,
    organization_id: UUID,
    action: str,
    amount_micros: int,
    actor: Actor,
    now: datetime,
    **detail: object,
) -> None:
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action=action,
        object_kind="bond",
        object_id=object_id,
        detail={"amount_micros": amount_micros, **detail},
        now=now,
    )
