"""Committed contracts that nobody pays: warned, ended after days, nothing more owed; payment at the last moment."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test import Client
from pytest_django import Settings

from marketplace.accounts.organization_clocks import create_clock
from marketplace.accounts.services import SYSTEM
from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge, MonthOutcome
from marketplace.billing.services.committed_months import charge_committed_months, charge_month
from marketplace.billing.services.month_ends import square_month
from marketplace.billing.services.terminating import terminate_contract
from marketplace.contracts.bonds import SETTLING, bond_of
from marketplace.contracts.models import Contract, ContractEvent, Entitlement
from marketplace.contracts.services import advance_contracts, open_hold, warn_or_end_unpaid
from marketplace.contracts.unpaid import WARNED_AHEAD, ends_unpaid_at, warned_from
from marketplace.errors import Conflict
from marketplace.ids import uuid7
from marketplace.webhooks.models import Notice, WebhookEvent
from marketplace.webhooks.services import create_endpoint
from pricing.models import Grade
from providers.models import HostHour
from tests.billing.test_bonds import deposit
from tests.billing.test_clocks import advance
from tests.billing.test_month_ends import PRICE, buy, credit
from tests.billing.world import HOUR, LOT, assert_books_balance, money, pending
from tests.cast import PASSWORD, Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

DAY = timedelta(days=1)


def sold(plant: Plant, since: datetime) -> int:
    hours = HostHour.objects.filter(host=plant.host, hour_start__gte=since)
    return sum(hours.values_list("sold_ppm", flat=True))


def beat(at: datetime) -> None:
    """What the workers' hints do of contracts at this moment."""
    advance_contracts(now=at)
    charge_committed_months(now=at)


def live(since: datetime, until: datetime) -> None:
    """Every quarter of a day from then on."""
    while since <= until:
        beat(since)
        since += DAY / 4


def told(event_type: str) -> list[dict[str, Any]]:
    found = WebhookEvent.objects.filter(type=event_type).order_by("occurred_at", "id")
    return [json.loads(bytes(event.body))["data"] for event in found]


def listen(party: Party, now: datetime) -> None:
    create_endpoint(
        organization_id=party.id,
        url="https://hooks.acme.example/all",
        description="",
        event_types=None,
        now=now,
        actor=SYSTEM,
    )


def suspended(acme: Party, grade: Grade, now: datetime, *, months: int = 6, **terms: Any) -> Contract:
    """A contract of which one month of 31 days is paid, and the next cannot be."""
    fund(acme, PRICE, now)
    contract = buy(acme, grade, now, months=months, **terms)
    beat(contract.starts_at)
    beat(contract.starts_at + 31 * DAY)
    contract.refresh_from_db()
    assert (contract.status, contract.suspended_at) == ("suspended", contract.starts_at + 31 * DAY)
    return contract


