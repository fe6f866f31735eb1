"""Contracts that end early or are amended: notice, fee, what comes back, whose capacity is free; all or nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.settling import settle_due_periods, settle_period
from marketplace.billing.services.terminating import EndedEarly, amend, terminate_contract
from marketplace.contracts.ending import quote_amendment
from marketplace.contracts.models import Contract, ContractEvent, Entitlement, Quote
from marketplace.contracts.services import accept_quote, advance_contracts
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.services import InsufficientFunds
from marketplace.periods import settlement_period
from pricing.models import Grade
from providers.capacity import CapacityGone
from providers.models import HostHour
from tests.billing.test_month_ends import buy
from tests.billing.world import DUE_AFTER, FUNDS, HOUR, LOT, assert_books_balance, meter, money
from tests.cast import Party, Plant, fund

DAY = timedelta(days=1)
RATE = 500  # micros per lot


def end(
    contract: Contract, now: datetime, ends_at: datetime | None = None, *, operation_id: UUID | None = None
) -> EndedEarly:
    return terminate_contract(
        organization_id=contract.organization_id,
        contract_id=contract.id,
        ends_at=ends_at,
        reason="moved away",
        operation_id=operation_id or uuid7(now),
        now=now,
        actor=SYSTEM,
    )


def sold(plant: Plant, at: datetime) -> int:
    hour = at.replace(minute=0, second=0, microsecond=0)
    return HostHour.objects.get(host=plant.host, hour_start=hour).sold_ppm


def test_ending_early_cuts_the_month_by_seconds_and_charges_a_quarter_of_the_take_left(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=3)
    start, term = contract.starts_at, contract.ends_at
    assert term is not None
    charge_committed_months(now=start)
    month = Entitlement.objects.select_related("rate").get()
    meter(contract, month.rate, plant, 100 * LOT, start)
    settle_period(settlement_start=start, now=start + DUE_AFTER)
    operation = uuid7()
    ended = end(contract, start + HOUR, operation_id=operation)
    contract.refresh_from_db()
    month.refresh_from_db()
    # March has 31 days, and the notice is 30 days and begins an hour after the start.
    assert contract.ends_at == month.period_end == start + HOUR + 30 * DAY
    seconds, whole = 30 * 86_400 + 3_600, 31 * 86_400
    lots = 10_000 * seconds // whole
    assert month.entitled_numerator == lots * LOT
    left = 30_000 - lots
    assert ended.fee_micros == left * 8 // 10 * RATE // 4
    assert ended.refund_micros == (10_000 - lots) * RATE
    paid = lots * RATE + ended.fee_micros
    assert money(acme, "prepaid") == FUNDS - paid
    assert (sold(plant, term - HOUR), sold(plant, contract.ends_at - HOUR) > 0) == (0, True)
    event = ContractEvent.objects.get(contract=contract, kind="terminated")
    assert (event.from_status, event.to_status, event.reason) == ("active", "active", "moved away")
    # The same click again: the same answer, and nothing more.
    again = end(contract, start + 2 * HOUR, operation_id=operation)
    assert (again.fee_micros, again.refund_micros) == (ended.fee_micros, ended.refund_micros)
    assert money(acme, "prepaid") == FUNDS - paid
    # The rest of the shorter month goes to its providers, and the contract ends.
    advance_contracts(now=contract.ends_at)
    last = settlement_period(contract.ends_at - timedelta(seconds=1)).start
    settle_period(settlement_start=last, now=last + DUE_AFTER)
    contract.refresh_from_db()
    assert (contract.status, Entitlement.objects.count()) == ("ended", 1)
    assert money(acme, "deferred") == 0
    assert money(hyperion, "payable") + money(operator, "fees") == paid
    assert settle_due_periods(now=contract.ends_at + 2 * DUE_AFTER).settled == []
    assert_books_balance()


def test_what_is_refused_changes_nothing(
    acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 5_000_000, now)
    contract = buy(acme, grade, now, months=3)
    term = contract.ends_at
    assert term is not None
    start = contract.starts_at
    for ends_at in (start + 20 * DAY, start + 40 * DAY + timedelta(seconds=1), term, term + DAY):
        with pytest.raises(InvalidInput) as refused:
            end(contract, now, ends_at)
        assert refused.value.field == "ends_at"
    with pytest.raises(NotFound):
        terminate_contract(
            organization_id=mallory.id,
            contract_id=contract.id,
            ends_at=None,
            reason="mine",
            operation_id=uuid7(),
            now=now,
            actor=SYSTEM,
        )
    # The first month's hold takes all he has: the fee is not covered.
    with pytest.raises(InsufficientFunds):
        end(contract, now)
    contract.refresh_from_db()
    assert contract.ends_at == term
    assert sold(plant, term - HOUR) > 0
    assert not ContractEvent.objects.filter(kind="terminated").exists()
    assert not Charge.objects.exists()


def test_an_operation_done_again_answers_for_itself_alone(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Ended twice in one moment, as a test clock that stands still has them: later first, then earlier."""
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=3)
    start = contract.starts_at
    charge_committed_months(now=start)
    first, second = uuid7(), uuid7()
    ends = {first: start + 62 * DAY, second: None}
    done = {one: end(contract, start, ends[one], operation_id=one) for one in (first, second)}
    assert done[first].fee_micros > 0 < done[second].fee_micros
    assert (done[first].refund_micros, done[second].refund_micros > 0) == (0, True)
    for one in (first, second):
        again = end(contract, start, ends[one], operation_id=one)
        assert (again.fee_micros, again.refund_micros) == (done[one].fee_micros, done[one].refund_micros)
    assert_books_balance()


