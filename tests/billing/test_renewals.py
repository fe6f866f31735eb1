"""Contracts that renew themselves: once, where the term ends, or a reason why not; by two workers and by a clock."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, connection, transaction
from pytest_django import Settings

from marketplace.accounts.models import ApiKey, AuditEntry
from marketplace.accounts.organization_clocks import create_clock
from marketplace.accounts.services import SYSTEM, Actor
from marketplace.billing.models import Charge
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.month_ends import square_month
from marketplace.billing.services.terminating import terminate_contract
from marketplace.contracts.models import Contract, ContractEvent, Entitlement, Quote, Renewal
from marketplace.contracts.renewal_selectors import renewal_of
from marketplace.contracts.renewing import decided_until, renew_contract, renew_due, set_renewal
from marketplace.contracts.services import advance_contracts
from marketplace.contracts.spending import set_spend_cap, spent_of
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.webhooks.models import Notice, WebhookEvent
from marketplace.webhooks.services import create_endpoint
from pricing.models import Grade
from providers.models import HostHour
from providers.services import list_offering
from tests.billing.test_clocks import advance
from tests.billing.test_month_ends import PRICE, buy, credit
from tests.billing.world import FUNDS, HOUR, assert_books_balance, money, pending
from tests.cast import Party, Plant, fund, make_grade, make_party, make_plant
from tests.conftest import TestDatabase

DAY = timedelta(days=1)
RATE = 500_000


def turn(
    party: Party,
    contract: Contract,
    now: datetime,
    *,
    on: bool = True,
    highest: int | None = RATE,
    actor: Actor = SYSTEM,
) -> Renewal:
    return set_renewal(
        organization_id=party.id,
        contract_id=contract.id,
        renews=on,
        max_rate_micros_per_mtok=highest if on else None,
        now=now,
        actor=actor,
    )


def beat(at: datetime) -> None:
    """What the workers' hints do of contracts at this moment."""
    advance_contracts(now=at)
    charge_committed_months(now=at)
    renew_due(now=at)


def listen(party: Party, now: datetime) -> None:
    create_endpoint(
        organization_id=party.id,
        url="https://hooks.acme.example/all",
        description="",
        event_types=["contract.renewed", "contract.renewal_failed", "contract.activated"],
        now=now,
        actor=SYSTEM,
    )


def told(event_type: str) -> list[dict[str, Any]]:
    found = WebhookEvent.objects.filter(type=event_type).order_by("occurred_at", "id")
    return [json.loads(bytes(event.body))["data"] for event in found]


def reprice(plant: Plant, grade: Grade, firm_rate: int, now: datetime) -> None:
    list_offering(
        host_id=plant.host.id,
        grade_slug=grade.family.slug,
        spot_floor_micros_per_mtok=200_000,
        firm_rate_micros_per_mtok=firm_rate,
        list_rate_micros_per_mtok=2 * firm_rate,
        now=now,
        actor=SYSTEM,
    )


def end_of(contract: Contract) -> datetime:
    assert contract.ends_at is not None
    return contract.ends_at


def running(acme: Party, grade: Grade, now: datetime, **terms: Any) -> Contract:
    """A contract of a month that is paid and is to renew itself."""
    contract = buy(acme, grade, now, **terms)
    turn(acme, contract, now)
    beat(contract.starts_at)
    return contract


def successors(contract: Contract) -> list[Contract]:
    return list(Contract.objects.filter(renews=contract).select_related("rate"))


