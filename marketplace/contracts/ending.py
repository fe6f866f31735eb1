"""The end of a committed contract before its term: by notice, or because another contract takes its place.

What it costs is billing's (`billing.services.terminating`); this moves the term, the month it cuts and the capacity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.db import transaction

from marketplace.accounts.organization_clocks import billing_now
from marketplace.accounts.services import Actor, record_audit
from marketplace.contracts import firm_capacity
from marketplace.contracts.committed import accept_quote, month_lots, month_of
from marketplace.contracts.history import record_event
from marketplace.contracts.models import (
    Contract,
    ContractEvent,
    ContractKind,
    Entitlement,
    Nomination,
    Quote,
    Renewal,
)
from marketplace.contracts.quoting import request_quote
from marketplace.contracts.suspending import RUNNING
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.periods import Period, contract_month, delivery_period
from pricing.rating import lots_numerator
from pricing.units import NUMERATOR_PER_LOT, div_ceil

# Months are made a delivery period ahead: a day's notice at least, so that none is made beyond the end.
LEAST_NOTICE: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Cut:
    """A contract that ends earlier than it did: from when on, the lots of its months that will never be due, and the
    month that was cut, as it is now.
    """

    contract: Contract
    ended_at: datetime
    term_was: datetime
    lots_left: int
    month: Entitlement | None


def first_end(contract: Contract, *, now: datetime) -> datetime:
    """The earliest end that notice given now can have: the start of a delivery period after the contract's start."""
    notice = max(LEAST_NOTICE, timedelta(days=contract.notice_days or 0))
    return max(_next_period(now + notice), delivery_period(contract.starts_at).end)


