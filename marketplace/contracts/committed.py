"""Committed contracts: acceptance of a quote, the months as they come, payment and suspension."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F

from marketplace.accounts.models import ApiKey, Organization
from marketplace.accounts.organization_clocks import billing_now, keeping
from marketplace.accounts.services import Actor, check_may_buy, record_audit
from marketplace.contracts import firm_capacity
from marketplace.contracts.bonds import require_bonds
from marketplace.contracts.events import tell_of_contracts
from marketplace.contracts.history import move_contract, record_event
from marketplace.contracts.models import (
    Allocation,
    Contract,
    ContractEvent,
    ContractKind,
    Entitlement,
    Payment,
    Quote,
)
from marketplace.contracts.purchases import buyer_of, count_purchase
from marketplace.contracts.quoting import QuoteExpired
from marketplace.contracts.suspending import RUNNING, free_suspended, resume_contract
from marketplace.errors import Conflict, NotFound
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import InsufficientFunds, account_id, open_hold
from marketplace.periods import Period, contract_month
from metering.services import add_meter_point
from pricing.commitments import prorated_lots
from pricing.models import Rate
from pricing.months import contract_month_at
from pricing.rating import gross_up, lots_numerator, price_of
from pricing.services import publish_rate
from pricing.units import NUMERATOR_PER_LOT
from providers.models import Offering

BUCKET_SECONDS: Final = 60
_SECOND: Final = timedelta(seconds=1)


@transaction.atomic
def accept_quote(
    *,
    organization_id: UUID,
    quote_id: UUID,
    operation_id: UUID,
    now: datetime,
    actor: Actor,
    amending: bool = False,
    renews: Contract | None = None,
    lock_money: Callable[[], None] | None = None,
) -> Contract:
    """Turn a quote into a contract: take its capacity in every hour of the term and hold the first month's price.

    A quote for an amendment is accepted by `amend_contract` alone (`amending`). What `renews` a contract, which is
    locked, begins where that one ends. Who moves money beside the price in the same transaction takes the books with
    `lock_money`, which is called behind all other locks.

    Nothing is changed when it raises: NotFound, QuoteExpired, Conflict (accepted already), CapacityGone,
    BondNotCovered, InsufficientFunds or SpendCapReached (made with a key). The same operation again gives the same
    contract.
    """
    contract_id = derived_id(operation_id, "contract")
    quote = (
        Quote.objects.select_for_update(of=("self",))
        .select_related("grade")
        .filter(pk=quote_id, organization_id=organization_id)
        .first()
    )
    if quote is None:
        raise NotFound("There is no such quote.")
    if quote.status == Quote.Status.ACCEPTED:
        contract = Contract.objects.get(quote=quote)
        if contract.id == contract_id:
            return contract
        raise Conflict("The quote has been accepted already.")
    if quote.amends_id is not None and not amending:
        raise Conflict("This quote amends a contract: accept it as its amendment.")
    check_may_buy(Organization.objects.get(pk=organization_id))
    # A quote lives in real time; what it quotes begins in the buyer's own.
    if now >= quote.expires_at or billing_now(organization_id, now) >= quote.starts_at:
        raise QuoteExpired("The quote has expired; ask for a new one.")
    ends_at = contract_month(quote.starts_at, quote.months - 1).end
    shares = firm_capacity.quoted_shares(quote)
    hosts = firm_capacity.by_host(shares)
    if renews is not None:
        assert renews.ends_at == quote.starts_at, "no gap and no overlap"
        before = firm_capacity.taken_by_host(renews.id)
        firm_capacity.take_following(hosts, quote.starts_at, ends_at, before=before, now=now)
    elif quote.amends_id is not None:
        firm_capacity.take_after(quote.amends_id, hosts, quote.starts_at, ends_at, now=now)
    else:
        firm_capacity.take(hosts, quote.starts_at, ends_at, now=now)
    rate = publish_rate(
        grade_id=quote.grade_id,
        kind=Rate.Kind.CONTRACTED,
        micros_per_mtok=quote.rate_micros_per_mtok,
        source_id=contract_id,
        now=now,
    )
    contract = Contract.objects.create(
        id=contract_id,
        organization_id=organization_id,
        grade_id=quote.grade_id,
        kind=ContractKind.COMMITTED,
        currency=quote.grade.currency,
        payment=quote.payment,
        overage_policy=quote.overage_policy,
        max_rate_micros_per_mtok=quote.max_rate_micros_per_mtok,
        quote=quote,
        rate=rate,
        firm_lots=quote.firm_lots,
        volume_lots=quote.volume_lots,
        take_share_ppm=quote.take_share_ppm,
        rollover_share_ppm=quote.rollover_share_ppm,
        rollover_cap_lots=quote.rollover_cap_lots,
        notice_days=quote.notice_days,
        termination_fee_ppm=quote.termination_fee_ppm,
        amends_id=quote.amends_id,
        renews=renews,
        starts_at=quote.starts_at,
        ends_at=ends_at,
        created_at=now,
    )
    _allocate(contract, quote, ends_at, shares)
    require_bonds(contract, now=now)
    record_event(
        contract.id,
        ContractEvent.Kind.CREATED,
        "",
        Contract.Status.ACTIVE,
        reason="quote accepted" if renews is None else "renewal",
        now=now,
        actor=actor,
        detail={"quote_id": str(quote.id)} | ({} if renews is None else {"renews_id": str(renews.id)}),
    )
    first = contract_month(quote.starts_at, 0)
    _make_month(contract, first, now, hold=True, actor=actor, lock_money=lock_money)
    Quote.objects.filter(pk=quote.pk).update(status=Quote.Status.ACCEPTED)
    record_audit(
        organization_id=organization_id,
        actor=actor,
        action="quote.accept",
        object_kind="contract",
        object_id=contract.id,
        detail={"quote_id": str(quote.id), "firm_lots": quote.firm_lots, "volume_lots": quote.volume_lots},
        now=now,
    )
    told = "accepted" if renews is None else "renewed"
    tell_of_contracts([contract.id], status=Contract.Status.ACTIVE, reason=told, now=now)
    return contract


def count_month(contract: Contract, month: Entitlement, price_micros: int, *, now: datetime) -> None:
    """Count a month that is charged now under the spend caps of who bought the contract; `now` is real.

    The first one was counted, and could be refused, when it was bought; the others were promised then: they take room
    from what is new. In the transaction that charges, before the ledger.
    """
    if month.period_start == contract.starts_at:
        return
    count_purchase(
        organization_id=contract.organization_id,
        ledger_hold_id=derived_id(month.id, "hold"),
        amount_micros=gross_up(price_micros, contract.organization.tax_ppm),
        now=now,
        actor=buyer_of(contract.id),
        binding=False,
    )


def mark_month_paid(*, entitlement_id: UUID, now: datetime) -> None:
    """The month's price is paid: it may be delivered. A contract suspended for want of it is active again."""
    with transaction.atomic():
        contract_id = Entitlement.objects.values_list("contract_id", flat=True).get(pk=entitlement_id)
        Contract.objects.select_for_update(no_key=True).get(pk=contract_id)
        if not Entitlement.objects.filter(pk=entitlement_id, paid_at__isnull=True).update(paid_at=now):
            return
        resume_contract(contract_id=contract_id, reason="its month is paid", now=now)


