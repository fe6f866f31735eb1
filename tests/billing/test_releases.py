"""Resold volume: who pays whom, what the market keeps, what failed; the books, the month and a re-run agree."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge, DeliveryOutcome, Earning, Invoice, InvoiceLine
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import SettlementResult, settle_contract, settle_period
from marketplace.billing.services.statements import providers_to_state
from marketplace.contracts.models import Contract, Entitlement
from marketplace.ledger.models import AccountKind, Hold
from marketplace.ledger.services import account_id, set_overdraft_limit
from marketplace.orders.models import Bid
from marketplace.orders.services.rounds import advance_auctions
from marketplace.periods import calendar_month, settlement_period
from pricing.models import Grade
from providers.models import Outage
from tests.billing.test_lifecycle import live_in, rule
from tests.billing.world import DUE_AFTER, HOUR, LOT, assert_books_balance, meter, money, set_tax
from tests.cast import Party, Plant, fund, make_grade, make_party
from tests.orders.test_releases import FUNDS, buy, let_go
from tests.orders.world import PERIOD, beat, bid_of, run_round

# 10,000 lots at 0.50 per Mtok.
FEE = 5_000_000


@pytest.fixture
def borealis(db: None, operator: Party, now: datetime) -> Party:
    """Buys spot."""
    party = make_party("Borealis", ["buyer"], now)
    fund(party, FUNDS, now)
    return party


@pytest.fixture
def contract(acme: Party, grade: Grade, plant: Plant, now: datetime) -> Contract:
    fund(acme, FUNDS, now)
    return buy(acme, grade, now)


@pytest.fixture
def award(contract: Contract, borealis: Party, plant: Plant, now: datetime) -> Entitlement:
    """60 lots at 0.20: 40 that acme released, and 20 of the host's own."""
    let_go(contract, now)
    bid_of(borealis, now, steps=((300_000, 60),))
    run_round(plant, now)
    return Entitlement.objects.select_related("rate", "contract").get(contract=Bid.objects.get().contract)


def settle(now: datetime) -> SettlementResult:
    result = settle_period(settlement_start=settlement_period(now).start, now=now + DUE_AFTER)
    assert result.failed == []
    return result


def test_the_proceeds_are_shared_by_lots_and_each_seller_pays_his_fee(
    contract: Contract, award: Entitlement, acme: Party, borealis: Party, hyperion: Party, operator: Party,
    plant: Plant, now: datetime,
) -> None:  # fmt: skip
    meter(award.contract, award.rate, plant, 45 * LOT, award.period_start)
    settle(now)
    # 45 lots at 200 micros: 9,000, a third to the host, two thirds to acme, each less five per cent.
    assert money(borealis, "prepaid") == FUNDS - 9_000
    assert money(acme, "prepaid") == FUNDS - FEE + 5_700
    assert money(hyperion, "payable") == 2_850
    assert money(operator, "fees") == 150 + 300
    spot = Charge.objects.get(kind="spot")
    assert sum(earning.gross_micros for earning in spot.earnings.all()) == spot.amount_micros == 9_000
    credit = Charge.objects.get(kind="release")
    assert (credit.contract_id, credit.organization_id) == (contract.id, acme.id)
    assert (credit.amount_micros, credit.numerator) == (-5_700, 0)
    assert check_charges(since=now - HOUR).differences == []
    assert settle(now).settled == []
    assert_books_balance()