def test_it_is_warned_and_ended_and_nothing_more_is_owed_for_what_nobody_reserved(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    listen(acme, now)
    contract = suspended(acme, grade, now)
    since, term = contract.suspended_at, contract.ends_at
    assert since is not None
    assert term is not None
    live(since, since + 14 * DAY - HOUR)
    with time_machine.travel(since + 13 * DAY, tick=False):
        shown = acme.api.get(f"/api/v1/contracts/{contract.id}").json()
        client = Client()
        assert client.login(username=acme.user.email, password=PASSWORD)
        page = client.get(f"/buyer/contracts/{contract.id}").content.decode()
    assert (shown["ends_unpaid_at"], "If it stays unpaid" in page) == ("2026-04-24T13:00:00Z", True)
    contract.refresh_from_db()
    assert (contract.status, contract.ends_at) == ("suspended", term)
    beat(since + 14 * DAY)
    contract.refresh_from_db()
    assert (contract.status, contract.ends_at, contract.freed_at) == ("ended", since + 14 * DAY, since + DAY)
    history = ContractEvent.objects.filter(contract=contract).order_by("occurred_at")
    assert list(history.values_list("kind", "to_status", "occurred_at"))[1:] == [
        ("suspended", "suspended", since),
        ("freed", "suspended", since + DAY),
        ("warned", "suspended", since + 11 * DAY),
        ("ended", "ended", since + 14 * DAY),
    ]
    ended = history.get(kind="ended")
    assert (ended.reason, ended.detail["term_was"]) == ("suspended for 14 days", term.isoformat())
    # Told three times by mail, and the moves by webhook too.
    ends = (since + 14 * DAY).isoformat().replace("+00:00", "Z")
    assert [(one["status"], one["ends_at"]) for one in told("contract.unpaid")] == [
        ("ending", ends),
        ("ended", ends),
    ]
    assert [one["reason"] for one in told("contract.ended")] == ["unpaid"]
    mails = Notice.objects.filter(type__startswith="contract.").order_by("created_at")
    assert list(mails.values_list("subject", flat=True)) == [
        "Delivery is suspended",
        "A contract ends soon if it is not paid",
        "A contract has ended unpaid",
    ]
    assert all(ends in mail.body for mail in mails[:2])
    # Nothing is charged, now or later, and what comes stays his.
    assert Charge.objects.count() == 1
    fund(acme, 10 * PRICE, since + 15 * DAY)
    live(since + 15 * DAY, since + 40 * DAY)
    assert Charge.objects.count() == 1
    assert (money(acme, "prepaid"), pending(acme)) == (10 * PRICE, 0)
    second = Entitlement.objects.get(contract=contract, period_start=since)
    assert (second.period_end, second.volume_numerator, second.paid_at) == (since + 14 * DAY, 0, None)
    assert check_charges(since=now).differences == []
    assert_books_balance()


def test_its_hosts_capacity_and_their_bond_are_free(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    settings.PROVIDER_BOND_PPM = 100_000
    deposit(hyperion, 50_000_000, now)
    contract = suspended(acme, grade, now)
    since = contract.suspended_at
    assert since is not None
    assert bond_of(hyperion.id, now=since).required_micros > 0
    live(since, since + 14 * DAY)
    assert sold(plant, since + DAY) == 0
    assert HostHour.objects.filter(sold_ppm__lt=0).count() == 0
    after = bond_of(hyperion.id, now=since + 14 * DAY)
    assert (after.required_micros, after.bound_micros > 0) == (0, True)
    # What is delivered late of the paid month may still come to remedies; then all of it may be withdrawn.
    assert bond_of(hyperion.id, now=since + 14 * DAY + SETTLING).bound_micros == 0
    fund(acme, PRICE, since + 15 * DAY)
    assert buy(acme, grade, since + 15 * DAY, months=1).status == "active"


def test_the_paid_month_is_squared_up_and_its_rollover_goes_with_the_month_it_went_into(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = suspended(
        acme, grade, now, rollover_share_ppm=500_000, rollover_cap_lots=1_000, volume_lots=10_000
    )
    since = contract.suspended_at
    assert since is not None
    first = Entitlement.objects.get(contract=contract, period_start=contract.starts_at)
    square_month(entitlement_id=first.id, fee_ppm=50_000, now=since + HOUR)
    assert MonthOutcome.objects.get().rolled_over_numerator == 1_000 * LOT
    live(since, since + 14 * DAY)
    second = Entitlement.objects.get(contract=contract, period_start=since)
    assert (second.volume_numerator, second.rollover_numerator) == (0, 1_000 * LOT)
    # The providers have the whole of what was paid, once.
    assert money(hyperion, "payable") + money(operator, "fees") == PRICE
    assert money(acme, "deferred") == 0
    assert_books_balance()


def test_nothing_is_delivered_ended_or_amended_after_it(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = suspended(acme, grade, now)
    since = contract.suspended_at
    assert since is not None
    live(since, since + 14 * DAY)
    later = since + 14 * DAY + HOUR
    with pytest.raises(Conflict):
        terminate_contract(
            organization_id=acme.id,
            contract_id=contract.id,
            ends_at=None,
            reason="late",
            operation_id=uuid7(),
            now=later,
            actor=SYSTEM,
        )
    opened = open_hold(
        id=uuid7(),
        organization_id=acme.id,
        grade_ids=[grade.id],
        numerators=[LOT],
        contract_id=contract.id,
        now=later,
    )
    assert opened.outcome != "ok"


def test_paid_in_time_it_goes_on_and_the_days_count_anew(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    contract = suspended(acme, grade, now)
    since = contract.suspended_at
    assert since is not None
    live(since, since + 12 * DAY)
    fund(acme, PRICE, since + 12 * DAY)
    beat(since + 12 * DAY)
    contract.refresh_from_db()
    assert contract.status == "active"
    beat(since + 14 * DAY)
    assert Contract.objects.get(pk=contract.pk).status == "active"
    # The next month finds no money: warned and ended by its own days.
    third = since + 30 * DAY
    live(third, third + 14 * DAY)
    contract.refresh_from_db()
    assert contract.ends_at == third + 14 * DAY
    warnings = ContractEvent.objects.filter(contract=contract, kind="warned").order_by("occurred_at")
    assert list(warnings.values_list("occurred_at", flat=True)) == [since + 11 * DAY, third + 11 * DAY]
    assert_books_balance()


@pytest.mark.parametrize("paid_first", [True, False])
def test_payment_and_end_at_the_same_moment_are_one_or_the_other(
    acme: Party, grade: Grade, plant: Plant, now: datetime, paid_first: bool
) -> None:
    """Each knows the contract as unpaid when it begins, and comes to it first or second."""
    contract = suspended(acme, grade, now)
    since = contract.suspended_at
    assert since is not None
    live(since, since + 13 * DAY)
    end = since + 14 * DAY
    fund(acme, PRICE, end)
    month = Entitlement.objects.get(contract=contract, period_start=since)
    if paid_first:
        assert charge_month(entitlement_id=month.id, now=end)
        assert not warn_or_end_unpaid(contract_id=contract.id, now=end)
        # The rest of the month, by seconds: 16 of 30 days.
        left = 10_000 * 16 // 30 * 500
        assert (money(acme, "prepaid"), Charge.objects.count()) == (PRICE - left, 2)
    else:
        assert warn_or_end_unpaid(contract_id=contract.id, now=end)
        assert not charge_month(entitlement_id=month.id, now=end)
        assert (money(acme, "prepaid"), Charge.objects.count()) == (PRICE, 1)
    contract.refresh_from_db()
    assert contract.status == ("active" if paid_first else "ended")
    assert_books_balance()


def test_two_connections_pay_and_end_it_at_once(committed_db: TestDatabase, now: datetime) -> None:
    make_party("Operator", ["operator"], now)
    hyperion = make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    make_plant(hyperion, grade, now)
    contracts = []
    for name in ("Acme", "Beta", "Gamma", "Delta"):
        party = make_party(name, ["buyer"], now)
        fund(party, 100 * 500, now)
        contracts.append((party, buy(party, grade, now, months=6, firm_lots=5, volume_lots=100)))
    beat(contracts[0][1].starts_at)
    since = contracts[0][1].starts_at + 31 * DAY
    live(since, since + 13 * DAY)
    end = since + 14 * DAY
    for party, contract in contracts:
        fund(party, 100 * 500, end)
        month = Entitlement.objects.get(contract=contract, period_start=since)

        def step(pays: bool, *, entitlement: Entitlement = month) -> bool:
            try:
                if pays:
                    return charge_month(entitlement_id=entitlement.id, now=end)
                return warn_or_end_unpaid(contract_id=entitlement.contract_id, now=end)
            finally:
                connection.close()

        with ThreadPoolExecutor(2) as pool:
            paid, ended = pool.map(step, [True, False])
        contract.refresh_from_db()
        assert (paid, ended) == (contract.status == "active", contract.status == "ended")
        assert Charge.objects.filter(contract=contract).count() == 1 + paid
    assert_books_balance()


def test_who_comes_late_warns_first_and_ends_a_day_later(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """No worker ran for three weeks: nobody's contract ends in the moment in which he is warned."""
    contract = suspended(acme, grade, now)
    since = contract.suspended_at
    assert since is not None
    late = since + 21 * DAY
    for at in (late, late + DAY - HOUR):
        charge_committed_months(now=at)
    contract.refresh_from_db()
    assert (contract.status, contract.freed_at) == ("suspended", None)
    charge_committed_months(now=late + DAY)
    contract.refresh_from_db()
    assert (contract.status, contract.ends_at, contract.freed_at) == ("ended", late + DAY, late + DAY)
    assert sold(plant, late + DAY) == 0


def test_a_term_that_is_over_sooner_ends_as_it_was_agreed(
    acme: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    settings.SUSPENDED_CONTRACT_ENDS_AFTER_DAYS = 30
    contract = suspended(acme, grade, now, months=2)
    since, term = contract.suspended_at, contract.ends_at
    assert since is not None
    assert term == since + 30 * DAY
    live(since, term)
    events = ContractEvent.objects.filter(contract=contract)
    assert not events.filter(kind="warned").exists()
    assert events.get(kind="ended").reason == "its term is over"
    assert "ends on" not in Notice.objects.get(type="contract.suspended").body


def test_in_arrears_it_keeps_its_capacity_and_what_it_owes(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    credit(acme, now, limit_micros=1)
    contract = buy(acme, grade, now, months=6, payment="arrears")
    since = contract.starts_at + 31 * DAY
    advance_contracts(now=contract.starts_at)
    month = Entitlement.objects.get()
    square_month(entitlement_id=month.id, fee_ppm=50_000, now=since + HOUR)
    contract.refresh_from_db()
    assert contract.status == "suspended"
    live(since + HOUR, since + 30 * DAY)
    assert not warn_or_end_unpaid(contract_id=contract.id, now=since + 30 * DAY)
    contract.refresh_from_db()
    assert (contract.status, contract.freed_at) == ("suspended", None)


def test_its_buyers_test_clock_comes_to_the_same_days(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, PRICE, now)
    contract = buy(acme, grade, now, months=6)
    create_clock(organization_id=acme.id, now=now, actor=SYSTEM)
    since = contract.starts_at + 31 * DAY
    advance(acme, since + 60 * DAY, now)
    contract.refresh_from_db()
    assert (contract.status, contract.ends_at) == ("ended", since + 14 * DAY)
    events = ContractEvent.objects.filter(contract=contract).exclude(kind="created").order_by("occurred_at")
    assert ("warned", since + 11 * DAY) in list(events.values_list("kind", "occurred_at"))
    assert ("ended", since + 14 * DAY) in list(events.values_list("kind", "occurred_at"))
    # Its real hours are on sale again at once, and nothing was charged beyond the month that was paid.
    assert sold(plant, now + HOUR) == 0
    assert Charge.objects.filter(contract=contract).count() == 1
    assert_books_balance()


def test_the_days_are_a_setting_and_a_short_one_warns_when_it_suspends(
    now: datetime, settings: Settings
) -> None:
    assert ends_unpaid_at(now) - now == 14 * DAY
    assert ends_unpaid_at(now) - warned_from(now) == WARNED_AHEAD
    settings.SUSPENDED_CONTRACT_ENDS_AFTER_DAYS = 2
    assert (ends_unpaid_at(now), warned_from(now)) == (now + 2 * DAY, now)
