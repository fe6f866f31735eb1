"""Committed contracts: acceptance of a quote, the months as they come, payment and suspension."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.accounts.models import Organization
from marketplace.accounts.services import Actor, check_may_buy, record_audit
from marketplace.contracts.bonds import require_bonds
from marketplace.contracts.events import tell_of_contracts
from marketplace.contracts.models import Allocation, Contract, ContractKind, Entitlement, Payment, Quote
from marketplace.contracts.quoting import QuoteExpired, hours_of
from marketplace.errors import Conflict, NotFound
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import InsufficientFunds, account_id, open_hold
from marketplace.periods import Period, contract_month
from metering.services import add_meter_point
from pricing.models import Rate
from pricing.rating import gross_up, lots_numerator, price_of
from pricing.services import publish_rate
from pricing.units import NUMERATOR_PER_LOT
from providers.models import Offering
from providers.selectors import share_ppm_of
from providers.services import take_firm_share

BUCKET_SECONDS: Final = 60


@transaction.atomic
def accept_quote(
    *, organization_id: UUID, quote_id: UUID, operation_id: UUID, now: datetime, actor: Actor
) -> Contract:
    """Turn a quote into a contract: take its capacity in every hour of the term and hold the first month's price.

    Nothing is changed when it raises: NotFound, QuoteExpired, Conflict (accepted already), CapacityGone,
    BondNotCovered or InsufficientFunds. The same operation again gives the same contract.
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
    check_may_buy(Organization.objects.get(pk=organization_id))
    if now >= quote.expires_at or now >= quote.starts_at:
        raise QuoteExpired("The quote has expired; ask for a new one.")
    ends_at = contract_month(quote.starts_at, quote.months - 1).end
    _take_capacity(quote, ends_at, now)
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
        quote=quote,
        rate=rate,
        firm_lots=quote.firm_lots,
        volume_lots=quote.volume_lots,
        take_share_ppm=quote.take_share_ppm,
        rollover_share_ppm=quote.rollover_share_ppm,
        rollover_cap_lots=0,
        starts_at=quote.starts_at,
        ends_at=ends_at,
        created_at=now,
    )
    _allocate(contract, quote, ends_at)
    require_bonds(contract, now=now)
    _make_month(contract, contract_month(quote.starts_at, 0), now, hold=True)
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
    tell_of_contracts([contract.id], status=Contract.Status.ACTIVE, reason="accepted", now=now)
    return contract


def mark_month_paid(*, entitlement_id: UUID, now: datetime) -> None:
    """The month's price is paid: it may be delivered. A contract suspended for want of it is active again.

    A month that is over was never delivered and will not be charged: it keeps nobody from the running one.
    """
    with transaction.atomic():
        contract_id = Entitlement.objects.values_list("contract_id", flat=True).get(pk=entitlement_id)
        Contract.objects.select_for_update(no_key=True).get(pk=contract_id)
        if not Entitlement.objects.filter(pk=entitlement_id, paid_at__isnull=True).update(paid_at=now):
            return
        unpaid = Entitlement.objects.filter(
            contract_id=contract_id, period_start__lte=now, period_end__gt=now, paid_at__isnull=True
        )
        if not unpaid.exists() and Contract.objects.filter(
            pk=contract_id, status=Contract.Status.SUSPENDED
        ).update(status=Contract.Status.ACTIVE):
            tell_of_contracts([contract_id], status=Contract.Status.ACTIVE, reason="paid", now=now)


@transaction.atomic
def suspend_contract(*, contract_id: UUID, now: datetime) -> None:
    """A month could not be paid: nothing is delivered on it until it is. Doing it again changes nothing."""
    if Contract.objects.filter(
        pk=contract_id, kind=ContractKind.COMMITTED, status=Contract.Status.ACTIVE
    ).update(status=Contract.Status.SUSPENDED):
        tell_of_contracts([contract_id], status=Contract.Status.SUSPENDED, reason="month_unpaid", now=now)


def mark_entitlement_settled(*, entitlement_id: UUID, now: datetime) -> None:
    """Billing has settled the period: nothing of it is outstanding. Doing it again changes nothing."""
    Entitlement.objects.filter(pk=entitlement_id, settled_at__isnull=True).update(settled_at=now)


def advance_contracts(*, now: datetime) -> int:
    """Make the contract months that begin within a delivery period, and end contracts whose term is over.

    Returns how many rows it made or ended. Doing it again, or from two workers at once, changes nothing.
    """
    done = 0
    horizon = now + timedelta(seconds=settings.DELIVERY_PERIOD_S)
    running = Contract.objects.filter(
        kind=ContractKind.COMMITTED, status__in=(Contract.Status.ACTIVE, Contract.Status.SUSPENDED)
    )
    for contract in running.order_by("pk"):
        assert contract.ends_at is not None
        if contract.ends_at <= now:
            done += _end(contract.pk, now)
            continue
        done += _make_due_months(contract, horizon, now)
    return done


