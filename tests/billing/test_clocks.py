"""Test clocks: a rehearsed year is the year that the same services make of it, and nobody else notices."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.apps import apps
from django.db.models import Q

from marketplace.accounts.models import OrganizationClock
from marketplace.accounts.organization_clocks import (
    billing_now,
    clock_of,
)
from marketplace.billing.models import (
    Charge,
    DunningStep,
    Earning,
    Invoice,
    InvoiceStatusChange,
    MonthOutcome,
)
from marketplace.billing.services.clock_walks import keep_clocks, walk_clocks
from marketplace.billing.services.documents_due import issue_due_documents
from marketplace.billing.services.settling import settle_due_periods
from marketplace.contracts.models import Contract, Entitlement
from marketplace.contracts.services import advance_contracts
from marketplace.ledger.models import LedgerAccount, Transfer
from marketplace.ledger.selectors import check_ledger
from marketplace.periods import calendar_month, contract_month
from pricing.models import Grade
from tests.billing.test_month_ends import buy, credit
from tests.billing.world import DUE_AFTER, FUNDS, LOT, assert_books_balance, meter, money
from tests.cast import Party, Plant, fund, make_party

YEAR = timedelta(days=365)
DAY = timedelta(days=1)
MONTHS = 12
# max_request_s (15) and the settlement grace (60) after a month's last settlement period.
DUE = timedelta(seconds=75)


@pytest.fixture
def beside(operator: Party, now: datetime) -> Party:
    """Buys what acme buys, and keeps real time."""
    return make_party("Beside", ["buyer"], now)


def ask(party: Party, path: str, body: dict[str, Any] | None, now: datetime) -> Any:
    """POST to the party's test clock, at `now` of real time."""
    with time_machine.travel(now, tick=False):
        return party.api.post(
            f"/api/v1/test-clock{path}", body, format="json", headers={"Idempotency-Key": str(uuid4())}
        )


def advance(party: Party, to: datetime, now: datetime) -> OrganizationClock:
    """As an integrator does it, and the worker."""
    asked = ask(party, "/advance", {"to": to.isoformat()}, now)
    assert (asked.status_code, asked.json()["status"]) == (202, "advancing")
    # A slow machine takes more than one hint for it.
    for _ in range(20):
        if walk_clocks(now=now) == 1:
            break
    return clock_of(party.id)


def instants(contract: Contract, until: datetime) -> list[datetime]:
    """When beat could have found something due of this contract, and now and then."""
    found = set()
    for number in range(MONTHS + 3):
        start = contract_month(contract.starts_at, number).start
        month_end = calendar_month(start).start
        found |= {start, start + DUE, month_end + timedelta(seconds=960), month_end + DAY}
    day = contract.starts_at
    while day <= until:
        found.add(day)
        day += 9 * DAY
    return sorted(at for at in found if contract.starts_at <= at <= until)


def live(contract: Contract, until: datetime) -> None:
    """Real time passes, by the services that beat calls."""
    for at in instants(contract, until):
        advance_contracts(now=at)
        settle_due_periods(now=at)
        keep_clocks(now=at)
        issue_due_documents(now=at)


def rows_of(party: Party) -> str:
    """Every row of this organization's, in every table that names it, and of its accounts."""
    found: dict[str, list[Any]] = {}
    for model in apps.get_models():
        names = {field.name for field in model._meta.fields}
        if "organization" in names:
            rows = model._default_manager.filter(organization=party.id)
            found[model._meta.label] = sorted(map(repr, rows.values()))
    accounts = LedgerAccount.objects.filter(organization=party.id)
    moved = Transfer.objects.filter(Q(debit_account__in=accounts) | Q(credit_account__in=accounts))
    found["transfers"] = sorted(map(repr, moved.values()))
    found["lines"] = sorted(map(repr, Charge.objects.filter(organization=party.id).values()))
    return json.dumps(found, indent=1)


