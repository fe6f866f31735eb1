"""Overage on the books: its own line at its own rate, paid as the contract is, earned by who delivered it."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest
from msgspec.structs import replace

from marketplace.accounts.services import SYSTEM
from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge, Earning, MonthOutcome
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.holds import open_part
from marketplace.contracts.models import Contract, Entitlement, Hold
from marketplace.contracts.services import accept_quote, capture_hold, open_hold, request_quote
from marketplace.contracts.spot import set_period_rate
from marketplace.ids import uuid7
from marketplace.ledger.models import AccountKind
from marketplace.ledger.services import account_id, set_overdraft_limit
from marketplace.periods import delivery_period, settlement_period
from metering.models import Discrepancy, UsageEvent
from metering.services import (
    accept_batch,
    accept_discrepancy,
    amend_event,
    gateway_source,
    ingest_batches,
)
from metering.usage import GENESIS_DIGEST, Flag, encode_batch, encode_event
from pricing.models import Grade, Rate
from pricing.units import Bucket
from providers.models import Host
from tests.billing.test_disputes import agent_of, event_of
from tests.billing.test_evidence_kinds import verified
from tests.billing.test_grants import give
from tests.billing.test_invoicing import APRIL_2, MARCH
from tests.billing.world import DUE_AFTER, FUNDS, HOUR, LOT, assert_books_balance, money, pending
from tests.cast import Party, Plant, fund, make_party, make_plant

OVERAGE_RATE, FIRM_RATE = 400_000, 500_000


def begin(
    buyer: Party,
    grade: Grade,
    now: datetime,
    *,
    policy: str = "spot",
    payment: str = "prepaid",
    volume_lots: int = 2,
) -> Contract:
    """A committed contract that runs, its month paid; the overage rate of its first period is published."""
    fund(buyer, FUNDS, now)
    line = account_id(organization_id=buyer.id, kind=AccountKind.RECEIVABLE, currency="USD", now=now)
    set_overdraft_limit(account_id=line, limit_micros=FUNDS)
    start = now + HOUR
    quote = request_quote(
        organization_id=buyer.id, grade_slug=grade.family.slug, firm_lots=100, volume_lots=volume_lots, months=1,
        starts_at=start, take_share_ppm=1_000_000, overage_policy=policy, payment=payment, now=now,
    )  # fmt: skip
    contract = accept_quote(
        organization_id=buyer.id, quote_id=quote.id, operation_id=uuid7(), now=now, actor=SYSTEM
    )
    charge_committed_months(now=start)
    Host.objects.update(last_heartbeat_at=start + HOUR, ready=True)
    set_period_rate(
        grade_id=grade.id, period_start=delivery_period(start).start, clearing_rate_micros_per_mtok=OVERAGE_RATE,
        overage_micros_per_mtok=OVERAGE_RATE, now=start,
    )  # fmt: skip
    return contract


def end(hold: Hold, plant: Plant, output_tokens: int, *flags: Flag) -> None:
    """The hold is captured as the gateway does: its event says the same."""
    event = event_of(hold.contract, plant, hold.opened_at, 0, *flags)
    line = encode_event(
        replace(
            event, id=hold.pk, request_id=hold.request_id, part=hold.part, rate_id=hold.rate_id,
            period_start=hold.period_start, occurred_at=hold.opened_at, buckets={Bucket.OUTPUT: output_tokens},
        )
    )  # fmt: skip
    done = capture_hold(
        id=hold.pk, numerator=output_tokens * 10**6, event=line + b"\n",
        source_id=gateway_source(hold.opened_at).id, now=hold.opened_at,
    )  # fmt: skip
    assert (done.outcome, done.capped) == ("ok", False)


def carry(contract: Contract, plant: Plant, tokens: int, *exclude: Plant) -> Hold:
    """A request of so many tokens, held, captured whole and counted."""
    at, hold_id = contract.starts_at, uuid7(contract.starts_at)
    opened = open_hold(
        id=hold_id, organization_id=contract.organization_id, grade_ids=[contract.grade_id],
        numerators=[tokens * 10**6], contract_id=contract.id, exclude=[one.offering.id for one in exclude], now=at,
    )  # fmt: skip
    assert (opened.outcome, opened.offering_id) == ("ok", plant.offering.id)
    hold = Hold.objects.get(pk=hold_id)
    end(hold, plant, tokens)
    ingest_batches(now=at)
    return hold


def carry_split(contract: Contract, plant: Plant, tokens: int, first: int) -> tuple[Hold, Hold]:
    """A request of so many tokens, of which the contract has so many left."""
    at, hold_id, over_id = contract.starts_at, uuid7(contract.starts_at), uuid7(contract.starts_at)
    opened = open_hold(
        id=hold_id, organization_id=contract.organization_id, grade_ids=[contract.grade_id],
        numerators=[tokens * 10**6], contract_id=contract.id, may_split=True, now=at,
    )  # fmt: skip
    assert (opened.outcome, opened.amount_numerator) == ("ok", first * 10**6)
    over = open_part(
        hold_id=hold_id, id=over_id, amount_numerator=(tokens - first) * 10**6, is_admission=True, now=at
    )
    assert over.outcome == "ok"
    parts = Hold.objects.get(pk=hold_id), Hold.objects.get(pk=over_id)
    end(parts[0], plant, first, Flag.SPLIT)
    end(parts[1], plant, tokens - first, Flag.SPLIT)
    ingest_batches(now=at)
    return parts


def settle(contract: Contract) -> None:
    start = settlement_period(contract.starts_at).start
    result = settle_period(settlement_start=start, now=start + DUE_AFTER)
    assert result.failed == []
    assert settle_period(settlement_start=start, now=start + DUE_AFTER).settled == []


def lines(contract_id: UUID) -> dict[str, tuple[int, int, int]]:
    """Kind to (numerator, rate, amount)."""
    return {
        charge.kind: (charge.numerator, charge.rate_micros_per_mtok, charge.amount_micros)
        for charge in Charge.objects.filter(contract_id=contract_id).exclude(kind="committed_fee")
    }


@pytest.mark.parametrize("payment", ["prepaid", "arrears"])
def test_overage_is_a_line_of_the_contract_earned_by_who_served_it(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime, payment: str
) -> None:
    contract = begin(acme, grade, now, payment=payment)
    zenith = make_party("Zenith", ["provider"], now)
    stranger = make_plant(zenith, grade, now, name="stranger", list_rate=900_000)
    Host.objects.update(last_heartbeat_at=contract.starts_at + HOUR, ready=True)
    balance, owed = money(acme, "prepaid"), money(acme, "receivable")
    carry(contract, plant, 2_000)
    hold = carry(contract, stranger, 3_000, plant)
    assert (hold.contract_id, hold.entitlement_id) == (contract.id, None)
    settle(contract)
    used = (2 * LOT, 0, 0) if payment == "prepaid" else (2 * LOT, FIRM_RATE, 1_000)
    assert lines(contract.id) == {"usage": used, "overage": (3 * LOT, OVERAGE_RATE, 1_200)}
    earning = Earning.objects.get(charge__kind="overage")
    assert (earning.organization_id, earning.gross_micros, earning.fee_micros) == (zenith.id, 1_200, 60)
    assert (money(zenith, "payable"), money(hyperion, "payable"), money(operator, "fees")) == (
        1_140,
        950,
        110,
    )
    if payment == "prepaid":
        assert (money(acme, "prepaid"), money(acme, "receivable")) == (balance - 1_200, owed)
    else:
        assert (money(acme, "prepaid"), money(acme, "receivable")) == (balance, owed - 2_200)
    assert (pending(acme), pending(acme, "receivable")) == (0, 0)
    assert check_charges(since=now).differences == []
    assert_books_balance()
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    assert {line.kind for line in invoice.lines.all()} >= {"usage", "overage"}
    verified(invoice)


@pytest.mark.parametrize(("policy", "rate"), [("spot", OVERAGE_RATE), ("list", 600_000)])
def test_both_parts_of_a_request_are_billed_once_each_at_its_own_rate(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, policy: str, rate: int
) -> None:
    contract = begin(acme, grade, now, policy=policy)
    balance = money(acme, "prepaid")
    carry(contract, plant, 1_200)
    first, last = carry_split(contract, plant, 3_000, 800)
    assert (first.contract_id, last.contract_id == contract.id) == (contract.id, policy == "spot")
    settle(contract)
    assert lines(contract.id)["usage"] == (2 * LOT, 0, 0)
    kind = "overage" if policy == "spot" else "usage"
    cost = 2_200 * rate // 10**6
    assert lines(last.contract_id)[kind] == (2_200 * 10**6, rate, cost)
    assert money(acme, "prepaid") == balance - cost
    assert Entitlement.objects.get(contract=contract).used_numerator == 2 * LOT
    assert check_charges(since=now).differences == []
    assert_books_balance()
    (invoice,) = issue_invoices(month_start=MARCH, now=APRIL_2)
    verified(invoice)


def test_overage_counts_for_no_take(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Overage by pace: the month's volume is far from used up, and its true-up is what it was."""
    contract = begin(acme, grade, now, payment="arrears", volume_lots=1_000)
    # The bucket is 60 s of 100 lots in 300 s.
    carry(contract, plant, 20_000)
    hold = carry(contract, plant, 5_000)
    assert (hold.entitlement_id, hold.rate.kind) == (None, Rate.Kind.OVERAGE)
    settle(contract)
    month = Entitlement.objects.get(contract=contract)
    last = settlement_period(month.period_end - timedelta(seconds=1))
    settle_period(settlement_start=last.start, now=last.start + DUE_AFTER)
    squared = MonthOutcome.objects.get()
    assert (squared.delivered_numerator, squared.true_up_numerator) == (20 * LOT, 980 * LOT)
    assert lines(contract.id) == {
        "usage": (20 * LOT, FIRM_RATE, 10_000),
        "overage": (5 * LOT, OVERAGE_RATE, 2_000),
        "true_up": (980 * LOT, FIRM_RATE, 490_000),
    }
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_a_grant_burns_before_the_balance(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = begin(acme, grade, now)
    give(acme, 500, now)
    balance = money(acme, "prepaid")
    carry(contract, plant, 2_000)
    carry(contract, plant, 3_000)
    settle(contract)
    assert lines(contract.id)["overage"] == (3 * LOT, OVERAGE_RATE, 1_200)
    assert money(acme, "prepaid") == balance - 700
    assert_books_balance()


def report(plant: Plant, first: Hold, output_tokens: int) -> None:
    """The agent's one count of an attempt, whatever parts it was in."""
    agent, at = agent_of(plant), first.opened_at
    event = replace(
        event_of(first.contract, plant, at, output_tokens), request_id=first.request_id, rate_id=first.rate_id,
        period_start=first.period_start, occurred_at=at,
    )  # fmt: skip
    body = encode_batch(
        source_id=agent.pk, sequence_from=1, previous_digest=GENESIS_DIGEST, lines=[encode_event(event)]
    )
    accept_batch(source=agent, body=body, now=at + timedelta(seconds=5))
    ingest_batches(now=at + timedelta(minutes=5))


@pytest.mark.parametrize("policy", ["spot", "list"])
def test_what_the_host_counted_less_of_two_parts_waits_of_the_overage_and_a_correction_ends_it(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime, policy: str
) -> None:
    contract = begin(acme, grade, now, policy=policy)
    balance = money(acme, "prepaid")
    first, last = carry_split(contract, plant, 5_000, 2_000)
    report(plant, first, 4_000)
    start = settlement_period(contract.starts_at).start
    due = start + DUE_AFTER
    assert settle_period(settlement_start=start, now=due).failed == []
    rate = OVERAGE_RATE if policy == "spot" else 600_000
    kind = "overage" if policy == "spot" else "usage"
    [discrepancy] = Discrepancy.objects.all()
    [disputed] = discrepancy.usage.all()
    assert (disputed.contract_id, disputed.rate_id, disputed.withheld_numerator) == (
        last.contract_id, last.rate_id, LOT,
    )  # fmt: skip
    assert lines(contract.id)["usage"] == (2 * LOT, 0, 0)
    assert lines(last.contract_id)[kind] == (2 * LOT, rate, 2 * rate // 1_000)
    assert money(acme, "prepaid") == balance - 2 * rate // 1_000
    # What he would owe if the gateway was right is kept.
    assert pending(acme) == rate // 1_000

    event = UsageEvent.objects.get(request_id=first.request_id, part=1)
    amend_event(
        source_id=event.source_id, event_id=event.id, buckets={Bucket.OUTPUT: 1_500}, reason="as the engine says",
        actor="operator", now=due,
    )  # fmt: skip
    accept_discrepancy(discrepancy_id=discrepancy.id, reason="so it is", closed_by="hyperion", now=due)
    assert settle_period(settlement_start=start, now=due + HOUR).failed == []
    adjustment = lines(last.contract_id)["adjustment"]
    assert adjustment == (-LOT // 2, rate, -rate // 2_000)
    assert money(acme, "prepaid") == balance - 3 * rate // 2_000
    assert pending(acme) == 0
    assert check_charges(since=now).differences == []
    assert_books_balance()
