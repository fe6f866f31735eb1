"""Placing and cancelling bids. A bid's worst case is held in the transaction that records it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Sum

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.services import Actor, check_may_buy, record_audit
from marketplace.contracts.models import Entitlement
from marketplace.contracts.purchases import count_purchase, counted_since, return_purchase
from marketplace.contracts.services import close_spot_contract, open_spot_contract
from marketplace.errors import Conflict, Forbidden, InvalidInput, NotFound
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import InsufficientFunds, account_id, close_hold, open_hold
from marketplace.orders.controls_selectors import cap_of
from marketplace.orders.models import Auction, Bid, BidRevision, BidStep
from marketplace.orders.services.phases import (
    TAKING,
    MarketClosed,
    Phase,
    gate_has_passed,
    lock_rounds,
    phase_of,
    share_rounds,
)
from marketplace.orders.services.recording import record_revision
from marketplace.orders.services.substituting import (
    adjustments_of,
    close_substitute_contracts,
    named_substitutes,
    resolve_substitutes,
    write_substitutes,
)
from marketplace.orders.terms import (
    MAX_LOTS,
    MAX_STEPS,
    BidTerms,
    check_terms,
    worst_case_with_tax,
)
from marketplace.periods import delivery_period
from pricing.models import Grade
from pricing.selectors import grade_in_force

__all__ = [
    "MAX_LOTS",
    "MAX_STEPS",
    "BidTerms",
    "MarketClosed",
    "cancel_bid",
    "end_bid",
    "lock_bid",
    "place_bid",
    "steps_at_fault",
    "terms_of",
    "worst_case_with_tax",
    "write_steps",
]

SINGLE_BID_HORIZON = timedelta(days=1)


def place_bid(
    *, organization_id: UUID, terms: BidTerms, operation_id: UUID, now: datetime, actor: Actor
) -> Bid:
    """Record a bid, hold its worst case and sign a receipt; `period_start` None makes it standing.

    The same operation, or the same terms under the same client id, again gives the same bid, whatever became of it or
    of the market since; other terms are a Conflict.
    Raises InvalidInput, MarketClosed, NotFound (grade) or InsufficientFunds; then nothing is changed.
    """
    organization = Organization.objects.get(pk=organization_id)
    if not organization.has_role(OrganizationRole.BUYER):
        raise Forbidden("Only a buyer can place a bid.")
    # First of all: a retry must not be told of a gate that closed, or of money that the bid itself holds.
    earlier = _earlier(organization_id, terms, operation_id)
    if earlier is not None:
        return earlier
    grade = grade_in_force(slug=terms.grade, at=now)
    if grade is None:
        raise NotFound(f"There is no grade {terms.grade!r} in force.", field="grade")
    check_terms(terms, cap_micros_per_mtok=cap_of(grade, at=now), now=now)
    others = resolve_substitutes(terms, currency=grade.currency, now=now)
    try:
        with transaction.atomic():
            return _record_bid(organization, grade, terms, others, operation_id, now, actor)
    except IntegrityError as error:
        if "orders_bid_client_id_unique" not in str(error):
            raise
        # Somebody placed it between our look and our insert.
        found = _earlier(organization_id, terms, operation_id)
        assert found is not None
        return found


@contextmanager
def steps_at_fault() -> Iterator[None]:
    """A balance that does not cover a bid's hold is told of the steps that ask for it."""
    try:
        yield
    except InsufficientFunds as error:
        raise InsufficientFunds(
            "The prepaid balance does not cover the bid's worst case.", field="steps"
        ) from error


def cancel_bid(*, organization_id: UUID, bid_id: UUID, now: datetime, actor: Actor) -> Bid:
    """Take a bid out of the coming books and give its hold back; refused from the no-cancel phase to publication.

    A bid that ended already is given back as it is. While the market is halted, what cannot trade binds nobody: then
    only a result not yet published does.
    """
    with transaction.atomic():
        bid, rounds = lock_bid(organization_id=organization_id, bid_id=bid_id)
        if bid.status != Bid.Status.OPEN:
            return bid
        if phase_of(rounds, bid=bid, now=now) != Phase.FREE:
            raise MarketClosed(
                "Bids cannot be cancelled between the no-cancel phase and publication.", retry_after_s=1
            )
        terms = terms_of(bid)
        end_bid(bid, status=Bid.Status.CANCELLED, now=now)
        bid.revision += 1
        bid.save(update_fields=["revision"])
        record_revision(
            bid,
            event=BidRevision.Event.CANCELLED,
            terms=terms,
            held_micros=0,
            rounds=rounds,
            now=now,
            actor=actor,
        )
        record_audit(
            organization_id=organization_id,
            actor=actor,
            action="bid.cancel",
            object_kind="bid",
            object_id=bid.id,
            now=now,
        )
    return bid


def lock_bid(*, organization_id: UUID, bid_id: UUID) -> tuple[Bid, list[Auction]]:
    """A bid of the organization and the rounds it competes in, all locked: rounds first, as everywhere.

    Raises NotFound.
    """
    known = Bid.objects.filter(pk=bid_id, organization_id=organization_id).first()
    if known is None:
        raise NotFound("There is no such bid.")
    # Neither of the two ever changes.
    rounds = lock_rounds(grade_id=known.grade_id, period_start=known.period_start)
    bids = Bid.objects.select_for_update(of=("self",)).select_related(
        "grade__family", "organization", "ledger_hold"
    )
    return bids.get(pk=bid_id), rounds