@transaction.atomic
def _end(contract_id: UUID, now: datetime) -> int:
    running = Contract.objects.filter(pk=contract_id).exclude(status=Contract.Status.ENDED)
    ended = running.update(status=Contract.Status.ENDED)
    if ended:
        tell_of_contracts([contract_id], status=Contract.Status.ENDED, reason="term_over", now=now)
    return ended


def month_price_micros(volume_lots: int, rate_micros_per_mtok: int) -> int:
    """The price of a prepaid month, V x rate, net of tax."""
    return price_of(lots_numerator(volume_lots), rate_micros_per_mtok)


def _make_due_months(contract: Contract, horizon: datetime, now: datetime) -> int:
    made = 0
    number = contract.entitlements.count()
    while True:
        month = contract_month(contract.starts_at, number)
        assert contract.ends_at is not None
        if month.start >= contract.ends_at or month.start > horizon:
            return made
        with transaction.atomic():
            # Two workers meet here, and the second finds the month made.
            Contract.objects.select_for_update(no_key=True).get(pk=contract.pk)
            if not Entitlement.objects.filter(contract=contract, period_start=month.start).exists():
                _make_month(contract, month, now, hold=False)
                made += 1
        number += 1


def _make_month(contract: Contract, month: Period, now: datetime, *, hold: bool) -> Entitlement:
    """One contract month. A prepaid one holds its price where the balance covers it; `hold` says that it must."""
    assert contract.rate_id is not None
    assert contract.firm_lots is not None
    assert contract.volume_lots is not None
    entitlement_id = derived_id(contract.id, f"month:{month.start.isoformat()}")
    rate_per_s = contract.firm_lots * NUMERATOR_PER_LOT // settings.DELIVERY_PERIOD_S
    depth = contract.firm_lots * NUMERATOR_PER_LOT * BUCKET_SECONDS // settings.DELIVERY_PERIOD_S
    hold_id: UUID | None = None
    if contract.payment == Payment.PREPAID:
        try:
            with transaction.atomic():
                hold_id = _hold_price(contract, entitlement_id, now)
        except InsufficientFunds:
            if hold:
                raise
    return Entitlement.objects.create(
        id=entitlement_id,
        contract=contract,
        period_start=month.start,
        period_end=month.end,
        rate_id=contract.rate_id,
        entitled_numerator=lots_numerator(contract.volume_lots),
        ledger_hold_id=hold_id,
        bucket_rate_numerator_per_s=rate_per_s,
        bucket_depth_numerator=depth,
        bucket_level_numerator=depth,
        bucket_level_at=month.start,
    )


def _hold_price(contract: Contract, entitlement_id: UUID, now: datetime) -> UUID:
    assert contract.rate is not None
    assert contract.volume_lots is not None
    organization = Organization.objects.get(pk=contract.organization_id)
    price = month_price_micros(contract.volume_lots, contract.rate.micros_per_mtok)
    hold_id = derived_id(entitlement_id, "hold")
    open_hold(
        id=hold_id,
        account_id=account_id(
            organization_id=contract.organization_id,
            kind=AccountKind.PREPAID,
            currency=contract.currency,
            now=now,
        ),
        amount_micros=gross_up(price, organization.tax_ppm),
        code="committed_fee",
        reference_id=entitlement_id,
        now=now,
    )
    return hold_id


def _take_capacity(quote: Quote, ends_at: datetime, now: datetime) -> None:
    """The quoted shares in every hour of the term, host by host in id order (the locking rule of capacity)."""
    hours = hours_of(quote.starts_at, ends_at)
    offerings = Offering.objects.in_bulk([UUID(share["offering_id"]) for share in quote.shares])
    share_by_host: dict[UUID, int] = defaultdict(int)
    for share in quote.shares:
        offering = offerings[UUID(share["offering_id"])]
        share_by_host[offering.host_id] += share_ppm_of(
            share["firm_lots"], offering, settings.DELIVERY_PERIOD_S
        )
    for host_id in sorted(share_by_host):
        take_firm_share(
            host_id=host_id, hours=hours, share_ppm=share_by_host[host_id], now=now, starts_at=quote.starts_at
        )


def _allocate(contract: Contract, quote: Quote, ends_at: datetime) -> None:
    offerings = Offering.objects.in_bulk([UUID(share["offering_id"]) for share in quote.shares])
    for share in quote.shares:
        offering = offerings[UUID(share["offering_id"])]
        Allocation.objects.create(
            id=derived_id(contract.id, f"allocation:{offering.id}"),
            contract=contract,
            offering=offering,
            firm_lots=share["firm_lots"],
            rate_micros_per_mtok=share["rate_micros_per_mtok"],
        )
        add_meter_point(
            contract_id=contract.id,
            offering_id=offering.id,
            host_id=offering.host_id,
            grade_id=contract.grade_id,
            valid_from=contract.starts_at,
            valid_until=ends_at + timedelta(seconds=quote.grade.max_request_s),
        )
