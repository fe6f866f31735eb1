"""What ending or amending a committed contract costs: a fee for the take that is left, less what was paid ahead."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Sum

from marketplace.accounts.organization_clocks import billing_now
from marketplace.accounts.services import Actor
from marketplace.billing.lines import Line, Share
from marketplace.billing.models import Charge, ChargeKind
from marketplace.billing.services.committed_months import fee_line, firm_allocations, left_of
from marketplace.billing.services.posting import (
    Movement,
    books_of,
    buyer_account,
    charge_id,
    deferred_account,
    lock_movements,
    move,
    record_lines,
)
from marketplace.billing.services.setting_aside import hold_tax
from marketplace.contracts.ending import Cut, amend_contract, end_early, event_of, lots_of
from marketplace.contracts.models import Contract, ContractEvent, Payment
from marketplace.ids import derived_id
from marketplace.ledger.services import NewTransfer, post_transfers
from pricing.commitments import termination_fee
from pricing.rating import fee_of
from pricing.units import split_by_weight


@dataclass(frozen=True, slots=True)
class EndedEarly:
    """What it came to, before tax: the fee that was charged, and what of a month paid ahead was given back."""

    contract: Contract
    fee_micros: int
    refund_micros: int
    successor: Contract | None = None


@transaction.atomic
def terminate_contract(
    *,
    organization_id: UUID,
    contract_id: UUID,
    ends_at: datetime | None,
    reason: str,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> EndedEarly:
    """End a contract early, charge the fee of its terms and give back what was paid for time after its end.

    All or nothing; the same operation again changes nothing. Raises what `end_early` raises,
    and InsufficientFunds: what is given back pays the fee first.
    """
    known = _same_again(organization_id, contract_id, operation_id)
    if known is not None:
        return known
    now = billing_now(organization_id, now)
    cut = end_early(
        organization_id=organization_id,
        contract_id=contract_id,
        ends_at=ends_at,
        reason=reason,
        operation_id=operation_id,
        now=now,
        actor=actor,
    )
    return _square_up(cut, cut.lots_left, operation_id, now)


@transaction.atomic
def amend(
    *,
    organization_id: UUID,
    contract_id: UUID,
    quote_id: UUID,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> EndedEarly:
    """Let a quote's contract take the place of this one. Who commits to fewer lots than were left pays the fee of them.

    All or nothing; the same operation again changes nothing. Raises what `amend_contract` raises,
    and InsufficientFunds.
    """
    known = _same_again(organization_id, contract_id, operation_id)
    if known is not None:
        return known
    own_now = billing_now(organization_id, now)
    cut, successor = amend_contract(
        organization_id=organization_id,
        contract_id=contract_id,
        quote_id=quote_id,
        operation_id=operation_id,
        now=now,
        actor=actor,
        lock_money=lambda contract: _lock_books(contract, own_now),
    )
    less = max(0, cut.lots_left - lots_of(successor))
    return replace(_square_up(cut, less, operation_id, own_now), successor=successor)


def _same_again(organization_id: UUID, contract_id: UUID, operation_id: UUID) -> EndedEarly | None:
    """What the operation came to when it was done before."""
    contract = (
        Contract.objects.select_for_update(of=("self",), no_key=True)
        .select_related("grade__family", "rate")
        .filter(pk=contract_id, organization_id=organization_id)
        .first()
    )
    event = ContractEvent.objects.filter(pk=event_of(operation_id), contract_id=contract_id).first()
    if contract is None or event is None:
        return None
    # By the ids that they derived: another operation may have ended it in the same moment of a test clock.
    parent = derived_id(operation_id, "early_end")
    months = [fee_line(month) for month in contract.entitlements.select_related("rate")]
    fees = [replace(line, kind=ChargeKind.TERMINATION, period_start=event.occurred_at) for line in months[:1]]
    refunds = [replace(line, kind=ChargeKind.ADJUSTMENT) for line in months]
    fee, back = (
        Charge.objects.filter(pk__in=[charge_id(parent, line) for line in lines]).aggregate(
            sum=Sum("amount_micros")
        )["sum"]
        or 0
        for lines in (fees, refunds)
    )
    successor = Contract.objects.filter(pk=derived_id(operation_id, "contract"), amends=contract).first()
    return EndedEarly(contract, int(fee), -int(back), successor)


def _square_up(cut: Cut, lots: int, operation_id: UUID, now: datetime) -> EndedEarly:
    parent = derived_id(operation_id, "early_end")
    _lock_books(cut.contract, now)
    refund = _give_back(cut, parent, now)
    contract = cut.contract
    assert contract.rate is not None
    assert contract.take_share_ppm is not None
    fee = termination_fee(
        lots_left=lots,
        take_share_ppm=contract.take_share_ppm,
        fee_ppm=contract.termination_fee_ppm or 0,
        rate=contract.rate.micros_per_mtok,
    )
    if fee:
        _charge_fee(cut, fee, parent, now)
    return EndedEarly(contract, fee, refund)


def _lock_books(contract: Contract, now: datetime) -> None:
    offerings = firm_allocations(contract).values_list("offering_id", flat=True)
    lock_movements([], contract, offerings=offerings, now=now)


def _give_back(cut: Cut, parent: UUID, now: datetime) -> int:
    """Of a month that was paid, what it costs less now: from deferred to the balance, as far as it is not earned."""
    month, contract = cut.month, cut.contract
    if month is None or month.paid_at is None or contract.payment != Payment.PREPAID:
        return 0
    due = fee_line(month)
    left, paid = left_of(month)
    amount = min(left, paid.amount_micros - due.amount_micros)
    if amount <= 0:
        return 0
    line = replace(
        due,
        kind=ChargeKind.ADJUSTMENT,
        numerator=due.numerator - paid.numerator,
        amount_micros=-amount,
    )
    charge = charge_id(parent, line)
    post_transfers(
        [
            NewTransfer(
                id=derived_id(charge, "committed_fee"),
                debit_id=deferred_account(contract, now=now),
                credit_id=buyer_account(contract, now=now),
                amount_micros=amount,
                code="adjustment",
                reference_id=charge,
            )
        ],
        now=now,
    )
    record_lines(parent, [line], contract, settlement=None, tax_held={}, now=now)
    return amount


def _charge_fee(cut: Cut, fee: int, parent: UUID, now: datetime) -> None:
    """The fee goes to the providers by allocation: they kept the capacity for the whole term."""
    contract = cut.contract
    rate = contract.rate
    assert rate is not None
    weights = {
        item.offering_id: item.firm_lots * max(1, item.rate_micros_per_mtok)
        for item in firm_allocations(contract)
    }
    offerings = sorted(weights)
    parts = split_by_weight(fee, [weights[offering] for offering in offerings])
    # It is of today, whatever it is for: this month's documents carry it.
    line = Line(
        kind=ChargeKind.TERMINATION,
        rate_id=rate.id,
        grade_id=rate.grade_id,
        rate_micros_per_mtok=rate.micros_per_mtok,
        period_start=now,
        period_end=cut.term_was,
        numerator=0,
        amount_micros=fee,
        shares={
            offering: Share(0, part, fee_of(part, settings.MARKET_FEE_PPM))
            for offering, part in zip(offerings, parts, strict=True)
            if part
        },
    )
    move([Movement(parent, line, books_of(contract, now=now, to_balance=True), is_run=False)], now=now)
    tax_held = hold_tax(parent, [line], contract, settlement_id=None, now=now)
    record_lines(parent, [line], contract, settlement=None, tax_held=tax_held, now=now)
