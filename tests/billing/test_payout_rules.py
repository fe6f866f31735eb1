"""When earnings are paid out, what is kept of them and why, where they go, and a statement's account that closes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from django.db import DatabaseError, connection, transaction
from pytest_django import Settings

from marketplace.accounts.models import AuditEntry, Membership, Organization, User
from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import DestinationNotice, Payout, PayoutDestinationChange, Statement
from marketplace.billing.payout_status import payout_status
from marketplace.billing.services.bonds import deposit_bond
from marketplace.billing.services.payout_destinations import (
    DELAY,
    apply_due_destinations,
    cancel_destination,
    give_consent,
    request_destination,
    withdraw_consent,
)
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.settling import settle_period
from marketplace.billing.services.statement_accounts import retained_of
from marketplace.billing.services.statements import issue_statements
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from marketplace.ledger.selectors import check_ledger
from marketplace.webhooks.models import WebhookEvent
from marketplace.webhooks.services import create_endpoint
from metering.models import UsageRollup
from pricing.models import Grade
from providers.models import Provider
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    accrue,
    assert_books_balance,
    identify,
    meter,
    money,
    on_demand,
    pending,
)
from tests.cast import Party, Plant, fund
from tests.conftest import TestDatabase
from tests.contracts.world import make_world

DAY = timedelta(days=1)
MARCH, APRIL = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
APRIL_2, MAY_2 = datetime(2026, 4, 2, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC)


def known(party: Party, at: datetime) -> None:
    identify(party)
    Provider.objects.filter(organization_id=party.id).update(
        self_billing_consent_at=at, payout_destination="DE-old"
    )


def sell(buyer: Party, grade: Grade, plant: Plant, lots: int, hour: datetime) -> None:
    """`lots` used in the hour, at the list rate of 0.60 per Mtok: 600 micros each."""
    contract = on_demand(buyer, grade, hour)
    meter(contract, plant.offering.list_rate, plant, lots * LOT, hour)
    accrue(contract, hour, lots * 600, hour)
    settle_period(settlement_start=hour, now=hour + DUE_AFTER)


def codes(party: Party, now: datetime) -> list[str]:
    return [reason.code for reason in payout_status(party.id, now=now).reasons]


def test_earnings_wait_for_the_holding_time_and_a_share_longer(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    settings.PAYOUT_HOLDING_S = 7 * 86_400
    settings.PAYOUT_RETENTION_PPM = 100_000
    settings.PAYOUT_RETENTION_DAYS = 30
    fund(acme, FUNDS, now)
    known(hyperion, now)
    sell(acme, grade, plant, 10_000, now)
    # 6.00 less a fee of 0.30; a tenth of the gross is kept.
    assert payout_status(hyperion.id, now=now).unstated_micros == 5_700_000
    [statement] = issue_statements(month_start=MARCH, now=APRIL_2)
    assert (statement.net_micros, statement.retained_micros) == (5_700_000, 600_000)
    assert statement.payable_at == APRIL_2 + 7 * DAY
    assert statement.retained_until == APRIL_2 + 37 * DAY
    just_before = APRIL_2 + 7 * DAY - timedelta(microseconds=1)
    assert pay_out_statements(now=just_before) == []
    assert codes(hyperion, just_before) == ["holding_time"]
    assert payout_status(hyperion.id, now=just_before).next_at == APRIL_2 + 7 * DAY
    [payout] = pay_out_statements(now=APRIL_2 + 7 * DAY)
    assert (payout.amount_micros, payout.retained_micros) == (5_100_000, 600_000)
    assert (payout.statement, payout.destination) == (statement, "DE-old")
    assert pay_out_statements(now=APRIL_2 + 8 * DAY) == []
    assert codes(hyperion, APRIL_2 + 8 * DAY) == ["retained"]
    [released] = pay_out_statements(now=APRIL_2 + 37 * DAY)
    assert (released.amount_micros, released.statement) == (600_000, None)
    assert pay_out_statements(now=APRIL_2 + 60 * DAY) == []
    assert money(hyperion, "payable") == 0
    assert_books_balance()


def test_what_is_retained_is_never_more_than_the_net(settings: Settings) -> None:
    settings.PAYOUT_RETENTION_PPM = 333_333
    assert retained_of(gross_micros=1_000_001, net_micros=950_000) == 333_334
    assert retained_of(gross_micros=1_000_001, net_micros=100) == 100
    assert retained_of(gross_micros=-5, net_micros=0) == 0


def test_less_than_the_least_payout_is_carried_to_the_next(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime, settings: Settings
) -> None:
    settings.PAYOUT_MINIMUM_MICROS = 6_000_000
    fund(acme, FUNDS, now)
    known(hyperion, now)
    sell(acme, grade, plant, 10_000, now)
    issue_statements(month_start=MARCH, now=APRIL_2)
    assert pay_out_statements(now=APRIL_2) == []
    assert codes(hyperion, APRIL_2) == ["below_minimum"]
    sell(acme, grade, plant, 1_000, APRIL_2)
    [second] = issue_statements(month_start=APRIL, now=MAY_2)
    [payout] = pay_out_statements(now=MAY_2)
    assert (payout.amount_micros, payout.statement) == (6_270_000, second)
    assert pay_out_statements(now=MAY_2 + DAY) == []


def test_every_reason_is_told(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    sell(acme, grade, plant, 10_000, now)
    issue_statements(month_start=MARCH, now=APRIL_2)
    assert codes(hyperion, APRIL_2) == ["consent_missing", "destination_missing", "identity_missing"]
    identify(hyperion)
    for field in ("legal_name", "address", "country", "tax_number"):
        before = getattr(Organization.objects.get(pk=hyperion.id), field)
        Organization.objects.filter(pk=hyperion.id).update(**{field: ""})
        [reason] = [one for one in payout_status(hyperion.id, now=APRIL_2).reasons if "identity" in one.code]
        assert field.replace("_", " ") in reason.text
        Organization.objects.filter(pk=hyperion.id).update(**{field: before})
    given = give_consent(organization_id=hyperion.id, now=now, actor=SYSTEM)
    again = give_consent(organization_id=hyperion.id, now=APRIL_2, actor=SYSTEM)
    assert given.self_billing_consent_at == again.self_billing_consent_at == now
    request_destination(
        organization_id=hyperion.id,
        destination="DE-new",
        operation_id=uuid7(),
        now=APRIL_2,
        actor=SYSTEM,
    )
    assert codes(hyperion, APRIL_2) == ["destination_missing"]
    assert pay_out_statements(now=APRIL_2 + DELAY - timedelta(seconds=1)) == []
    withdraw_consent(organization_id=hyperion.id, now=APRIL_2, actor=SYSTEM)
    assert pay_out_statements(now=APRIL_2 + DELAY) == []
    give_consent(organization_id=hyperion.id, now=APRIL_2 + DELAY, actor=SYSTEM)
    Organization.objects.filter(pk=hyperion.id).update(status=Organization.Status.SUSPENDED)
    assert codes(hyperion, APRIL_2 + DELAY) == ["suspended"]
    Organization.objects.filter(pk=hyperion.id).update(status=Organization.Status.ACTIVE)
    [payout] = pay_out_statements(now=APRIL_2 + DELAY)
    assert payout.destination == "DE-new"
    trail = set(AuditEntry.objects.filter(organization_id=hyperion.id).values_list("action", flat=True))
    assert {"self_billing.consented", "self_billing.consent_withdrawn"} <= trail


def test_the_account_on_a_statement_closes_on_the_books(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    known(hyperion, now)
    sell(acme, grade, plant, 10_000, now)
    [march] = issue_statements(month_start=MARCH, now=APRIL_2)
    assert (march.brought_forward_micros, march.posted_earned_micros, march.posted_fee_micros) == (
        0,
        6_000_000,
        -300_000,
    )
    assert march.carried_forward_micros == money(hyperion, "payable") == 5_700_000
    deposit_bond(
        organization_id=hyperion.id,
        amount_micros=500_000,
        source="earnings",
        operation_id=uuid7(),
        now=APRIL_2,
        actor=SYSTEM,
    )
    [payout] = pay_out_statements(now=APRIL_2)
    assert payout.amount_micros == 5_200_000
    sell(acme, grade, plant, 1_001, APRIL_2)
    # Half of March is taken back: a correction, and a line of April's statement.
    UsageRollup.objects.filter(period_start=now).update(numerator=9_000 * LOT)
    settle_period(settlement_start=now, now=APRIL_2 + DUE_AFTER)
    [april] = issue_statements(month_start=APRIL, now=MAY_2)
    assert (april.brought_forward_micros, april.posted_bond_micros, april.posted_payout_micros) == (
        5_700_000,
        -500_000,
        -5_200_000,
    )
    assert (april.posted_earned_micros, april.posted_given_back_micros) == (600_600, -600_000)
    assert april.posted_fee_micros == -30_030 + 30_000
    assert april.carried_forward_micros == money(hyperion, "payable") == 570
    assert [line.gross_micros for line in april.lines.all()] == [-600_000, 600_600]
    assert (april.net_micros, april.gross_micros) == (570, 600)
    assert_books_balance()


def test_another_destination_waits_three_days_and_is_told_to_every_owner(
    acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    fund(acme, FUNDS, now)
    known(hyperion, now)
    second = User.objects.create(email="second@hyperion.example", created_at=now)
    viewer = User.objects.create(email="viewer@hyperion.example", created_at=now)
    Membership.objects.create(user=second, organization_id=hyperion.id, role="owner", created_at=now)
    Membership.objects.create(user=viewer, organization_id=hyperion.id, role="viewer", created_at=now)
    create_endpoint(
        organization_id=hyperion.id, url="https://127.0.0.1/hook", description="", event_types=None, now=now,
        actor=SYSTEM,
    )  # fmt: skip
    key = uuid7()
    terms = {"organization_id": hyperion.id, "operation_id": key, "actor": SYSTEM}
    for _ in range(2):
        change = request_destination(destination=" DE-new ", now=APRIL_2, **terms)  # type: ignore[arg-type]
    assert (change.former, change.destination, change.status) == ("DE-old", "DE-new", "pending")
    assert change.effective_at == APRIL_2 + timedelta(hours=72)
    told = DestinationNotice.objects.filter(change=change, kind="requested")
    owners = Membership.objects.filter(organization_id=hyperion.id, role="owner")
    assert set(told.values_list("user_id", flat=True)) == set(owners.values_list("user_id", flat=True))
    assert told.count() == 2
    with pytest.raises(Conflict):
        request_destination(
            organization_id=hyperion.id,
            destination="DE-third",
            operation_id=uuid7(),
            now=APRIL_2,
            actor=SYSTEM,
        )
    sell(acme, grade, plant, 10_000, now)
    issue_statements(month_start=MARCH, now=APRIL_2)
    [payout] = pay_out_statements(now=APRIL_2 + DELAY - timedelta(microseconds=1))
    assert payout.destination == "DE-old"
    assert apply_due_destinations(now=APRIL_2 + DELAY) == 1
    assert apply_due_destinations(now=APRIL_2 + DELAY) == 0
    assert Provider.objects.get(organization_id=hyperion.id).payout_destination == "DE-new"
    with pytest.raises(Conflict):
        cancel_destination(
            organization_id=hyperion.id, change_id=change.id, now=APRIL_2 + DELAY, actor=SYSTEM
        )
    events = WebhookEvent.objects.filter(type="payout_destination.changed").order_by("occurred_at")
    bodies = [json.loads(bytes(event.body))["data"] for event in events]
    assert [body["status"] for body in bodies] == ["requested", "applied"]
    assert "DE-new" not in str(bodies)
    trail = AuditEntry.objects.filter(object_id=change.id).order_by("id")
    assert [entry.action for entry in trail] == ["payout_destination.requested", "payout_destination.applied"]
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE billing_destinationnotice SET email = 'x@example.org'")


def test_a_cancelled_change_never_takes_effect(
    hyperion: Party, mallory: Party, plant: Plant, now: datetime
) -> None:
    known(hyperion, now)
    change = request_destination(
        organization_id=hyperion.id, destination="DE-new", operation_id=uuid7(), now=now, actor=SYSTEM
    )
    with pytest.raises(NotFound):
        cancel_destination(organization_id=mallory.id, change_id=change.id, now=now, actor=SYSTEM)
    for _ in range(2):
        last = now + DELAY - timedelta(microseconds=1)
        ended = cancel_destination(organization_id=hyperion.id, change_id=change.id, now=last, actor=SYSTEM)
        assert ended.status == PayoutDestinationChange.Status.CANCELLED
    assert apply_due_destinations(now=now + 2 * DELAY) == 0
    assert Provider.objects.get(organization_id=hyperion.id).payout_destination == "DE-old"
    assert (
        DestinationNotice.objects.filter(kind="cancelled").count()
        == DestinationNotice.objects.filter(kind="requested").count()
    )
    for bad in ("", "abc", "x" * 201, "DE\n12345"):
        with pytest.raises(InvalidInput) as refused:
            request_destination(
                organization_id=hyperion.id, destination=bad, operation_id=uuid7(), now=now, actor=SYSTEM
            )
        assert refused.value.field == "destination"
    with pytest.raises(Conflict):
        request_destination(
            organization_id=hyperion.id, destination="DE-old", operation_id=uuid7(), now=now, actor=SYSTEM
        )


def test_runs_at_once_pay_once_and_never_beside_a_remedy_below_zero(
    committed_db: TestDatabase, now: datetime, settings: Settings
) -> None:
    world = make_world(now)
    fund(world.acme, FUNDS, now)
    known(world.hyperion, now)
    sell(world.acme, world.grade, world.plant, 10_000, now)
    issue_statements(month_start=MARCH, now=APRIL_2)
    UsageRollup.objects.update(numerator=0)

    def run(number: int) -> None:
        try:
            if number == 2:
                settle_period(settlement_start=now, now=APRIL_2)
            else:
                pay_out_statements(now=APRIL_2)
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, range(6)))
    settle_period(settlement_start=now, now=APRIL_2)
    # Paid in full before the correction, which the market then bears; or not at all.
    paid = sum(Payout.objects.values_list("amount_micros", flat=True))
    assert paid in (0, 5_700_000)
    assert Payout.objects.count() == (1 if paid else 0)
    assert (money(world.hyperion, "payable"), pending(world.hyperion, "payable")) == (0, 0)
    assert money(world.operator, "operator") == (-5_700_000 if paid else 0)
    assert money(world.acme, "prepaid") == FUNDS
    assert check_ledger() == []
    assert Statement.objects.count() == 1