def test_a_day_before_its_end_it_is_bought_again_on_the_same_terms_and_once(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    listen(acme, now)
    fund(acme, FUNDS, now)
    contract = running(
        acme, grade, now, rollover_share_ppm=500_000, rollover_cap_lots=1_000, overage_policy="list"
    )
    ApiKey.objects.filter(pk=acme.api_key_id).update(default_contract_id=contract.id)
    end = end_of(contract)
    beat(end - DAY - timedelta(microseconds=1))
    assert successors(contract) == []
    for _ in range(3):
        beat(end - DAY)
    [after] = successors(contract)
    # No gap and no overlap, and the same of everything.
    assert (after.starts_at, after.status, after.renews_id) == (end, "active", contract.id)
    assert after.quote is not None
    for name in (
        "firm_lots", "volume_lots", "take_share_ppm", "rollover_share_ppm", "rollover_cap_lots", "payment",
        "overage_policy", "notice_days", "termination_fee_ppm", "max_rate_micros_per_mtok", "grade_id",
    ):  # fmt: skip
        assert getattr(after, name) == getattr(contract, name), name
    assert pending(acme) == PRICE
    assert Quote.objects.count() == 2
    # Its keys pay with the one until its end and with the other from then on.
    assert ApiKey.objects.get(pk=acme.api_key_id).default_contract_id == contract.id
    beat(end)
    contract.refresh_from_db()
    assert contract.status == "ended"
    assert ApiKey.objects.get(pk=acme.api_key_id).default_contract_id == after.id
    months = Entitlement.objects.filter(contract__in=[contract, after]).order_by("period_start")
    assert [month.period_start for month in months] == [contract.starts_at, end]
    assert months[0].period_end == end
    assert all(month.paid_at for month in months)
    assert money(acme, "prepaid") == FUNDS - 2 * PRICE
    # History and what is told.
    event = ContractEvent.objects.get(contract=contract, kind="renewed")
    assert event.detail == {"successor_id": str(after.id), "rate_micros_per_mtok": RATE}
    made = ContractEvent.objects.get(contract=after, kind="created")
    assert (made.reason, made.detail["renews_id"]) == ("renewal", str(contract.id))
    [one] = told("contract.renewed")
    assert (one["contract_id"], one["successor_id"]) == (str(contract.id), str(after.id))
    assert [one["reason"] for one in told("contract.activated")] == ["accepted", "renewed"]
    mail = Notice.objects.get(type="contract.renewed")
    assert "at 0.50 USD per Mtok" in mail.body
    assert told("contract.renewal_failed") == []
    # It is to renew in its turn.
    shown = renewal_of(organization_id=acme.id, contract_id=after.id)
    assert (shown.status, shown.max_rate_micros_per_mtok) == ("on", RATE)
    assert shown.next_attempt_at == end_of(after) - DAY
    assert_books_balance()


def test_it_goes_on_and_on_until_it_is_turned_off(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = running(acme, grade, now)
    for _ in range(2):
        beat(end_of(contract) - DAY)
        beat(end_of(contract))
        [contract] = successors(contract)
    turn(acme, contract, end_of(contract) - 2 * DAY, on=False)
    beat(end_of(contract) - DAY)
    beat(end_of(contract))
    assert successors(contract) == []
    contract.refresh_from_db()
    assert (contract.status, Contract.objects.count()) == ("ended", 3)
    assert money(acme, "prepaid") == FUNDS - 3 * PRICE
    assert_books_balance()


def test_off_is_the_default_and_nothing_is_tried(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    assert renewal_of(organization_id=acme.id, contract_id=contract.id).status == "off"
    for at in (contract.starts_at, end_of(contract) - DAY, end_of(contract)):
        beat(at)
    assert (Contract.objects.count(), Quote.objects.count()) == (1, 1)


def test_capacity_that_is_gone_is_told_and_tried_again_until_the_gate(
    acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    listen(acme, now)
    fund(acme, FUNDS, now)
    fund(mallory, FUNDS, now)
    contract = running(acme, grade, now, firm_lots=150)
    end, gate = end_of(contract), decided_until(contract)
    buy(mallory, grade, end - 2 * DAY, firm_lots=150, starts_at=end)
    for hours in range(3):
        beat(end - DAY + hours * HOUR)
    # Told once for one reason, not at every try.
    [one] = told("contract.renewal_failed")
    assert (one["status"], one["reason"]) == ("retrying", "not_offered")
    assert "lots are" in one["detail"]
    assert (
        renewal_of(organization_id=acme.id, contract_id=contract.id).next_attempt_at == end - DAY + 3 * HOUR
    )
    beat(gate - timedelta(minutes=30))
    renewal = Renewal.objects.get(contract=contract)
    assert renewal.next_attempt_at == gate - timedelta(minutes=1)
    for at in (gate - timedelta(minutes=1), gate, gate, end):
        beat(at)
    assert [one["status"] for one in told("contract.renewal_failed")] == ["retrying", "not_renewed"]
    renewal.refresh_from_db()
    assert (renewal.status, renewal.problem) == ("not_renewed", "not_offered")
    event = ContractEvent.objects.get(contract=contract, kind="not_renewed")
    assert event.detail == {"problem": "not_offered"}
    assert successors(contract) == []
    # No quote of a try that failed is left, and nothing is held.
    assert (Quote.objects.filter(organization=acme.id).count(), pending(acme)) == (1, 0)
    mails = Notice.objects.filter(type="contract.renewal_failed").order_by("created_at")
    assert [mail.subject for mail in mails] == [
        "A contract has not renewed itself yet",
        "A contract does not renew itself",
    ]
    with pytest.raises(Conflict):
        turn(acme, contract, gate)


def test_a_rate_above_the_highest_is_not_paid_and_one_at_it_is(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    listen(acme, now)
    fund(acme, FUNDS, now)
    contract = running(acme, grade, now)
    end = end_of(contract)
    reprice(plant, grade, RATE + 1, end - 2 * DAY)
    beat(end - DAY)
    [one] = told("contract.renewal_failed")
    assert one["reason"] == "rate_above_highest"
    assert one["detail"] == "The rate is 0.500001 per Mtok now; the highest you set is 0.5."
    assert pending(acme) == 0
    # He raises it, and need not wait for the next hour.
    turn(acme, contract, end - DAY + HOUR / 2, highest=RATE + 1)
    beat(end - DAY + HOUR / 2)
    [after] = successors(contract)
    assert after.rate is not None
    assert after.rate.micros_per_mtok == RATE + 1


def test_without_funds_it_waits_for_them_while_it_can(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    listen(acme, now)
    fund(acme, 2 * PRICE - 10_000, now)
    contract = running(acme, grade, now)
    end = end_of(contract)
    sold_before = sum(HostHour.objects.values_list("sold_ppm", flat=True))
    beat(end - DAY)
    [one] = told("contract.renewal_failed")
    assert one["reason"] == "insufficient_funds"
    # Nothing of the try is left.
    assert sum(HostHour.objects.values_list("sold_ppm", flat=True)) == sold_before
    assert (pending(acme), Contract.objects.count()) == (0, 1)
    fund(acme, 10_000, end - DAY + HOUR / 2)
    beat(end - DAY + HOUR)
    assert len(successors(contract)) == 1
    assert money(acme, "prepaid") == pending(acme) == PRICE
    assert_books_balance()


def test_two_workers_at_once_renew_it_once(committed_db: TestDatabase, now: datetime) -> None:
    make_party("Operator", ["operator"], now)
    acme, hyperion = make_party("Acme", ["buyer"], now), make_party("Hyperion", ["provider"], now)
    grade = make_grade(now)
    make_plant(hyperion, grade, now)
    fund(acme, FUNDS, now)
    contract = running(acme, grade, now, firm_lots=50, volume_lots=100)
    at = end_of(contract) - DAY

    def work(_: int) -> int:
        try:
            return len(renew_due(now=at))
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 1
    assert (len(successors(contract)), Contract.objects.count()) == (1, 2)
    assert pending(acme) == 50_000
    assert ContractEvent.objects.filter(kind="renewed").count() == 1
    assert_books_balance()


@pytest.mark.parametrize("off_first", [True, False])
def test_turned_off_and_renewed_at_the_same_moment_it_is_one_or_the_other(
    acme: Party, grade: Grade, plant: Plant, now: datetime, off_first: bool
) -> None:
    fund(acme, FUNDS, now)
    contract = running(acme, grade, now)
    at = end_of(contract) - DAY
    if off_first:
        turn(acme, contract, at, on=False)
        assert renew_contract(contract_id=contract.id, now=at, real_now=at) is None
    else:
        assert renew_contract(contract_id=contract.id, now=at, real_now=at) is not None
        with pytest.raises(Conflict):
            turn(acme, contract, at, on=False)
    assert len(successors(contract)) == (0 if off_first else 1)


def test_the_table_has_one_that_follows_and_no_highest_rate_missing(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    first, second, third = (buy(acme, grade, now, firm_lots=10, volume_lots=100) for _ in range(3))
    Contract.objects.filter(pk=second.pk).update(renews=first)
    with pytest.raises(IntegrityError, match="renews"), transaction.atomic():
        Contract.objects.filter(pk=third.pk).update(renews=first)
    with pytest.raises(IntegrityError, match="contracts_contract_renews_or_amends"), transaction.atomic():
        Contract.objects.filter(pk=second.pk).update(amends=first)
    turn(acme, third, now)
    for name, change in (
        ("contracts_renewal_has_a_highest_rate", {"max_rate_micros_per_mtok": None}),
        ("contracts_renewal_tried_while_on", {"next_attempt_at": None}),
        ("contracts_renewal_tried_while_on", {"status": "renewed"}),
    ):
        with pytest.raises(IntegrityError, match=name), transaction.atomic():
            Renewal.objects.update(**change)


def test_an_end_inside_an_hour_takes_the_hours_capacity_once(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """An hour is sold as a whole, and 150 lots twice are more than the host has: each has its own half of it."""
    fund(acme, FUNDS, now)
    contract = running(acme, grade, now, firm_lots=150, starts_at=now + HOUR + HOUR / 2)
    end = end_of(contract)
    assert end.minute == 30
    beat(end - DAY)
    [after] = successors(contract)
    hours = HostHour.objects.filter(host=plant.host).order_by("hour_start")
    sold = dict(hours.values_list("hour_start", "sold_ppm"))
    shared = end - HOUR / 2
    assert sold[shared - HOUR] == sold[shared] == sold[shared + HOUR] > 500_000
    # What the second one gives back is its own.
    terminate_contract(
        organization_id=acme.id,
        contract_id=after.id,
        ends_at=None,
        reason="enough",
        operation_id=uuid7(),
        now=end - DAY,
        actor=SYSTEM,
    )
    assert HostHour.objects.filter(sold_ppm__lt=0).count() == 0
    # Nobody else has the place in that hour that the first one still has.
    assert dict(hours.values_list("hour_start", "sold_ppm"))[shared] == sold[shared]


def test_a_renewal_counts_under_the_caps_of_the_key_that_set_it(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    listen(acme, now)
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    turn(acme, contract, now, actor=Actor("api_key", acme.api_key_id))
    beat(contract.starts_at)
    at = end_of(contract) - DAY
    cap = set_spend_cap(
        organization_id=acme.id, scope="api_key", period="day", limit_micros=PRICE - 1,
        api_key_id=acme.api_key_id, now=now, actor=SYSTEM,
    )  # fmt: skip
    beat(at)
    [one] = told("contract.renewal_failed")
    assert one["reason"] == "spend_cap_reached"
    assert spent_of([cap], now=at)[0].spent_micros == 0
    set_spend_cap(
        organization_id=acme.id, scope="api_key", period="day", limit_micros=PRICE,
        api_key_id=acme.api_key_id, now=at, actor=SYSTEM,
    )  # fmt: skip
    beat(at + HOUR)
    assert len(successors(contract)) == 1
    assert spent_of([cap], now=at + HOUR)[0].spent_micros == PRICE


def test_worse_terms_of_the_market_are_not_agreed_to(
    acme: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    fund(acme, FUNDS, now)
    contract = running(acme, grade, now)
    settings.TERMINATION_FEE_PPM = 250_001
    at = end_of(contract) - DAY
    beat(at)
    assert Renewal.objects.get(contract=contract).problem == "terms_changed"
    settings.TERMINATION_FEE_PPM = 100_000
    beat(at + HOUR)
    [after] = successors(contract)
    assert after.termination_fee_ppm == 100_000


def test_an_early_end_turns_it_off_and_it_cannot_be_turned_on_again(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now, months=6)
    turn(acme, contract, now)
    terminate_contract(
        organization_id=acme.id,
        contract_id=contract.id,
        ends_at=None,
        reason="moved",
        operation_id=uuid7(),
        now=now,
        actor=SYSTEM,
    )
    assert Renewal.objects.get(contract=contract).status == "off"
    with pytest.raises(Conflict, match="before its term"):
        turn(acme, contract, now)
    contract.refresh_from_db()
    beat(end_of(contract) - DAY)
    assert successors(contract) == []


def test_what_is_renewed_cannot_end_earlier_any_more(
    acme: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    """Else there would be a gap: notice is a day at least, and it is renewed within the last one."""
    settings.COMMITTED_NOTICE_DAYS = 0
    fund(acme, FUNDS, now)
    contract = running(acme, grade, now)
    at = end_of(contract) - DAY
    beat(at)
    with pytest.raises(InvalidInput, match="anyway"):
        terminate_contract(
            organization_id=acme.id,
            contract_id=contract.id,
            ends_at=None,
            reason="gap",
            operation_id=uuid7(),
            now=at,
            actor=SYSTEM,
        )
    contract.refresh_from_db()
    assert contract.ends_at == successors(contract)[0].starts_at


def test_who_is_suspended_gets_no_second_contract_by_himself(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    credit(acme, now, limit_micros=1)
    contract = buy(acme, grade, now, months=2, payment="arrears")
    turn(acme, contract, now)
    advance_contracts(now=contract.starts_at)
    first = Entitlement.objects.get()
    square_month(entitlement_id=first.id, fee_ppm=50_000, now=first.period_end + HOUR)
    at = end_of(contract) - DAY
    beat(at)
    assert Renewal.objects.get(contract=contract).problem == "contract_suspended"
    credit(acme, at)
    square_month(entitlement_id=first.id, fee_ppm=50_000, now=at + HOUR / 2)
    beat(at + HOUR)
    [after] = successors(contract)
    assert (after.payment, pending(acme)) == ("arrears", 0)
    assert_books_balance()


def test_a_worker_that_comes_after_the_gate_tells_that_it_is_too_late(
    acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    listen(acme, now)
    fund(acme, FUNDS, now)
    contract = running(acme, grade, now)
    renew_due(now=end_of(contract) + HOUR)
    [one] = told("contract.renewal_failed")
    assert (one["status"], one["reason"]) == ("not_renewed", "too_late")
    assert successors(contract) == []


def test_a_test_clock_renews_in_its_own_time(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, 3 * PRICE, now)
    contract = buy(acme, grade, now, firm_lots=150)
    turn(acme, contract, now)
    create_clock(organization_id=acme.id, now=now, actor=SYSTEM)
    advance(acme, now + 130 * DAY, now)
    chain = [contract]
    while found := successors(chain[-1]):
        chain += found
    assert len(chain) == 3
    for before, after in pairwise(chain):
        before.refresh_from_db()
        assert after.starts_at == before.ends_at
        event = ContractEvent.objects.get(contract=before, kind="renewed")
        assert event.occurred_at == end_of(before) - DAY
    # The fourth one found no funds, every hour until its gate.
    last = Renewal.objects.get(contract=chain[-1])
    assert (last.status, last.problem, last.attempts) == ("not_renewed", "insufficient_funds", 25)
    assert Contract.objects.filter(organization=acme.id).exclude(status="ended").count() == 0
    assert Charge.objects.filter(kind="committed_fee").count() == 3
    assert money(acme, "prepaid") == 0
    assert HostHour.objects.exclude(sold_ppm=0).count() == 0
    assert_books_balance()


def test_the_api_sets_it_and_says_what_came_of_it(
    acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    contract = buy(acme, grade, now)
    path = f"/api/v1/contracts/{contract.id}/renewal"
    with time_machine.travel(now, tick=False):
        shown = acme.api.get(path).json()
        assert (shown["renews"], shown["status"], shown["max_rate_micros_per_mtok"]) == (False, "off", None)
        assert shown["decided_from"] == "2026-04-09T13:00:00Z"
        assert shown["decided_until"] == "2026-04-10T12:59:30Z"
        for body, field in (
            ({"renews": True}, "max_rate_micros_per_mtok"),
            ({"renews": True, "max_rate_micros_per_mtok": 0}, "max_rate_micros_per_mtok"),
            ({"renews": False, "max_rate_micros_per_mtok": 1}, "max_rate_micros_per_mtok"),
            ({"renews": "yes"}, "renews"),
            ({}, "renews"),
        ):
            refused = acme.api.put(path, body, format="json")
            assert (refused.status_code, refused.json()["field"]) == (422, field), body
        on = acme.api.put(path, {"renews": True, "max_rate_micros_per_mtok": RATE}, format="json").json()
        assert (on["renews"], on["status"], on["next_attempt_at"]) == (True, "on", "2026-04-09T13:00:00Z")
        assert mallory.api.get(path).status_code == 404
        assert mallory.api.put(path, {"renews": False}, format="json").status_code == 404
        assert acme.api.put(path, {"renews": False}, format="json").json()["status"] == "off"
    entries = AuditEntry.objects.filter(action="contract.renewal_set").order_by("id")
    assert [entry.detail["renews"] for entry in entries] == [True, False]
    with pytest.raises(NotFound):
        turn(mallory, contract, now)
