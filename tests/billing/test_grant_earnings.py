"""Whom grants pay, and the operator's hand on it: a buyer and a provider may be one and the same person."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from pytest_django import DjangoAssertNumQueries

from marketplace.accounts.models import AuditEntry, Membership
from marketplace.accounts.services import SYSTEM
from marketplace.billing.grant_earnings import GrantEarning, grant_earnings
from marketplace.billing.models import Payout, PayoutStop, ProcessorOperation
from marketplace.billing.payout_status import payout_status
from marketplace.billing.services.operations import resume_operations
from marketplace.billing.services.payout_stops import release_payouts, stop_payouts
from marketplace.billing.services.payouts import begin_payout, pay_out_statements
from marketplace.billing.services.settling import settle_period
from marketplace.billing.services.statements import issue_statements
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, give_grant
from marketplace.periods import Period
from pricing.models import Grade
from tests.billing.test_grants import accrue
from tests.billing.test_payout_rules import APRIL_2, MARCH, known, sell
from tests.billing.world import DUE_AFTER, FUNDS, LOT, assert_books_balance, meter, money, on_demand
from tests.cast import Party, Plant, fund

HOUR = timedelta(hours=1)


def give(party: Party, amount: int, now: datetime, *, paid_ppm: int = 0) -> None:
    kind = "purchased" if paid_ppm else "granted"
    terms = GrantTerms(kind=kind, amount_micros=amount, currency="USD", cost_basis_ppm=paid_ppm)
    give_grant(id=uuid7(), organization_id=party.id, terms=terms, now=now)


def use(party: Party, grade: Grade, plant: Plant, lots: int, now: datetime) -> None:
    """`lots` of 600 micros each in the hour of `now`, by requests that held as much."""
    contract = on_demand(party, grade, now)
    meter(contract, plant.offering.list_rate, plant, lots * LOT, now)
    accrue(contract, lots * 600, lots * 600, now)


def test_what_grants_paid_is_shown_with_who_earned_it(
    operator: Party, acme: Party, hyperion: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Acme's 6,000 are paid by a gift of 5,000; of mallory's 1,200 three quarters by credit that she paid half of."""
    for party in (acme, mallory):
        fund(party, FUNDS, now)
    give(acme, 5_000, now)
    give(mallory, 900, now, paid_ppm=500_000)
    use(acme, grade, plant, 10, now)
    use(mallory, grade, plant, 2, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert money(hyperion, "payable") == 7_200 - 360
    Membership.objects.create(
        organization_id=hyperion.id, user=mallory.user, role=Membership.Role.VIEWER, created_at=now
    )
    window = Period(now, now + HOUR)
    assert grant_earnings(window).pairs == [
        GrantEarning(acme.id, hyperion.id, 5_000, 5_000, 7_200, shares_people=False, is_stopped=False),
        GrantEarning(mallory.id, hyperion.id, 450, 450, 7_200, shares_people=True, is_stopped=False),
    ]
    assert grant_earnings(Period(now + HOUR, now + 2 * HOUR)).pairs == []


def test_nobody_is_shown_more_than_he_earned_and_what_a_balance_paid_is_not_shown(
    operator: Party, acme: Party, mallory: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """The grant pays the tax too, which is no provider's."""
    acme.organization.tax_ppm = acme.organization.own_tax_ppm = 200_000
    acme.organization.save()
    fund(mallory, FUNDS, now)
    give(acme, 5_000, now)
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    accrue(contract, 720, 720, now)
    use(mallory, grade, plant, 1, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    (pair,) = grant_earnings(Period(now, now + HOUR)).pairs
    assert (pair.buyer_organization_id, pair.by_grants_micros) == (acme.id, 600)


def test_it_costs_as_many_queries_for_many_buyers(
    operator: Party,
    acme: Party,
    mallory: Party,
    grade: Grade,
    plant: Plant,
    now: datetime,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for party in (acme, mallory):
        give(party, 5_000, now)
        use(party, grade, plant, 1, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    with django_assert_num_queries(3):
        assert len(grant_earnings(Period(now, now + HOUR)).pairs) == 2


def ready_to_be_paid(buyer: Party, provider: Party, grade: Grade, plant: Plant, now: datetime) -> None:
    fund(buyer, FUNDS, now)
    known(provider, now)
    sell(buyer, grade, plant, 10_000, now)
    issue_statements(month_start=MARCH, now=APRIL_2)


def stop(provider: Party, **more: object) -> PayoutStop:
    given = {"reason": "his buyer lives on grants", "operation_id": uuid7(), "now": APRIL_2, "actor": SYSTEM}
    return stop_payouts(organization_id=provider.id, **(given | more))  # type: ignore[arg-type]


def test_a_stopped_provider_is_paid_nothing_until_he_is_released(
    operator: Party, acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    ready_to_be_paid(acme, hyperion, grade, plant, now)
    made = stop(hyperion)
    assert pay_out_statements(now=APRIL_2) == []
    (reason,) = payout_status(hyperion.id, now=APRIL_2).reasons
    assert reason.code == "stopped"
    assert made.reason not in reason.text
    assert money(hyperion, "payable") == 5_700_000
    # The reason is in the operator's trail, which the provider does not read.
    entry = AuditEntry.objects.get(action="payouts.stopped")
    assert (entry.organization_id, entry.detail["provider"]) == (operator.id, str(hyperion.id))
    assert not AuditEntry.objects.filter(organization_id=hyperion.id, object_kind="payout_stop").exists()
    for _ in range(2):
        assert release_payouts(stop_id=made.pk, now=APRIL_2, actor=SYSTEM).ended_at == APRIL_2
    assert AuditEntry.objects.filter(action="payouts.released").count() == 1
    (payout,) = pay_out_statements(now=APRIL_2)
    assert payout.amount_micros == 5_700_000
    assert_books_balance()


def test_what_is_under_way_does_not_leave_either(
    operator: Party, acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    ready_to_be_paid(acme, hyperion, grade, plant, now)
    assert begin_payout(organization_id=hyperion.id, now=APRIL_2) is not None
    made = stop(hyperion)
    resume_operations(now=APRIL_2)
    assert pay_out_statements(now=APRIL_2)[0].status == Payout.Status.PENDING
    assert {one.status for one in ProcessorOperation.objects.filter(kind="transfer")} == {"requested"}
    release_payouts(stop_id=made.pk, now=APRIL_2, actor=SYSTEM)
    assert pay_out_statements(now=APRIL_2)[0].status == Payout.Status.PAID
    assert money(hyperion, "payable") == 0
    assert_books_balance()


def test_a_stop_is_made_once_and_says_why(
    operator: Party, acme: Party, hyperion: Party, plant: Plant, now: datetime
) -> None:
    key = uuid7()
    first = stop(hyperion, operation_id=key)
    assert stop(hyperion, operation_id=key).pk == first.pk
    with pytest.raises(Conflict):
        stop(hyperion, operation_id=key, reason="another")
    with pytest.raises(Conflict) as twice:
        stop(hyperion)
    with pytest.raises(NotFound) as nobody:
        stop(acme)
    assert (twice.value.field, nobody.value.field) == ("organization_id", "organization_id")
    for reason in (" ", "x" * 201, "a\x00b"):
        with pytest.raises(InvalidInput) as refused:
            stop(hyperion, reason=reason)
        assert refused.value.field == "reason"
    assert PayoutStop.objects.count() == 1
    with pytest.raises(NotFound):
        release_payouts(stop_id=uuid7(), now=now, actor=SYSTEM)


def test_over_rest_the_operator_looks_stops_and_releases_and_nobody_else(
    operator: Party, acme: Party, hyperion: Party, mallory: Party, plant: Plant, now: datetime
) -> None:
    body = {"organization_id": str(hyperion.id), "reason": "looked at"}
    for party in (acme, hyperion, mallory):
        assert party.api.get("/api/v1/monitoring/grant-earnings").status_code == 403
        assert party.api.get("/api/v1/payout-stops").status_code == 403
        refused = party.api.post(
            "/api/v1/payout-stops", body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4())
        )
        assert refused.status_code == 403
    key = str(uuid4())
    for _ in range(2):
        made = operator.api.post("/api/v1/payout-stops", body, format="json", HTTP_IDEMPOTENCY_KEY=key)
        assert made.status_code == 201
    (shown,) = operator.api.get("/api/v1/payout-stops").json()["items"]
    assert (shown["id"], shown["ended_at"]) == (made.json()["id"], None)
    path = f"/api/v1/payout-stops/{shown['id']}/release"
    assert mallory.api.post(path).status_code == 403
    assert operator.api.post(path).json()["ended_at"] is not None
    told = operator.api.get("/api/v1/monitoring/grant-earnings").json()
    assert (told["pairs"], told["is_cut"]) == ([], False)
    refused = operator.api.get("/api/v1/monitoring/grant-earnings?since=yesterday")
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "since")