def mark_entitlement_settled(*, entitlement_id: UUID, now: datetime) -> None:
    """Billing has settled the period: nothing of it is outstanding. Doing it again changes nothing."""
    Entitlement.objects.filter(pk=entitlement_id, settled_at__isnull=True).update(settled_at=now)


def advance_contracts(*, now: datetime, organization_id: UUID | None = None) -> int:
    """Make the contract months that begin within a delivery period, end contracts whose term is over, and put the
    capacity of those that have been suspended for a day back on sale.

    Of all organizations that keep real time, or of one, at its own time. Returns how many rows it made or ended. Doing
    it again, or from two workers at once, changes nothing.
    """
    done = 0
    horizon = now + timedelta(seconds=settings.DELIVERY_PERIOD_S)
    running = keeping(
        Contract.objects.filter(kind=ContractKind.COMMITTED, status__in=RUNNING), organization_id
    )
    for contract in running.order_by("pk"):
        assert contract.ends_at is not None
        if contract.ends_at <= now:
            done += _end_term(contract.pk, now)
            continue
        done += free_suspended(contract_id=contract.pk, now=now)
        done += _make_due_months(contract, horizon, now)
    return done


@transaction.atomic
def _end_term(contract_id: UUID, now: datetime) -> bool:
    ended = move_contract(
        contract_id,
        sources=RUNNING,
        to=Contract.Status.ENDED,
        kind=ContractEvent.Kind.ENDED,
        reason="its term is over",
        told=_why_over(contract_id),
        now=now,
    )
    successor_id = Contract.objects.filter(renews_id=contract_id).values_list("id", flat=True).first()
    if ended and successor_id is not None:
        # Keys that paid with the one pay with the other.
        ApiKey.objects.filter(default_contract_id=contract_id).update(default_contract_id=successor_id)
    return ended


