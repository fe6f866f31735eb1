"""Placing and cancelling bids. A bid's worst case is held in the transaction that records it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.services import Actor, record_audit
from marketplace.contracts.services import close_spot_contract, open_spot_contract
from marketplace.errors import Conflict, DomainError, Forbidden, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, close_hold, open_hold
from marketplace.orders.models import Auction, Bid, BidStep
from marketplace.orders.pairing import worst_case_micros
from marketplace.periods import delivery_period
from pricing.models import Grade
from pricing.rating import gross_up
from pricing.selectors import grade_in_force
from pricing.units import Micros, Ppm

MAX_STEPS = 10
MAX_LOTS = 1_000_000_000
CAP_MULTIPLE = 10
SINGLE_BID_HORIZON = timedelta(days=1)


class MarketClosed(DomainError):
    """The book of that period takes no such order now."""

    code = "market_closed"
    http_status = 409
    title = "The market is closed for this"


@dataclass(frozen=True, slots=True)
class BidTerms:
    """What a buyer asks for. `steps` are (rate in micros per Mtok, lots), rates not rising."""

    grade: str
    client_id: str
    steps: Sequence[tuple[int, int]]
    period_start: datetime | None = None
    min_fill_lots: int = 0
    all_or_none: bool = False
    max_total_micros_per_day: int | None = None

    def sha256(self) -> bytes:
        return hashlib.sha256(json.dumps(asdict(self), default=str, sort_keys=True).encode()).digest()


def place_bid(
    *, organization_id: UUID, terms: BidTerms, operation_id: UUID, now: datetime, actor: Actor
) -> Bid:
    """Record a bid and hold its worst case; `period_start` None makes it standing.

    The same operation, or the same terms under the same client id, again gives the same bid; other terms are a
    Conflict.
    Raises InvalidInput, MarketClosed, NotFound (grade) or InsufficientFunds; then nothing is changed.
    """
    organization = Organization.objects.get(pk=organization_id)
    if not organization.has_role(OrganizationRole.BUYER):
        raise Forbidden("Only a buyer can place a bid.")
    grade = grade_in_force(slug=terms.grade, at=now)
    if grade is None:
        raise NotFound(f"There is no grade {terms.grade!r} in force.", field="grade")
    _check_steps(terms, grade)
    try:
        with transaction.atomic():
            return _record_bid(organization, grade, terms, operation_id, now, actor)
    except IntegrityError as error:
        if "orders_bid_client_id_unique" not in str(error):
            raise
        earlier = Bid.objects.get(organization_id=organization_id, client_id=terms.client_id)
        if bytes(earlier.terms_sha256) == terms.sha256():
            return earlier
        raise Conflict("A bid with this client_id and other terms exists.", field="client_id") from error


def cancel_bid(*, organization_id: UUID, bid_id: UUID, now: datetime, actor: Actor) -> Bid:
    """Take a bid out of the coming books and give its hold back; refused from the no-cancel phase to publication."""
    with transaction.atomic():
        bid = Bid.objects.select_for_update().filter(pk=bid_id, organization_id=organization_id).first()
        if bid is None:
            raise NotFound("There is no such bid.")
        if bid.status != Bid.Status.OPEN:
            return bid
        if _round_is_binding(bid.grade_id, now):
            raise MarketClosed(
                "Bids cannot be cancelled between the no-cancel phase and publication.", retry_after_s=1
            )
        end_bid(bid, status=Bid.Status.CANCELLED, now=now)
        record_audit(
            organization_id=organization_id,
            actor=actor,
            action="bid.cancel",
            object_kind="bid",
            object_id=bid.id,
            now=now,
        )
    return bid


def end_bid(bid: Bid, *, status: Bid.Status, now: datetime) -> None:
    """Close a locked bid and release what is left of its hold. Inside the caller's transaction."""
    bid.status = status
    bid.ended_at = now
    bid.save(update_fields=["status", "ended_at"])
    if bid.ledger_hold_id is not None:
        close_hold(id=bid.ledger_hold_id, status="voided", now=now)
    close_spot_contract(contract_id=bid.contract_id, now=now)


def worst_case_with_tax(steps: Sequence[tuple[int, int]], tax_ppm: int) -> int:
    return gross_up(Micros(worst_case_micros(steps)), Ppm(tax_ppm))