@transaction.atomic
def end_early(
    *,
    organization_id: UUID,
    contract_id: UUID,
    ends_at: datetime | None,
    reason: str,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> Cut:
    """End a running committed contract at `ends_at` (by default as early as its notice allows).

    The month that it cuts keeps its volume pro rata by seconds, at least what of it is used, held, released or failed.
    Its capacity is on sale again from the next whole hour. Raises NotFound, Conflict (not running; released volume
    beyond the end) or InvalidInput (`ends_at`).
    """
    contract = _running(organization_id, contract_id)
    now = billing_now(organization_id, now)
    end = first_end(contract, now=now) if ends_at is None else ends_at
    if end.tzinfo is None:
        raise InvalidInput("It must carry a time zone.", field="ends_at")
    if delivery_period(end).start != end:
        raise InvalidInput("It must be the start of a delivery period (UTC).", field="ends_at")
    earliest = first_end(contract, now=now)
    if end < earliest:
        raise InvalidInput(
            f"With {contract.notice_days or 0} days' notice (a day at least) it can end on "
            f"{earliest.isoformat()} at the earliest.",
            field="ends_at",
        )
    return _end_at(contract, end, ContractEvent.Kind.TERMINATED, reason, event_of(operation_id), now, actor)


def quote_amendment(
    *,
    organization_id: UUID,
    contract_id: UUID,
    starts_at: datetime,
    firm_lots: int,
    volume_lots: int,
    months: int,
    now: datetime,
) -> Quote:
    """Today's price of other lots, volume or months from the start of one of the contract's later months on.

    All other terms stay. Raises NotFound, Conflict (not running, or amended already), InvalidInput (`starts_at`: no
    month of the contract begins then, or within a day), or what `request_quote` raises.
    """
    contract = Contract.objects.filter(pk=contract_id, organization_id=organization_id).first()
    _check_running(contract)
    assert contract is not None
    _check_not_amended(contract)
    _check_boundary(contract, starts_at, billing_now(organization_id, now))
    quote = contract.quote
    assert quote is not None
    return request_quote(
        organization_id=organization_id,
        grade_slug=contract.grade.family.slug,
        firm_lots=firm_lots,
        volume_lots=volume_lots,
        months=months,
        starts_at=starts_at,
        take_share_ppm=quote.take_share_ppm,
        overage_policy=contract.overage_policy,
        max_rate_micros_per_mtok=contract.max_rate_micros_per_mtok,
        payment=contract.payment,
        rollover_share_ppm=quote.rollover_share_ppm,
        rollover_cap_lots=quote.rollover_cap_lots,
        amends_id=contract.id,
        own={} if contract.freed_at else firm_capacity.taken_by_host(contract.id),
        now=now,
    )


@transaction.atomic
def amend_contract(
    *,
    organization_id: UUID,
    contract_id: UUID,
    quote_id: UUID,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
    lock_money: Callable[[Contract], None],
) -> tuple[Cut, Contract]:
    """End the contract where the quote begins, and let the quote's contract take its place: all of it or nothing.

    Capacity of the one is given back and of the other taken behind the locks of both. `lock_money` takes the books that
    squaring this contract up will touch: before the price of the new one is held, behind all locks but theirs. Raises
    NotFound, Conflict, InvalidInput, and what `accept_quote` raises.
    """
    contract = _running(organization_id, contract_id)
    quote = Quote.objects.filter(pk=quote_id, organization_id=organization_id, amends=contract).first()
    if quote is None:
        raise NotFound("There is no such quote for this contract.", field="quote_id")
    own_now = billing_now(organization_id, now)
    _check_boundary(contract, quote.starts_at, own_now)
    _check_not_amended(contract)
    assert contract.ends_at is not None
    hosts = firm_capacity.by_host(firm_capacity.quoted_shares(quote)).keys()
    mine = firm_capacity.taken_by_host(contract.id).keys()
    until = max(contract.ends_at, contract_month(quote.starts_at, quote.months - 1).end)
    firm_capacity.lock_term([*hosts, *mine], quote.starts_at, until)
    cut = _end_at(
        contract,
        quote.starts_at,
        ContractEvent.Kind.AMENDED,
        "amended",
        event_of(operation_id),
        own_now,
        actor,
    )
    successor = accept_quote(
        organization_id=organization_id,
        quote_id=quote_id,
        operation_id=operation_id,
        now=now,
        actor=actor,
        amending=True,
        lock_money=lambda: lock_money(contract),
    )
    return cut, successor


def lots_of(contract: Contract) -> int:
    """The sum of V over all months of a contract's term as it is now."""
    lots, number = 0, 0
    while (month := month_of(contract, number)) is not None:
        lots += month_lots(contract, month)
        number += 1
    return lots


def _end_at(
    contract: Contract,
    end: datetime,
    kind: ContractEvent.Kind,
    reason: str,
    event_id: UUID,
    now: datetime,
    actor: Actor,
) -> Cut:
    term_was = contract.ends_at
    assert term_was is not None
    if end >= term_was:
        raise InvalidInput(f"The contract ends on {term_was.isoformat()} anyway.", field="ends_at")
    if Nomination.objects.filter(contract=contract, period_end__gt=end).exists():
        raise Conflict("Volume beyond that end is released already.", field="ends_at")
    before = lots_of(contract)
    contract.ends_at = end
    month = _cut_month(contract, end)
    lots_left = before - lots_of(contract)
    Contract.objects.filter(pk=contract.pk).update(ends_at=end)
    # Who ends it does not want it renewed at the term that it had.
    Renewal.objects.filter(pk=contract.pk, status=Renewal.Status.ON).update(
        status=Renewal.Status.OFF, next_attempt_at=None
    )
    if contract.freed_at is None:
        # Of an hour inside which another takes its place that one has it all (`take_after`).
        since = end if kind == ContractEvent.Kind.TERMINATED else end.replace(minute=0, second=0)
        firm_capacity.give_back(contract, since, term_was, now=now)
    detail = {"ends_at": end.isoformat(), "term_was": term_was.isoformat(), "lots_left": lots_left}
    record_event(
        contract.id,
        kind,
        contract.status,
        contract.status,
        reason=reason,
        now=now,
        actor=actor,
        detail=detail,
        event_id=event_id,
    )
    record_audit(
        organization_id=contract.organization_id,
        actor=actor,
        action=f"contract.{kind.value}",
        object_kind="contract",
        object_id=contract.id,
        detail=detail,
        now=now,
    )
    return Cut(contract, end, term_was, lots_left, month)


def _cut_month(contract: Contract, end: datetime) -> Entitlement | None:
    month = (
        Entitlement.objects.select_for_update(of=("self",))
        .select_related("rate")
        .filter(contract=contract, period_start__lt=end, period_end__gt=end)
        .first()
    )
    if month is None:
        return None
    gone = month.held_numerator + month.used_numerator + month.released_numerator + month.failed_numerator
    lots = max(
        month_lots(contract, Period(month.period_start, end)),
        div_ceil(max(0, gone - month.rollover_numerator), NUMERATOR_PER_LOT),
    )
    month.period_end = end
    month.entitled_numerator = min(month.volume_numerator, lots_numerator(lots)) + month.rollover_numerator
    month.save(update_fields=["period_end", "entitled_numerator"])
    return month


def event_of(operation_id: UUID) -> UUID:
    """The id of the row of history that an operation leaves: an operation that comes twice is known by it."""
    return derived_id(operation_id, "contract_event")


def _running(organization_id: UUID, contract_id: UUID) -> Contract:
    contract = (
        Contract.objects.select_for_update(of=("self",), no_key=True)
        .select_related("grade__family", "organization", "rate")
        .filter(pk=contract_id, organization_id=organization_id)
        .first()
    )
    _check_running(contract)
    assert contract is not None
    return contract


def _check_running(contract: Contract | None) -> None:
    if contract is None:
        raise NotFound("There is no such contract.")
    if contract.kind != ContractKind.COMMITTED or contract.status not in RUNNING:
        raise Conflict("Only a committed contract that runs can be ended or amended.")


def _check_not_amended(contract: Contract) -> None:
    """One contract takes another's place, once: what is to change again is that one."""
    if Contract.objects.filter(amends=contract).exists():
        raise Conflict("Another contract takes its place already: amend that one.")


def _check_boundary(contract: Contract, starts_at: datetime, now: datetime) -> None:
    number = 1
    while (month := month_of(contract, number)) is not None:
        if month.start == starts_at:
            break
        number += 1
    if month is None:
        raise InvalidInput("No later month of the contract begins then.", field="starts_at")
    if starts_at < now + LEAST_NOTICE:
        raise InvalidInput("It must be a day ahead at least.", field="starts_at")


def _next_period(at: datetime) -> datetime:
    running = delivery_period(at)
    return running.start if running.start == at else running.end
