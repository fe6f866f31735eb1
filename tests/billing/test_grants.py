"""Grants where money is held and settled: the hold path burns them, the settlement draws what was used."""

from __future__ import annotations

import io
import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.management import call_command
from django.db import connection

from marketplace.accounts.models import AuditEntry
from marketplace.billing.services.settling import settle_period
from marketplace.contracts.models import Accrual, Contract
from marketplace.contracts.models import Hold as DeliveryHold
from marketplace.contracts.services import capture_hold, extend_hold, open_hold
from marketplace.ids import uuid7
from marketplace.ledger.grants import GrantTerms, expire_grants, give_grant
from marketplace.ledger.models import Grant, LedgerAccount, Transfer
from metering.services import gateway_source
from pricing.models import Grade
from tests.billing.world import (
    DUE_AFTER,
    FUNDS,
    LOT,
    assert_books_balance,
    meter,
    money,
    on_demand,
    pending,
    set_tax,
)
from tests.cast import Party, Plant, fund
from tests.peers.cases import runs


def give(party: Party, amount: int, now: datetime, **terms: Any) -> Grant:
    return give_grant(
        id=uuid7(),
        organization_id=party.id,
        terms=GrantTerms(kind="granted", amount_micros=amount, currency="USD", **terms),
        now=now,
    )


def free(grant: Grant) -> int:
    grant.refresh_from_db()
    return grant.free_micros


def accrue(contract: Contract, held: int, captured: int, now: datetime) -> None:
    """What the hold path leaves of requests that held `held` and captured `captured`."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT contracts_accrue(%s, %s, %s, %s)", [contract.id, now, held, now])
    accrual = Accrual.objects.get(contract=contract)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_change_hold(%s, %s, %s)", [accrual.ledger_hold_id, captured - held, now]
        )
    Accrual.objects.filter(pk=accrual.pk).update(held_micros=0, captured_micros=captured)


def test_a_request_burns_the_grant_at_its_hold_and_gives_back_what_it_did_not_use(
    operator: Party, acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Through the functions that the gateway calls; no prepaid money at all."""
    grant = give(acme, 2_000, now, grade_id=grade.id)
    hold_id = uuid7(now)
    opened = open_hold(
        id=hold_id, organization_id=acme.id, grade_ids=[grade.id], numerators=[2 * LOT], now=now
    )
    assert (opened.outcome, opened.amount_micros) == ("ok", 1_200)
    assert free(grant) == 800
    assert extend_hold(id=hold_id, delta_numerator=LOT, now=now) == "ok"
    assert free(grant) == 200
    assert extend_hold(id=hold_id, delta_numerator=LOT, now=now) == "insufficient_funds"
    assert free(grant) == 200
    capture_hold(id=hold_id, numerator=LOT, event=b"{}\n", source_id=gateway_source(now).id, now=now)
    assert DeliveryHold.objects.get(pk=hold_id).captured_micros == 600
    assert free(grant) == 1_400
    assert_books_balance()


@runs("credit-12")
def test_the_grant_pays_its_part_and_the_balance_the_rest(
    operator: Party, acme: Party, hyperion: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """On time and late before the cutoff alike: 12.5 of usage, 5 of credit, 7.5 to pay."""
    fund(acme, FUNDS, now)
    grant = give(acme, 5_000, now)
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, 20_833_333_333, now)
    accrue(contract, 15_000, 12_500, now)
    assert (free(grant), pending(acme)) == (0, 7_500)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert money(acme, "prepaid") == FUNDS - 7_500
    assert (money(acme, "grant"), pending(acme), free(grant)) == (0, 0, 0)
    assert money(hyperion, "payable") == 12_500 - 625
    assert [burn.amount_micros for burn in Transfer.objects.filter(code="grant_burn")] == [5_000]
    assert_books_balance()


def test_credit_pays_the_tax_too_and_what_is_left_of_it_stays(
    operator: Party, acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    """Credit pays the amount with its tax, as the balance does."""
    set_tax(acme, 240_000)
    grant = give(acme, 5_000, now)
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    accrue(contract, 1_000, 744, now)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert free(grant) == 5_000 - 744
    assert (money(acme, "prepaid"), pending(acme)) == (144, 144)
    assert_books_balance()


def test_what_expires_while_it_is_held_is_breakage_when_it_comes_back(
    operator: Party, acme: Party, grade: Grade, plant: Plant, now: datetime
) -> None:
    grant = give(acme, 5_000, now, expires_at=now + timedelta(minutes=5))
    contract = on_demand(acme, grade, now)
    meter(contract, plant.offering.list_rate, plant, LOT, now)
    accrue(contract, 2_000, 2_000, now)
    expire_grants(now=now + DUE_AFTER)
    settle_period(settlement_start=now, now=now + DUE_AFTER)
    assert expire_grants(now=now + DUE_AFTER) == 1
    assert (free(grant), money(operator, "breakage"), money(acme, "prepaid")) == (0, 4_400, 0)
    assert_books_balance()


def test_the_operator_gives_and_revokes_through_rest(operator: Party, acme: Party, grade: Grade) -> None:
    body = {
        "organization_id": str(acme.id),
        "kind": "granted",
        "amount_micros": 5_000_000,
        "priority": 1,
        "grade_id": str(grade.id),
        "expires_at": "2030-01-01T00:00:00Z",
    }
    key: dict[str, Any] = {"HTTP_IDEMPOTENCY_KEY": str(uuid4())}
    made = [operator.api.post("/api/v1/grants", body, format="json", **key) for _ in range(2)]
    assert [answer.status_code for answer in made] == [201, 201]
    assert made[0].json() == made[1].json()
    [seen] = acme.api.get("/api/v1/grants").json()["items"]
    assert seen == made[0].json()
    assert (seen["free_micros"], seen["status"], seen["cost_basis_ppm"]) == (5_000_000, "open", 0)
    assert AuditEntry.objects.filter(organization_id=acme.id, action="grant.given").count() == 1
    path = f"/api/v1/grants/{seen['id']}/revoke"
    assert acme.api.post(path).status_code == 403
    assert operator.api.post(path).json() == {"revoked_micros": 5_000_000}
    assert acme.api.get("/api/v1/grants").json()["items"][0]["status"] == "revoked"


@pytest.mark.parametrize("name", ["organization_id", "grade_id"])
def test_a_grant_to_nobody_or_for_nothing_is_refused(operator: Party, acme: Party, name: str) -> None:
    body = {"organization_id": str(acme.id), "kind": "granted", "amount_micros": 5} | {name: str(UUID(int=9))}
    answer = operator.api.post("/api/v1/grants", body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))
    assert (answer.status_code, answer.json()["field"]) == (404, name)
    assert not Grant.objects.exists()


def test_nobody_but_the_operator_gives(acme: Party, mallory: Party, operator: Party) -> None:
    body = {"organization_id": str(mallory.id), "kind": "granted", "amount_micros": 5}
    answer = mallory.api.post("/api/v1/grants", body, format="json", HTTP_IDEMPOTENCY_KEY=str(uuid4()))
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


def test_the_command_gives(operator: Party, acme: Party) -> None:
    out = io.StringIO()
    call_command("givegrant", acme.organization.name, "700", "--days", "30", stdout=out)
    grant = Grant.objects.get()
    assert json.loads(out.getvalue())["id"] == str(grant.id)
    assert LedgerAccount.objects.get(pk=grant.account_id).credits_posted_micros == 700