def _record_bid(
    organization: Organization, grade: Grade, terms: BidTerms, operation_id: UUID, now: datetime, actor: Actor
) -> Bid:
    if terms.period_start is not None:
        _check_period(grade.id, terms.period_start, now)
    bid_id = derived_id(operation_id, "bid")
    earlier = Bid.objects.filter(pk=bid_id).first()
    if earlier is not None:
        return earlier
    contract = open_spot_contract(
        id=derived_id(bid_id, "contract"),
        organization_id=organization.id,
        grade_id=grade.id,
        max_rate_micros_per_mtok=terms.steps[0][0],
        now=now,
    )
    hold_id = derived_id(bid_id, "hold")
    open_hold(
        id=hold_id,
        account_id=account_id(
            organization_id=organization.id, kind=AccountKind.PREPAID, currency=grade.currency, now=now
        ),
        amount_micros=worst_case_with_tax(terms.steps, organization.tax_ppm),
        code="bid",
        reference_id=bid_id,
        now=now,
    )
    bid = Bid.objects.create(
        id=bid_id,
        organization=organization,
        grade=grade,
        contract=contract,
        client_id=terms.client_id,
        terms_sha256=terms.sha256(),
        standing=terms.period_start is None,
        period_start=terms.period_start,
        min_fill_lots=terms.min_fill_lots,
        all_or_none=terms.all_or_none,
        max_total_micros_per_day=terms.max_total_micros_per_day,
        ledger_hold_id=hold_id,
        created_at=now,
    )
    BidStep.objects.bulk_create(
        BidStep(bid=bid, number=number, rate_micros_per_mtok=rate, lots=lots)
        for number, (rate, lots) in enumerate(terms.steps)
    )
    record_audit(
        organization_id=organization.id,
        actor=actor,
        action="bid.place",
        object_kind="bid",
        object_id=bid.id,
        detail={"grade": terms.grade, "steps": [list(step) for step in terms.steps]},
        now=now,
    )
    return bid


def _check_steps(terms: BidTerms, grade: Grade) -> None:
    if not 1 <= len(terms.steps) <= MAX_STEPS:
        raise InvalidInput(f"A bid has 1 to {MAX_STEPS} steps.", field="steps")
    cap = CAP_MULTIPLE * grade.reference_rate_micros_per_mtok
    previous = cap
    for number, (rate, lots) in enumerate(terms.steps):
        if not 1 <= rate <= cap:
            raise InvalidInput(
                f"A rate lies between 1 and the cap of {cap} micros per Mtok.",
                field=f"steps.{number}.rate_micros_per_mtok",
            )
        if rate > previous:
            raise InvalidInput(
                "Rates do not rise along the steps.", field=f"steps.{number}.rate_micros_per_mtok"
            )
        if not 1 <= lots <= MAX_LOTS:
            raise InvalidInput(f"A step has 1 to {MAX_LOTS} lots.", field=f"steps.{number}.lots")
        previous = rate
    total = sum(lots for _, lots in terms.steps)
    if total > MAX_LOTS:
        raise InvalidInput(f"A bid has at most {MAX_LOTS} lots.", field="steps")
    if not 0 <= terms.min_fill_lots <= total:
        raise InvalidInput("min_fill_lots cannot exceed the bid's lots.", field="min_fill_lots")
    if terms.max_total_micros_per_day is not None and terms.max_total_micros_per_day < 1:
        raise InvalidInput("A daily budget is at least 1 micro.", field="max_total_micros_per_day")


def _check_period(grade_id: UUID, period_start: datetime, now: datetime) -> None:
    period = delivery_period(period_start)
    if period.start != period_start:
        raise InvalidInput("It must be the start of a delivery period (UTC).", field="period_start")
    if period_start > now + SINGLE_BID_HORIZON:
        raise InvalidInput("A bid for one period can be placed at most a day ahead.", field="period_start")
    # The lock keeps the gate from closing between this check and the commit.
    auction = (
        Auction.objects.select_for_update(of=("self",))
        .filter(grade_id=grade_id, period_start=period_start)
        .first()
    )
    # Compared from `now`: the year 1 has no moment before it.
    gate_passed = now + timedelta(seconds=settings.DELIVERY_PERIOD_S) / 10 >= period_start
    if gate_passed or (
        auction is not None and auction.status not in (Auction.Status.OPEN, Auction.Status.NO_CANCEL)
    ):
        raise MarketClosed("The gate of that period has closed.", field="period_start")


def _round_is_binding(grade_id: UUID, now: datetime) -> bool:
    binding = (Auction.Status.NO_CANCEL, Auction.Status.CLOSED, Auction.Status.CLEARED)
    rounds = Auction.objects.select_for_update().filter(grade_id=grade_id)
    return (
        rounds.filter(status__in=binding).exists()
        or rounds.filter(status=Auction.Status.OPEN, no_cancel_at__lte=now).exists()
    )