def story(party: Party) -> dict[str, Any]:
    """What billing came to, without ids, numbers and names."""
    charges = Charge.objects.filter(organization=party.id)
    return {
        "charges": sorted(
            charges.values_list(
                "kind", "period_start", "period_end", "numerator", "amount_micros", "tax_held_micros"
            )
        ),
        "charged_at": sorted(charges.filter(kind="committed_fee").values_list("period_start", "created_at")),
        "earnings": sorted(
            Earning.objects.filter(charge__organization=party.id).values_list(
                "period_start", "numerator", "gross_micros", "fee_micros"
            )
        ),
        "months": sorted(
            MonthOutcome.objects.filter(contract__organization=party.id).values_list(
                "entitlement__period_start",
                "run",
                "delivered_numerator",
                "unused_numerator",
                "take_numerator",
                "true_up_numerator",
                "rolled_over_numerator",
                "charged_micros",
                "created_at",
            )
        ),
        "entitled": sorted(
            Entitlement.objects.filter(contract__organization=party.id).values_list(
                "period_start", "entitled_numerator", "rollover_numerator", "paid_at", "settled_at"
            )
        ),
        "invoices": sorted(
            Invoice.objects.filter(organization=party.id).values_list(
                "period_start", "status", "total_micros", "prepaid_micros", "amount_due_micros", "due_at"
            )
        ),
        "steps": sorted(
            InvoiceStatusChange.objects.filter(invoice__organization=party.id).values_list(
                "invoice__period_start", "from_status", "to_status"
            )
        ),
        "dunning": sorted(
            DunningStep.objects.filter(organization=party.id).values_list(
                "invoice__period_start", "step", "amount_micros"
            )
        ),
        "contracts": list(
            Contract.objects.filter(organization=party.id).values_list("status", "starts_at", "ends_at")
        ),
        "money": {kind: money(party, kind) for kind in ("prepaid", "receivable", "deferred")},
    }


PREPAID = {"payment": "prepaid", "rollover_share_ppm": 500_000, "rollover_cap_lots": 1_000}
ARREARS = {"payment": "arrears", "take_share_ppm": 800_000}


@pytest.mark.parametrize("wanted", [PREPAID, ARREARS], ids=["prepaid", "arrears"])
def test_a_rehearsed_year_is_what_the_services_make_of_the_year(
    wanted: dict[str, object],
    acme: Party,
    beside: Party,
    hyperion: Party,
    grade: Grade,
    plant: Plant,
    now: datetime,
) -> None:
    bought = []
    for party in (acme, beside):
        fund(party, FUNDS, now)
        credit(party, now)
        bought.append(buy(party, grade, now, months=MONTHS, **wanted))
    assert ask(acme, "", None, now).status_code == 201
    for contract in bought:
        # Usage is of real time: of the first hour, metered before the clock goes on.
        live_until = contract.starts_at + DUE_AFTER
        advance_contracts(now=contract.starts_at)
    keep_clocks(now=bought[0].starts_at)
    settle_due_periods(now=bought[0].starts_at)
    for contract in bought:
        assert contract.rate is not None
        meter(contract, contract.rate, plant, 300 * LOT, contract.starts_at)
    assert len(settle_due_periods(now=live_until).settled) == 2
    untouched = rows_of(beside)
    arrived = advance(acme, live_until + 366 * DAY, live_until)
    arrived = advance(acme, arrived.now_at + 120 * DAY, live_until)
    assert arrived.status == "ready"
    assert rows_of(beside) == untouched
    assert check_ledger() == []
    rehearsed = story(acme)
    assert len(rehearsed["invoices"]) >= MONTHS
    assert rehearsed["contracts"][0][0] == "ended"
    live(bought[1], arrived.now_at)
    assert story(beside) == rehearsed
    # A year of real time over what was rehearsed has changed nothing of it.
    assert story(acme) == rehearsed
    assert_books_balance()
    assert billing_now(acme.id, arrived.now_at + DAY) == arrived.now_at + DAY