def _why_over(contract_id: UUID) -> str:
    """What the owner of a contract whose end has come is told: whether it is the one that was agreed at first."""
    early = [ContractEvent.Kind.TERMINATED, ContractEvent.Kind.AMENDED]
    last = (
        ContractEvent.objects.filter(contract_id=contract_id, kind__in=early).order_by("occurred_at").last()
    )
    return "term_over" if last is None else str(last.kind)


def month_price_micros(volume_lots: int, rate_micros_per_mtok: int) -> int:
    """The price of a prepaid month, V x rate, net of tax."""
    return price_of(lots_numerator(volume_lots), rate_micros_per_mtok)


def month_of(contract: Contract, number: int) -> Period | None:
    """The contract month of this number (0 is the first), cut where the contract ends early; None after its end."""
    assert contract.ends_at is not None
    month = contract_month(contract.starts_at, number)
    if month.start >= contract.ends_at:
        return None
    return Period(month.start, min(month.end, contract.ends_at))


def month_lots(contract: Contract, month: Period) -> int:
    """V of a month: pro rata by seconds, in whole lots, where the contract ends inside it."""
    assert contract.volume_lots is not None
    number = contract_month_at(contract.starts_at, month.start)
    whole = contract_month(contract.starts_at, number)
    part_s = (month.end - month.start) // _SECOND
    return prorated_lots(contract.volume_lots, part_s=part_s, whole_s=(whole.end - whole.start) // _SECOND)


@transaction.atomic
def grant_rollover(*, contract_id: UUID, month_start: datetime, numerator: int, now: datetime) -> int:
    """Add what the month before left over to the month that begins then; returns what was granted, once.

    0 when the contract has no such month, or it has its rollover already.
    """
    contract = Contract.objects.select_for_update(no_key=True).get(pk=contract_id)
    if not numerator or contract.ends_at is None or month_start >= contract.ends_at:
        return 0
    if not Entitlement.objects.filter(contract=contract, period_start=month_start).exists():
        month = month_of(contract, contract_month_at(contract.starts_at, month_start))
        assert month is not None
        _make_month(contract, month, now, hold=False)
    granted = Entitlement.objects.filter(
        contract=contract, period_start=month_start, rollover_numerator=0
    ).update(entitled_numerator=F("entitled_numerator") + numerator, rollover_numerator=numerator)
    return numerator if granted else 0


def _make_due_months(contract: Contract, horizon: datetime, now: datetime) -> int:
    made = 0
    number = contract.entitlements.count()
    while True:
        month = month_of(contract, number)
        if month is None or month.start > horizon:
            return made
        with transaction.atomic():
            # Two workers meet here, and the second finds the month made.
            contract = Contract.objects.select_for_update(no_key=True).get(pk=contract.pk)
            if not Entitlement.objects.filter(contract=contract, period_start=month.start).exists():
                _make_month(contract, month, now, hold=False)
                made += 1
        number += 1


def _make_month(
    contract: Contract,
    month: Period,
    now: datetime,
    *,
    hold: bool,
    actor: Actor | None = None,
    lock_money: Callable[[], None] | None = None,
) -> Entitlement:
    """One contract month. A prepaid one holds its price where the balance covers it; `hold` says that it must.

    Spend caps may refuse the first one, which an `actor` buys; the others count when they are charged.

    A month that passed before it could be made was never delivered: nothing is held for it, and so nothing charged.
    """
    assert contract.rate_id is not None
    assert contract.firm_lots is not None
    entitlement_id = derived_id(contract.id, f"month:{month.start.isoformat()}")
    rate_per_s = contract.firm_lots * NUMERATOR_PER_LOT // settings.DELIVERY_PERIOD_S
    depth = contract.firm_lots * NUMERATOR_PER_LOT * BUCKET_SECONDS // settings.DELIVERY_PERIOD_S
    hold_id: UUID | None = None
    lots = month_lots(contract, month)
    if contract.payment == Payment.PREPAID and month.end > now and contract.freed_at is None:
        try:
            with transaction.atomic():
                hold_id = _hold_price(contract, entitlement_id, lots, now, actor=actor, lock_money=lock_money)
        except InsufficientFunds:
            if hold:
                raise
    return Entitlement.objects.create(
        id=entitlement_id,
        contract=contract,
        period_start=month.start,
        period_end=month.end,
        rate_id=contract.rate_id,
        entitled_numerator=lots_numerator(lots),
        ledger_hold_id=hold_id,
        bucket_rate_numerator_per_s=rate_per_s,
        bucket_depth_numerator=depth,
        bucket_level_numerator=depth,
        bucket_level_at=month.start,
    )


def _hold_price(
    contract: Contract,
    entitlement_id: UUID,
    volume_lots: int,
    now: datetime,
    *,
    actor: Actor | None,
    lock_money: Callable[[], None] | None,
) -> UUID:
    assert contract.rate is not None
    organization = Organization.objects.get(pk=contract.organization_id)
    price = month_price_micros(volume_lots, contract.rate.micros_per_mtok)
    hold_id = derived_id(entitlement_id, "hold")
    amount = gross_up(price, organization.tax_ppm)
    if actor is not None:
        count_purchase(
            organization_id=organization.id,
            ledger_hold_id=hold_id,
            amount_micros=amount,
            now=now,
            actor=actor,
        )
    if lock_money is not None:
        lock_money()
    open_hold(
        id=hold_id,
        account_id=account_id(
            organization_id=contract.organization_id,
            kind=AccountKind.PREPAID,
            currency=contract.currency,
            now=now,
        ),
        amount_micros=amount,
        code="committed_fee",
        reference_id=entitlement_id,
        now=now,
    )
    return hold_id


def _allocate(contract: Contract, quote: Quote, ends_at: datetime, shares: dict[UUID, int]) -> None:
    offerings = Offering.objects.in_bulk([UUID(share["offering_id"]) for share in quote.shares])
    for share in quote.shares:
        offering = offerings[UUID(share["offering_id"])]
        Allocation.objects.create(
            id=derived_id(contract.id, f"allocation:{offering.id}"),
            contract=contract,
            offering=offering,
            firm_lots=share["firm_lots"],
            rate_micros_per_mtok=share["rate_micros_per_mtok"],
            share_ppm=shares[offering.id],
        )
        add_meter_point(
            contract_id=contract.id,
            offering_id=offering.id,
            host_id=offering.host_id,
            grade_id=contract.grade_id,
            valid_from=contract.starts_at,
            valid_until=ends_at + timedelta(seconds=quote.grade.max_request_s),
        )
