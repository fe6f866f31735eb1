"""A market with a morning behind it, for pages to show: made through the services, money through the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge, Invoice, Statement
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import settle_due_periods
from marketplace.billing.services.statements import issue_statements
from marketplace.contracts.models import Contract, Quote
from marketplace.contracts.services import accept_quote, request_quote
from marketplace.ids import uuid7
from marketplace.orders.models import Bid
from marketplace.orders.services.bids import BidTerms, place_bid
from marketplace.orders.services.rounds import advance_auctions
from marketplace.periods import calendar_month, settlement_period
from metering.models import Discrepancy, DisputedUsage
from pricing.models import Grade
from providers.services import open_capacity, record_heartbeat
from tests.billing.world import LOT, PERIOD, accrue, meter, on_demand
from tests.cast import Party, Plant, fund, make_plant

HOUR = timedelta(hours=1)
HOURS_BEHIND = 3
AUCTIONS_BEHIND = timedelta(minutes=42)
MICROS_PER_LOT = 600


@dataclass(frozen=True)
class Day:
    """Rows of every kind that a page of acme, of hyperion or of the operator shows."""

    now: datetime
    grade: Grade
    plant: Plant
    second_plant: Plant
    on_demand: Contract
    committed: Contract
    quote: Quote
    bid: Bid
    charge: Charge
    invoice: Invoice
    statement: Statement
    api_key_id: UUID
    discrepancy: Discrepancy


def make_day(acme: Party, hyperion: Party, grade: Grade, *, now: datetime) -> Day:
    """`now` is the end of the story: what happened before it is settled, what is open is open."""
    begin = settlement_period(now).start - HOURS_BEHIND * HOUR
    plant = make_plant(hyperion, grade, begin, name="alpha")
    second = make_plant(
        hyperion, grade, begin, name="beta", list_rate=560_000, firm_rate=380_000, spot_floor=260_000
    )
    fund(acme, 100_000_000, begin)
    bid = place_bid(
        organization_id=acme.id,
        terms=BidTerms(grade=grade.family.slug, client_id="first", steps=((450_000, 120), (300_000, 180))),
        operation_id=uuid7(begin),
        now=begin,
        actor=SYSTEM,
    )
    _run_auctions(now - AUCTIONS_BEHIND, now)
    contract = on_demand(acme, grade, begin)
    for hour in range(HOURS_BEHIND):
        start = begin + hour * HOUR
        lots = 0
        for period in range(12):
            used = 20 + (7 * period + 11 * hour) % 60
            meter(contract, plant.offering.list_rate, plant, used * LOT, start + period * PERIOD)
            lots += used
        accrue(contract, start, lots * MICROS_PER_LOT, start)
    settle_due_periods(now=now)
    quote = _quote(acme, grade, firm_lots=40, now=now)
    committed = accept_quote(
        organization_id=acme.id,
        quote_id=_quote(acme, grade, firm_lots=50, now=now).id,
        operation_id=uuid7(now),
        now=now,
        actor=SYSTEM,
    )
    charge_committed_months(now=now)
    month = calendar_month(begin).start
    [invoice, *_] = issue_invoices(month_start=month, now=now, early=True)
    [statement, *_] = issue_statements(month_start=month, now=now, early=True)
    for one in (plant, second):
        record_heartbeat(
            host_id=one.host.id,
            boot_id="boot-1",
            ready=True,
            in_flight=2,
            registers={},
            energy_millijoules=None,
            now=now - timedelta(seconds=3),
        )
    open_capacity(now=now)
    discrepancy = Discrepancy.objects.create(
        host_id=plant.host.id,
        settlement_start=begin,
        evidence={"gateway": 1_000, "agent": 990},
        created_at=now,
    )
    DisputedUsage.objects.create(
        discrepancy=discrepancy,
        contract_id=contract.id,
        rate_id=plant.offering.list_rate_id,
        offering_id=plant.offering.id,
        period_start=begin,
        gateway_numerator=1_000,
        lower_numerator=1_000,
        withheld_numerator=0,
    )
    charge = Charge.objects.filter(organization_id=acme.id, kind="usage").order_by("-id")[0]
    return Day(
        now,
        grade,
        plant,
        second,
        contract,
        committed,
        quote,
        bid,
        charge,
        invoice,
        statement,
        acme.api_key_id,
        discrepancy,
    )


def _quote(acme: Party, grade: Grade, *, firm_lots: int, now: datetime) -> Quote:
    return request_quote(
        organization_id=acme.id,
        grade_slug=grade.family.slug,
        firm_lots=firm_lots,
        volume_lots=firm_lots * 200,
        months=1,
        starts_at=None,
        take_share_ppm=0,
        overage_policy="list",
        payment="prepaid",
        now=now,
    )


def _run_auctions(begin: datetime, end: datetime) -> None:
    """Every round from `begin` to `end`: opened at its start, closed, cleared and published at its gate."""
    start = begin
    while start + PERIOD <= end:
        advance_auctions(now=start + timedelta(seconds=1))
        open_capacity(now=start + timedelta(seconds=1))
        advance_auctions(now=start + timedelta(seconds=271))
        start += PERIOD
    advance_auctions(now=end)