def amendment(contract: Contract, now: datetime, starts_at: datetime, **terms: int) -> Quote:
    wanted = {"firm_lots": 100, "volume_lots": 10_000, "months": 2} | terms
    return quote_amendment(
        organization_id=contract.organization_id,
        contract_id=contract.id,
        starts_at=starts_at,
        **wanted,
        now=now,
    )


def accept(contract: Contract, quote: Quote, now: datetime) -> EndedEarly:
    return amend(
        organization_id=contract.organization_id,
        contract_id=contract.id,
        quote_id=quote.id,
        operation_id=uuid7(now),
        now=now,
        actor=SYSTEM,
    )


def test_an_amendment_takes_the_place_of_the_contract_and_uses_its_capacity(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """The host sells 242 lots a period: 200 in place of 100 fit only because the 100 are given back."""
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=3)
    charge_committed_months(now=contract.starts_at)
    boundary = Entitlement.objects.get().period_end
    term = contract.ends_at
    assert term is not None
    share = sold(plant, boundary)
    later = contract.starts_at + DAY
    quote = amendment(contract, later, boundary, firm_lots=200, volume_lots=20_000)
    with pytest.raises(Conflict):
        accept_quote(
            organization_id=acme.id, quote_id=quote.id, operation_id=uuid7(), now=later, actor=SYSTEM
        )
    done = accept(contract, quote, later)
    contract.refresh_from_db()
    successor = done.successor
    assert successor is not None
    assert (contract.ends_at, successor.starts_at, successor.amends_id) == (boundary, boundary, contract.id)
    assert (done.fee_micros, done.refund_micros) == (0, 0)
    assert sold(plant, boundary - HOUR) == share
    assert sold(plant, boundary) == sold(plant, term - HOUR) > share
    assert ContractEvent.objects.get(contract=contract, kind="amended").detail["lots_left"] == 20_000
    with pytest.raises(InvalidInput):
        accept(contract, quote, later)
    assert_books_balance()


def test_an_hour_inside_which_an_amendment_begins_is_taken_once_for_both(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Of the 242 lots that are sold 150 and then 200: the hour has the larger share, whatever becomes of the first."""
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=3, firm_lots=150, starts_at=now + HOUR + timedelta(minutes=5))
    charge_committed_months(now=contract.starts_at)
    boundary = Entitlement.objects.get().period_end
    later = contract.starts_at + DAY
    share = sold(plant, boundary)
    grown = accept(contract, amendment(contract, later, boundary, firm_lots=200), later).successor
    assert grown is not None
    whole = sold(plant, boundary + HOUR)
    assert (sold(plant, boundary - HOUR), sold(plant, boundary)) == (share, whole)
    assert whole > share
    with pytest.raises(Conflict):
        amendment(contract, later, boundary)
    # Ended before that, it gives back nothing of the hour.
    end(contract, later - DAY, boundary - HOUR)
    assert (sold(plant, boundary - HOUR), sold(plant, boundary)) == (share, whole)
    advance_contracts(now=boundary)
    last = Entitlement.objects.get(contract=grown).period_end
    quote = amendment(grown, last - 3 * DAY, last, firm_lots=100, volume_lots=9_000)
    assert accept(grown, quote, last - 3 * DAY).successor is not None
    assert (sold(plant, last - HOUR), sold(plant, last)) == (whole, whole)
    assert 0 < sold(plant, last + HOUR) < share
    assert_books_balance()


def test_committing_to_less_costs_the_fee_of_the_difference(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=3)
    charge_committed_months(now=contract.starts_at)
    boundary = Entitlement.objects.get().period_end
    later = contract.starts_at + DAY
    done = accept(contract, amendment(contract, later, boundary, firm_lots=50, volume_lots=4_000), later)
    # 20,000 lots were left, 8,000 come instead: a quarter of the take of 12,000.
    assert done.fee_micros == 12_000 * 8 // 10 * RATE // 4
    fee = Charge.objects.get(kind="termination")
    assert (fee.amount_micros, fee.numerator) == (done.fee_micros, 0)
    assert sum(earning.gross_micros for earning in fee.earnings.all()) == done.fee_micros
    assert_books_balance()


def test_an_amendment_begins_with_a_later_month_and_fits_or_nothing_changes(
    acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    fund(mallory, FUNDS, now)
    contract = buy(acme, grade, now, months=3)
    start = contract.starts_at
    for starts_at in (start, start + DAY, start + 200 * DAY):
        with pytest.raises(InvalidInput) as refused:
            amendment(contract, now, starts_at)
        assert refused.value.field == "starts_at"
    charge_committed_months(now=start)
    boundary = Entitlement.objects.get().period_end
    quote = amendment(contract, start + DAY, boundary, firm_lots=200)
    # Somebody else takes what the quote counted on.
    buy(mallory, grade, start + DAY, firm_lots=100, starts_at=boundary)
    share, term = sold(plant, boundary), contract.ends_at
    with pytest.raises(CapacityGone):
        accept(contract, quote, start + DAY)
    contract.refresh_from_db()
    assert (contract.ends_at, sold(plant, boundary)) == (term, share)
    assert Contract.objects.filter(organization=acme.id, kind="committed").count() == 1