def terms_of(bid: Bid) -> BidTerms:
    """What the bid asks for now."""
    return BidTerms(
        grade=bid.grade.family.slug,
        client_id=bid.client_id,
        steps=tuple((step.rate_micros_per_mtok, step.lots) for step in bid.steps.all()),
        period_start=bid.period_start,
        min_fill_lots=bid.min_fill_lots,
        all_or_none=bid.all_or_none,
        max_total_micros_per_day=bid.max_total_micros_per_day,
        valid_until=bid.valid_until,
        substitutes=tuple(
            (row.grade.family.slug, row.adjustment_micros_per_mtok) for row in named_substitutes(bid)
        ),
    )


def end_bid(bid: Bid, *, status: Bid.Status, now: datetime) -> None:
    """Close a locked bid and release what is left of its hold. Inside the caller's transaction."""
    bid.status = status
    bid.ended_at = now
    bid.save(update_fields=["status", "ended_at"])
    if bid.ledger_hold_id is not None:
        return_purchase(ledger_hold_id=bid.ledger_hold_id, used_micros=counted_awards_micros(bid))
        close_hold(id=bid.ledger_hold_id, status="voided", now=now)
    close_spot_contract(contract_id=bid.contract_id, now=now)
    close_substitute_contracts(bid, now=now)


def counted_awards_micros(bid: Bid) -> int:
    """What was carved out of the bid's hold for its awards since spend caps first counted it, in its own grade and in
    substitutes; tax included. 0 where none did.
    """
    assert bid.ledger_hold_id is not None
    since = counted_since(bid.ledger_hold_id)
    if since is None:
        return 0
    contracts = [
        bid.contract_id,
        *bid.substitutes.filter(contract__isnull=False).values_list("contract_id", flat=True),
    ]
    awards = Entitlement.objects.filter(contract_id__in=contracts, ledger_hold__created_at__gt=since)
    return int(awards.aggregate(sum=Sum("ledger_hold__amount_micros"))["sum"] or 0)


def write_steps(bid: Bid, steps: Sequence[tuple[int, int]]) -> None:
    BidStep.objects.bulk_create(
        BidStep(bid=bid, number=number, rate_micros_per_mtok=rate, lots=lots)
        for number, (rate, lots) in enumerate(steps)
    )


def _earlier(organization_id: UUID, terms: BidTerms, operation_id: UUID) -> Bid | None:
    """What the same operation or client id placed before. Raises Conflict when that had other terms."""
    earlier = Bid.objects.filter(pk=derived_id(operation_id, "bid"), organization_id=organization_id).first()
    if earlier is None:
        earlier = Bid.objects.filter(organization_id=organization_id, client_id=terms.client_id).first()
        if earlier is not None and bytes(earlier.terms_sha256) != terms.sha256():
            raise Conflict("A bid with this client_id and other terms exists.", field="client_id")
    return earlier


def _record_bid(
    organization: Organization,
    grade: Grade,
    terms: BidTerms,
    others: Mapping[str, Grade],
    operation_id: UUID,
    now: datetime,
    actor: Actor,
) -> Bid:
    check_may_buy(organization)
    rounds = share_rounds(grade_id=grade.id, period_start=terms.period_start, now=now)
    if terms.period_start is not None:
        _check_period(grade.id, terms.period_start, now)
    bid_id = derived_id(operation_id, "bid")
    contract = open_spot_contract(
        id=derived_id(bid_id, "contract"),
        organization_id=organization.id,
        grade_id=grade.id,
        max_rate_micros_per_mtok=terms.steps[0][0],
        now=now,
    )
    hold_id = derived_id(bid_id, "hold")
    held_micros = worst_case_with_tax(terms.steps, organization.tax_ppm, adjustments_of(terms.substitutes))
    count_purchase(
        organization_id=organization.id,
        ledger_hold_id=hold_id,
        amount_micros=held_micros,
        now=now,
        actor=actor,
    )
    with steps_at_fault():
        open_hold(
            id=hold_id,
            account_id=account_id(
                organization_id=organization.id, kind=AccountKind.PREPAID, currency=grade.currency, now=now
            ),
            amount_micros=held_micros,
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
        valid_until=terms.valid_until,
        min_fill_lots=terms.min_fill_lots,
        all_or_none=terms.all_or_none,
        max_total_micros_per_day=terms.max_total_micros_per_day,
        ledger_hold_id=hold_id,
        priority_at=now,
        created_at=now,
    )
    write_steps(bid, terms.steps)
    write_substitutes(bid, terms.substitutes, others, now=now)
    record_revision(
        bid,
        event=BidRevision.Event.PLACED,
        terms=terms,
        held_micros=held_micros,
        rounds=rounds,
        now=now,
        actor=actor,
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


def _check_period(grade_id: UUID, period_start: datetime, now: datetime) -> None:
    """The rounds are locked, so the gate does not close between this check and the commit."""
    period = delivery_period(period_start)
    if period.start != period_start:
        raise InvalidInput("It must be the start of a delivery period (UTC).", field="period_start")
    if period_start > now + SINGLE_BID_HORIZON:
        raise InvalidInput("A bid for one period can be placed at most a day ahead.", field="period_start")
    rounds = Auction.objects.filter(grade_id=grade_id, period_start=period_start)
    auction = rounds.defer("book").first()
    if gate_has_passed(period_start, now) or (auction is not None and auction.status not in TAKING):
        raise MarketClosed("The gate of that period has closed.", field="period_start")
