"""What the settlement of an award means for the buyers who released its lots: proceeds, and what failed of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from marketplace.billing.lines import Line, Terms, remedy_line
from marketplace.billing.models import Charge, ChargeKind, DeliveryOutcome, Settlement
from marketplace.billing.resold import failed_by_ask
from marketplace.billing.services.failing import AwardOutcome
from marketplace.billing.services.posting import Movement, books_of, record_lines, sellers_of
from marketplace.contracts.models import Contract, Entitlement
from marketplace.ids import derived_id
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import balance
from marketplace.orders.models import Bid, BidSubstitute, Trade
from pricing.rating import price_of, whole_lots

# By delivery period and offering, the lots that each ask of a release sold into a contract's award.
ResoldByPeriod = dict[datetime, dict[UUID, dict[UUID, int]]]


@dataclass(frozen=True, slots=True)
class Refund:
    """What a provider gives back to a releasing buyer for resold lots that failed, as a line of his contract."""

    contract: Contract
    movement: Movement


def resold_in(contract: Contract, awards: Sequence[Entitlement]) -> ResoldByPeriod:
    """What of a spot contract's awards is filled with released lots.

    The contract is its bid's own, or the one of a grade that the bid took for its own.
    """
    found: ResoldByPeriod = {}
    if not awards:
        return found
    named = BidSubstitute.objects.filter(contract=contract).values("bid_id")
    trades = Trade.objects.filter(
        bid_id__in=Bid.objects.filter(contract=contract).values("pk").union(named),
        auction__grade_id=contract.grade_id,
        auction__period_start__in=[award.period_start for award in awards],
        ask__release__isnull=False,
    ).values_list("auction__period_start", "ask__offering_id", "ask_id", "lots")
    for start, offering, ask, lots in trades:
        found.setdefault(start, {}).setdefault(offering, {})[ask] = lots
    return found


def credit_resellers(settlement: Settlement, lines: Sequence[Line], *, now: datetime) -> list[Charge]:
    """Show what the lines' resellers got on their own contracts: a credit of gross less fee, negative where it grew.

    The money has moved with the lines; a run with differences credits the differences.
    """
    sellers = sellers_of({key for line in lines for key in line.shares})
    net: dict[tuple[UUID, Terms], int] = defaultdict(int)
    for line in lines:
        terms = _terms_of(line)
        for key, share in line.shares.items():
            contract_id = sellers[key].contract_id
            if contract_id is not None:
                net[contract_id, terms] += share.gross_micros - share.fee_micros
    contracts = Contract.objects.in_bulk([contract_id for contract_id, _ in net])
    charges = [
        Charge(
            id=derived_id(
                settlement.id,
                f"release:{contract_id}:{terms.rate_id}:{terms.period_start.isoformat()}",
            ),
            organization_id=contracts[contract_id].organization_id,
            contract=contracts[contract_id],
            kind=ChargeKind.RELEASE,
            grade_id=terms.grade_id,
            rate_id=terms.rate_id,
            period_start=terms.period_start,
            period_end=terms.period_end,
            numerator=0,
            rate_micros_per_mtok=terms.rate_micros_per_mtok,
            amount_micros=-amount,
            created_at=now,
        )
        for (contract_id, terms), amount in net.items()
        if amount
    ]
    return Charge.objects.bulk_create(sorted(charges, key=lambda charge: charge.id))


def refunds_of(
    settlement: Settlement, outcomes: Sequence[AwardOutcome], resold: ResoldByPeriod, *, now: datetime
) -> list[Refund]:
    """What providers owe releasing buyers for resold lots that failed, less what earlier runs gave: F x contract rate.

    The buyer paid his contract for these lots, could not use them, and was paid for none of them by whoever bought
    them. Reads the outcomes of the last run: call it before this run's are recorded.
    """
    owed: dict[tuple[UUID, datetime], dict[UUID, int]] = defaultdict(lambda: defaultdict(int))
    awards = {one.award.period_start: one.award for one in outcomes}
    known = _failed_before(settlement, outcomes)
    for one in outcomes:
        start = one.award.period_start
        sold = resold.get(start, {}).get(one.offering_id)
        before = known.get((start, one.offering_id), 0)
        if not sold or one.parts.failed == before:
            continue
        lots = whole_lots(one.parts.entitled)
        after_by_ask = failed_by_ask(one.parts.failed, lots, sold)
        before_by_ask = failed_by_ask(before, lots, sold)
        for ask, seller in sellers_of(set(sold)).items():
            assert seller.contract_id is not None
            rate = _contract_rate(seller.contract_id)
            amount = price_of(after_by_ask[ask], rate) - price_of(before_by_ask[ask], rate)
            owed[seller.contract_id, start][one.offering_id] += amount
    return [
        _refund(settlement, contract_id, awards[start], by_offering, now)
        for (contract_id, start), by_offering in sorted(owed.items())
        if any(by_offering.values())
    ]


def record_refunds(refunds: Sequence[Refund], *, now: datetime) -> None:
    """Their charges and earnings; the money has moved with the run's."""
    for refund in refunds:
        movement = refund.movement
        record_lines(movement.parent, [movement.line], refund.contract, settlement=None, tax_held={}, now=now)


def _refund(
    settlement: Settlement,
    contract_id: UUID,
    award: Entitlement,
    by_offering: dict[UUID, int],
    now: datetime,
) -> Refund:
    contract = Contract.objects.select_related("rate", "organization").get(pk=contract_id)
    assert contract.rate is not None
    terms = Terms(
        contract.rate.id,
        contract.grade_id,
        contract.rate.micros_per_mtok,
        award.period_start,
        award.period_end,
    )
    line = remedy_line(terms, by_offering)
    books = books_of(contract, now=now, to_balance=True)
    if line.amount_micros > 0 and line.amount_micros > _available(contract):
        # He has spent what turns out to be too much: the market repays the provider.
        books = books.paid_by_market()
    parent = derived_id(settlement.id, f"resold:{contract_id}")
    return Refund(contract, Movement(parent, line, books, is_run=False))


def _available(contract: Contract) -> int:
    return balance(
        organization_id=contract.organization_id, kind=AccountKind.PREPAID, currency=contract.currency
    ).available_micros


def _contract_rate(contract_id: UUID) -> int:
    rate: int = Contract.objects.values_list("rate__micros_per_mtok", flat=True).get(pk=contract_id)
    return rate


def _failed_before(
    settlement: Settlement, outcomes: Sequence[AwardOutcome]
) -> dict[tuple[datetime, UUID], int]:
    rows = (
        DeliveryOutcome.objects.filter(
            contract_id=settlement.contract_id,
            period_start__in={one.award.period_start for one in outcomes},
        )
        .order_by("period_start", "offering_id", "-run")
        .distinct("period_start", "offering_id")
    )
    return {
        (start, offering): failed
        for start, offering, failed in rows.values_list("period_start", "offering_id", "failed_numerator")
    }


def _terms_of(line: Line) -> Terms:
    return Terms(line.rate_id, line.grade_id, line.rate_micros_per_mtok, line.period_start, line.period_end)