def test_proceeds_of_lots_that_a_bid_of_another_grade_took_are_shared_too(
    contract: Contract, acme: Party, borealis: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    """The award stands under a contract of its own, which is not the bid's."""
    other = make_grade(now, slug="tiny-other", model="tiny-other")
    let_go(contract, now)
    bid = bid_of(borealis, now, grade="tiny-other", steps=((300_000, 60),), substitutes=(("tiny-chat", 0),))
    for share in (0.0, 0.85, 0.92, 0.93):
        beat(plant, now + PERIOD * share)
        advance_auctions(now=now + PERIOD * share)
    award = Entitlement.objects.select_related("rate", "contract").get(contract__kind="spot")
    assert (award.contract_id != bid.contract_id, bid.grade_id) == (True, other.id)
    meter(award.contract, award.rate, plant, 45 * LOT, award.period_start)
    settle(now)
    # As above: 45 lots at 200 micros, a third to the host.
    assert money(borealis, "prepaid") == FUNDS - 9_000
    assert money(acme, "prepaid") == FUNDS - FEE + 5_700
    assert money(hyperion, "payable") == 2_850
    assert check_charges(since=now - HOUR).differences == []
    assert_books_balance()


def test_a_levy_is_of_resold_lots_too_by_the_region_of_the_host_that_delivers_them(
    award: Entitlement, borealis: Party, plant: Plant, now: datetime
) -> None:
    live_in(borealis, "DE")
    rule(now, code="levy", title="Levy", kind="levy", rate_ppm=0, levy_micros_per_mtok=25_000)
    meter(award.contract, award.rate, plant, 45 * LOT, award.period_start)
    settle(now)
    assert money(borealis, "prepaid") == FUNDS - 9_000
    # 45,000 standard tokens from the host in eu, whoever sold them.
    assert Charge.objects.get(kind="spot").tax_held_micros == 1_125
    assert Hold.objects.get(code="tax").amount_micros == 1_125
    assert_books_balance()


def test_the_minimum_take_is_shared_like_usage(
    award: Entitlement, acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    settle(now)
    # Half of 60 lots although none was used: 6,000.
    assert money(acme, "prepaid") == FUNDS - FEE + 3_800
    assert money(hyperion, "payable") == 1_900
    assert_books_balance()


def test_late_usage_credits_the_difference(
    award: Entitlement, acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    meter(award.contract, award.rate, plant, 45 * LOT, award.period_start)
    settle(now)
    meter(award.contract, award.rate, plant, 15 * LOT, award.period_start)
    settle(now)
    credits_ = Charge.objects.filter(kind="release").values_list("amount_micros", flat=True)
    assert sorted(credits_) == [-5_700, -1_900]
    assert money(acme, "prepaid") == FUNDS - FEE + 7_600
    assert money(hyperion, "payable") == 3_800
    # And the other way: usage that was amended away.
    meter(award.contract, award.rate, plant, -30 * LOT, award.period_start)
    settle(now)
    assert money(acme, "prepaid") == FUNDS - FEE + 3_800
    assert check_charges(since=now - HOUR).differences == []
    assert_books_balance()


def test_proceeds_that_were_spent_and_must_go_back_are_borne_by_the_market(
    award: Entitlement, acme: Party, operator: Party, borealis: Party, grade: Grade, plant: Plant, now: datetime
) -> None:  # fmt: skip
    meter(award.contract, award.rate, plant, 60 * LOT, award.period_start)
    settle(now)
    # All that acme has is held by a bid of his own.
    free = FUNDS - FEE + 7_600
    bid_of(acme, now, client_id="all", steps=((4_000_000, free // 4_000),))
    before = money(acme, "prepaid")
    meter(award.contract, award.rate, plant, -30 * LOT, award.period_start)
    settle(now)
    assert money(borealis, "prepaid") == FUNDS - 6_000
    given_back = before - money(acme, "prepaid")
    assert given_back - money(operator, "operator") == 3_800
    assert 0 <= given_back < 3_800
    assert_books_balance()


def test_what_failed_is_paid_by_nobody_and_the_host_gives_the_releasing_buyer_his_rate_back(
    contract: Contract, award: Entitlement, acme: Party, borealis: Party, hyperion: Party, operator: Party,
    plant: Plant, now: datetime,
) -> None:  # fmt: skip
    Outage.objects.create(
        host=plant.host,
        kind=Outage.Kind.HEARTBEAT,
        started_at=award.period_start,
        ended_at=award.period_start + timedelta(seconds=150),
        created_at=now,
    )
    settle(now)
    outcome = DeliveryOutcome.objects.get(contract=award.contract)
    assert (outcome.entitled_numerator, outcome.failed_numerator) == (60 * LOT, 30 * LOT)
    # The minimum take is half of the thirty that could be had, 3,000; the remedy 10% of 29.4 lots, 588.
    assert money(borealis, "prepaid") == FUNDS - 3_000 + 588
    # Of his own 100 firm lots 40 are R; half of the other 60 failed, and 10% of 29 lots at 0.50 is the penalty.
    own = DeliveryOutcome.objects.get(contract=contract)
    assert (own.entitled_numerator, own.released_numerator) == (100 * LOT, 40 * LOT)
    assert (own.failed_numerator, own.remedy_micros) == (30 * LOT, 1_450)
    # Two thirds of the take less the fee, and for the twenty released lots that failed his own rate: 500 each.
    assert money(acme, "prepaid") == FUNDS - FEE + 1_900 + 10_000 + 1_450
    refund = Charge.objects.get(kind="remedy", contract=contract, settlement__isnull=True)
    assert (refund.amount_micros, refund.organization_id) == (-10_000, acme.id)
    assert [one.organization_id for one in refund.earnings.all()] == [hyperion.id]
    # The host earned 950 here and owes 10,588 and 1,450: what he has not, the market bears until he has.
    assert money(hyperion, "payable") == 0
    assert money(operator, "operator") == -(10_588 + 1_450 - 950)
    assert settle(now).settled == []
    assert_books_balance()
    # It was shorter than it looked: 75 s. What was given too much comes back, to the market first: it bore it.
    Outage.objects.filter(started_at=award.period_start).update(
        ended_at=award.period_start + timedelta(seconds=75)
    )
    settle_contract(
        contract_id=award.contract_id,
        settlement_start=settlement_period(now).start,
        now=now + 2 * DUE_AFTER,
    )
    refunds = Charge.objects.filter(kind="remedy", contract=contract, settlement__isnull=True)
    assert sorted(refunds.values_list("amount_micros", flat=True)) == [-10_000, 5_000]
    # The take grew by 500 less the fee for the host; 300 of the remedy and 5,000 of the refund repay the market.
    assert money(hyperion, "payable") == 475
    assert money(operator, "operator") == -(10_588 + 1_450 - 950) + 5_300
    assert money(acme, "prepaid") == FUNDS - FEE + 2_850 + 5_000 + 1_450
    assert_books_balance()
    # And on his own contract: 15 failed, so 14 lots' penalty of 700 instead of 1,450.
    settle_contract(
        contract_id=contract.id, settlement_start=settlement_period(now).start, now=now + 2 * DUE_AFTER
    )
    assert money(operator, "operator") == -(10_588 + 1_450 - 950) + 5_300 + 750
    assert money(acme, "prepaid") == FUNDS - FEE + 2_850 + 5_000 + 700
    assert_books_balance()


def test_in_arrears_what_was_resold_is_charged_at_the_months_end(
    acme: Party, borealis: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """40 lots: 20,000 at the contract's rate to the host, on the credit line; the proceeds on the prepaid balance."""
    limit = account_id(organization_id=acme.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now)
    set_overdraft_limit(account_id=limit, limit_micros=FUNDS)
    contract = buy(acme, grade, now, payment="arrears")
    let_go(contract, now)
    bid_of(borealis, now, steps=((300_000, 60),))
    run_round(plant, now)
    award = Entitlement.objects.get(contract=Bid.objects.get().contract)
    meter(award.contract, award.rate, plant, 45 * LOT, award.period_start)
    settle(now)
    assert (money(acme, "prepaid"), money(acme, "receivable")) == (5_700, 0)
    month = Entitlement.objects.get(contract=contract)
    last = settlement_period(month.period_end - timedelta(seconds=1)).start
    settle_period(settlement_start=last, now=last + DUE_AFTER)
    charge = Charge.objects.get(kind="true_up")
    assert (charge.numerator, charge.amount_micros) == (40 * LOT, 20_000)
    assert [one.organization_id for one in charge.earnings.all()] == [hyperion.id]
    assert (money(acme, "prepaid"), money(acme, "receivable")) == (5_700, -20_000)
    calendar = calendar_month(month.period_end)
    issue_invoices(month_start=calendar.start, now=calendar.end)
    line = {
        item.kind: item.amount_micros for item in InvoiceLine.objects.filter(invoice__organization=acme.id)
    }
    assert line == {"release": -5_700, "true_up": 20_000}
    # The credit is on his balance already: it does not lower what he owes on the other account.
    assert Invoice.objects.get(organization=acme.id).amount_due_micros == 20_000
    assert_books_balance()


def test_the_month_pays_the_host_as_if_nothing_had_been_resold(
    contract: Contract, award: Entitlement, acme: Party, hyperion: Party, operator: Party, plant: Plant, now: datetime
) -> None:  # fmt: skip
    Outage.objects.create(
        host=plant.host,
        kind=Outage.Kind.HEARTBEAT,
        started_at=award.period_start,
        ended_at=award.period_start + timedelta(seconds=150),
        created_at=now,
    )
    month = Entitlement.objects.select_related("rate").get(contract=contract)
    meter(contract, month.rate, plant, 30 * LOT, award.period_start)
    settle(now)
    last = settlement_period(month.period_end - timedelta(seconds=1))
    settle_period(settlement_start=last.start, now=last.start + DUE_AFTER)
    month.refresh_from_db()
    assert month.settled_at is not None
    assert money(acme, "deferred") == 0
    gross = sum(
        earning.gross_micros
        for earning in Earning.objects.filter(charge__contract=contract).exclude(charge__kind="remedy")
    )
    assert gross == FEE
    assert_books_balance()


def test_the_credit_stands_on_the_buyers_invoice_and_on_no_statement(
    contract: Contract, award: Entitlement, acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    set_tax(acme, 100_000)
    meter(award.contract, award.rate, plant, 45 * LOT, award.period_start)
    settle(now)
    month = calendar_month(now)
    assert providers_to_state(month=month) == [hyperion.id]
    issue_invoices(month_start=month.start, now=month.end + HOUR)
    line = InvoiceLine.objects.get(kind="release")
    assert (line.invoice.organization_id, line.amount_micros) == (acme.id, -5_700)
    assert line.description == f"Resold volume, Tiny chat, {award.period_start.date().isoformat()}"
    assert line.invoice.subtotal_micros == FEE - 5_700
    answer = acme.api.get(
        "/api/v1/exports/focus?since=2026-03-01T00:00:00Z&until=2026-04-01T00:00:00Z&format=ndjson"
    )
    assert answer.status_code == 200
    assert '"x_ChargeKind":"release"' in answer.getvalue().decode().replace(" ", "")
    assert_books_balance()


def test_a_pair_of_releases_and_a_stranger_who_stands_in_are_paid_by_what_each_supplied(
    now: datetime,
) -> None:
    """The split alone: what an offering delivers beyond its part is its provider's."""
    from uuid import UUID

    from marketplace.billing.lines import Terms, usage_line
    from marketplace.billing.resold import failed_by_ask, with_resellers

    offering, other, first, second = (UUID(int=number) for number in (1, 2, 11, 12))
    terms = Terms(UUID(int=5), UUID(int=6), 200_000, now, now + PERIOD)
    line = usage_line("spot", terms, {offering: 90 * LOT, other: LOT}, 50_000)
    shared = with_resellers(
        line, {offering: 60, other: 1}, {offering: {first: 30, second: 10}}, fee_ppm=50_000
    )
    grosses = {key: share.gross_micros for key, share in shared.shares.items()}
    assert grosses == {offering: 10_000, first: 6_000, second: 2_000, other: 200}
    assert sum(share.numerator for share in shared.shares.values()) == line.numerator
    assert failed_by_ask(7, 60, {first: 30, second: 10}) == {first: 4, second: 1}
